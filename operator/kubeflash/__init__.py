"""KubeFlash: the NVMe SSDs beside the GPUs, as Kubernetes volumes."""

__version__ = "0.1.0"
