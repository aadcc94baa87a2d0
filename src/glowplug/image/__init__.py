"""Root filesystems: resolve, build, mount.

:class:`ImageStore` makes images ready, a :class:`Mounter` gives out what a container starts from. Nothing
else of this room is meant for others.
"""

from glowplug.image.mount import Bind, ImageMounter, Mounter, MountUse, RootFilesystem
from glowplug.image.store import ImageStore

__all__ = ["Bind", "ImageMounter", "ImageStore", "MountUse", "Mounter", "RootFilesystem"]
