// Package kind runs a node inside a node: the image that deploy/kind/bare makes
// is a privileged container of Berth, and its kubelet and its Berth run a pod.
package kind
