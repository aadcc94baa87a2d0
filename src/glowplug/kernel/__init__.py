"""What more than one room needs and Python has no function for: mounts, processes, libraries of our own."""
