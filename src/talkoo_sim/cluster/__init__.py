"""A real Kubernetes on this machine: etcd, control plane, two nodes with kubelet, containerd, runc and CNI."""
