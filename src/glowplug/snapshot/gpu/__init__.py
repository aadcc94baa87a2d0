"""GPU state of processes: what devices there are, and moving their memory to the host and back.

Who suspends a replica asks a :class:`~glowplug.snapshot.gpu.client.GpuGuard`. It is a process of its own,
and the only one that talks to the driver is its child, the helper: neither the node agent nor the command
line ever loads NVIDIA's libraries, so a driver that hangs or crashes takes neither with it. The contract is
docs/gpu.md.
"""
