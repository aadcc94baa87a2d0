"""Machines of a Ray cluster: an actor on each keeps an agent there, which outlives whatever becomes of Ray.

Ray says which machines there are, starts something on each, and rents more; that is all it is used for. What
an actor starts is what ``glowplug cluster join`` starts: a supervisor with its agent and gateway, no child of
Ray's. So requests, images and snapshots pass no channel of Ray's, a node's death is noticed by the control
plane's own leases, and warm replicas answer on while Ray is away or is started anew. Only
:mod:`~glowplug.engine.ray.connected` imports Ray.
"""
