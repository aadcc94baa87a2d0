"""Whom the simulator compares: how many replicas, and which machines for them."""
