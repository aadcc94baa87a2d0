"""Kubernetes as the engine: custom resources, their operator, the agent on every node."""
