"""What more than one room asks of the kernel, and Python has no function for: mounts, processes."""
