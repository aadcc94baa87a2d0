"""A node's door to its cluster: the one port on which other machines reach its agent and its replicas."""
