"""Root filesystems: resolve, build, import, mount.

:class:`~glowplug.image.node_images.NodeImages` is what the agent owns of this room, a
:class:`~glowplug.image.mount.Mounter` gives out what a container starts from. Nothing is imported here,
because the blob daemon, which lies in this package, must stay small.
"""
