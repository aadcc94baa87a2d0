"""The agent that owns everything on one machine."""
