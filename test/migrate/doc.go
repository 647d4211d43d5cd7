// Package migrate tells how a node comes to Berth from another runtime: its
// images are taken over from stores that Debian's containerd and skopeo made.
package migrate
