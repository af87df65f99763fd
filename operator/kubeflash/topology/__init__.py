"""Pure: the PCIe tree, how far two devices are apart, and which SSD is a GPU's nearest."""
