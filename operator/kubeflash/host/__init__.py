"""The machine: sysfs, partition tables, blankness, nvmet's configfs, the NVMe-oF initiator. Knows no Kubernetes."""
