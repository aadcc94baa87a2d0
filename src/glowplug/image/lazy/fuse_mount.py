"""Mount a FUSE filesystem that this process will serve: by ourselves as root, else by ``fusermount3``."""

from __future__ import annotations

import array
import os
import shutil
import socket
import subprocess
from pathlib import Path

from glowplug.image.lazy import syscalls
from glowplug.image.lazy.fuse_protocol import MAX_READ_BYTES
from glowplug.image.lazy.mount_table import mounted_at
from glowplug.image.lazy.syscalls import MountRefused, Option, mount

SUBTYPE = "glowplug"  # the table of mounts shows fuse.glowplug
_HELPER_TIMEOUT_S = 10.0
_DESCRIPTOR_BYTES = array.array("i").itemsize


def mount_fuse(source: Path, target: Path) -> int:
    """Mount at ``target``; ``source`` is what the table of mounts shows. Returns the descriptor to serve.

    The kernel checks permissions by what the filesystem says of its files. Raises MountRefused.
    """
    return _mount_as_root(source, target) if os.geteuid() == 0 else _mount_by_helper(source, target)


def _mount_as_root(source: Path, target: Path) -> int:
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        raise MountRefused(
            f"/dev/fuse cannot be opened: {problem.strerror}.",
            remedy="Load the kernel's fuse module; in a container, pass the device.",
            errno=problem.errno,
        ) from problem
    options = [
        Option("source", str(source)),
        Option("subtype", SUBTYPE),
        Option("fd", str(descriptor)),
        Option("rootmode", "40000"),
        Option("user_id", "0"),
        Option("group_id", "0"),
        Option("max_read", str(MAX_READ_BYTES)),
        Option("allow_other"),
        Option("default_permissions"),
    ]
    try:
        mount("fuse", options, target)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _mount_by_helper(source: Path, target: Path) -> int:
    """``fusermount3`` is setuid root; it mounts and sends the descriptor over the socket it was given."""
    names = f"fsname={_escaped(source)},subtype={SUBTYPE}"
    options = f"ro,nosuid,nodev,default_permissions,max_read={MAX_READ_BYTES},{names}"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_HELPER_TIMEOUT_S)
        done = subprocess.run(
            [_helper(), "-o", options, "--", str(target)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise MountRefused(
                f"fusermount3 did not mount {target}: {done.stderr.strip()[:500]}.",
                remedy="See `man fusermount3`; as root it is not needed.",
                errno=None,
            )
        return _receive_descriptor(ours)


def unmount(target: Path) -> bool:
    """As :func:`~glowplug.image.lazy.syscalls.unmount`, also for somebody who is not root."""
    return syscalls.unmount(target) if os.geteuid() == 0 else _unmount_by_helper(target, "-u")


def detach(target: Path) -> bool:
    """As :func:`~glowplug.image.lazy.syscalls.detach`, also for somebody who is not root."""
    return syscalls.detach(target) if os.geteuid() == 0 else _unmount_by_helper(target, "-uz")


def _unmount_by_helper(target: Path, option: str) -> bool:
    if mounted_at(target) is None:
        return False
    done = subprocess.run(
        [_helper(), option, "--", str(target)],
        capture_output=True,
        text=True,
        timeout=_HELPER_TIMEOUT_S,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode == 0:
        return True
    words = done.stderr.strip()[:500]
    if "busy" in words:
        raise syscalls.in_use(target)
    raise MountRefused(
        f"{target} cannot be unmounted: {words}.",
        remedy="See `man fusermount3`.",
        errno=None,
        path=str(target),
    )


def _helper() -> str:
    program = shutil.which("fusermount3")
    if program is None:
        raise MountRefused(
            "Mounting without being root needs fusermount3.", remedy="apt-get install fuse3", errno=None
        )
    return program


def _receive_descriptor(connection: socket.socket) -> int:
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(_DESCRIPTOR_BYTES))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            (descriptor,) = array.array("i", data[:_DESCRIPTOR_BYTES])
            os.set_inheritable(descriptor, False)
            return int(descriptor)
    raise MountRefused("fusermount3 sent no descriptor.", remedy="Update the package fuse3.", errno=None)


def _escaped(source: Path) -> str:
    """Commas end an option; a backslash before them does not."""
    return str(source).replace("\\", "\\\\").replace(",", "\\,")
