"""Pure: allocation, placement, plans, names, conditions. Nothing here reads a disk, a file or the API server."""
