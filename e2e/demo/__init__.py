"""`make demo`: from a blank SSD beside a GPU to a file read over NVMe-oF."""
