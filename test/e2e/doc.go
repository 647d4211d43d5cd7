// Package e2e proves Berth under a real Kubernetes: etcd, API server,
// controller manager, scheduler, kube-proxy, kubectl and kubelets, built from
// the Go module in k8s/, run in network and mount namespaces without a way
// out, with a berthd under each kubelet.
package e2e
