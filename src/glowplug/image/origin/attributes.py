"""Which extended attributes of a file are part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_PREFIXES = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_LABELS = {b"security.selinux": Path("/sys/fs/selinux"), b"security.SMACK64": Path("/sys/fs/smackfs")}

KeepXattr = Callable[[bytes], bool]


def belongs_to_image(name: bytes) -> bool:
    """True for capabilities, ACLs, labels, and what users and programs set.

    False for what only one kind of filesystem knows (``system.nfs4_acl``) and for other systems' names.
    """
    return name in _ACLS or (name.startswith(_PREFIXES) and name not in _PREFIXES)


def belongs_to_folder() -> KeepXattr:
    """The same for files here: where SELinux or Smack run, the kernel makes up a label for each."""
    made_up = frozenset(name for name, filesystem in _LABELS.items() if filesystem.is_dir())
    return lambda name: name not in made_up and belongs_to_image(name)
