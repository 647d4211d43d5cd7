// Package suite tells the life of pods, images and containers as stories over
// the CRI. They run against any endpoint:
//
//	go test ./test/suite -endpoint unix:///run/containerd/containerd.sock -hosts-dir /etc/containerd/certs.d
//
// Without an endpoint the suite starts a berthd of its own, in namespaces of
// its own, and also proves that nothing is left when the stories have ended.
package suite
