"""A day of requests in seconds: production's own decisions on a clock of its own (``docs/simulator.md``).

It runs the control plane's autoscaler and heat rules and the pools' planner, so it lies above both rooms.
"""
