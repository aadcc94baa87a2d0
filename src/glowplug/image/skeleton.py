"""A nearly empty root filesystem of our own: mount points, links as on the host, and a little of ``/etc``.

What programs need of ``/etc`` and holds no secret is listed here, and nothing else gets in: not ``shadow``,
no keys, no configuration of the host's services. ``hosts``, ``hostname`` and ``resolv.conf`` are left
empty: they belong to a replica, not to an image.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from glowplug.image.resolve import HOST_ROOT, Trace, trace
from glowplug.types.errors import InvalidInput

FOLDERS = (
    ".glowplug/lib", "app", "dev", "etc", "home", "mnt", "opt", "proc", "root", "run/glowplug", "run/lock",
    "srv", "sys", "tmp", "var/cache", "var/lib", "var/log", "var/tmp",
)  # fmt: skip
MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777, "run/lock": 0o1777}
LINKS = {"var/run": "/run", "var/lock": "/run/lock", "etc/mtab": "/proc/mounts"}
MOUNT_POINTS = ("etc/hosts", "etc/hostname", "etc/resolv.conf")

# Copied when the image is made: they hardly change, and a bind costs a replica about a millisecond.
COPIED = (
    "debian_version", "fonts", "gai.conf", "group", "host.conf", "inputrc", "ld.so.conf", "ld.so.conf.d",
    "locale.alias", "localtime", "magic", "magic.mime", "mime.types", "netconfig", "networks",
    "nsswitch.conf", "os-release", "passwd", "protocols", "rpc", "services", "shells", "ssl/openssl.cnf",
    "terminfo", "timezone",
)  # fmt: skip
# Bound: they change together with the host's /usr (ldconfig, update-alternatives, update-ca-certificates).
BOUND = ("alternatives", "ld.so.cache", "ssl/certs")


def make_skeleton(root: Path, host_etc: Path = Path("/etc")) -> None:
    """Fill the empty folder ``root``."""
    root.chmod(0o755)
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder, mode in MODES.items():
        (root / folder).chmod(mode)
    for link, target in LINKS.items():
        (root / link).symlink_to(target)
    for name in COPIED:
        _copy(host_etc / name, root / "etc" / name)
    make_empty_files(root)


def make_empty_files(root: Path) -> None:
    """Make the files that a replica's own are mounted on, whatever lies there: its content is not wanted."""
    for path in MOUNT_POINTS:
        point = in_root(root, HOST_ROOT / path)
        if point.is_dir():
            raise InvalidInput(
                f"/{path} of the image is a folder.", remedy="Leave that file to Glowplug.", path=f"/{path}"
            )
        point.unlink(missing_ok=True)
        point.parent.mkdir(parents=True, exist_ok=True)
        point.touch()


def add_links(root: Path, traces: Iterable[Trace], bound: Iterable[Path]) -> None:
    """Repeat the host's links in ``root``, except those that a bind will show anyway."""
    shown = list(bound)
    for host_trace in traces:
        for where, target in host_trace.links:
            if any(where.is_relative_to(path) for path in shown):
                continue
            folder = in_root(root, where.parent)
            folder.mkdir(parents=True, exist_ok=True)
            link = folder / where.name
            if not link.is_symlink():
                link.symlink_to(target)


def add_mount_point(root: Path, destination: Path, *, is_folder: bool) -> None:
    """Make what a bind is mounted on, or a working directory. Raises InvalidInput if a file is in the way."""
    point = in_root(root, destination)
    try:
        (point if is_folder else point.parent).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as problem:
        raise InvalidInput(
            f"{destination} cannot be a folder of the image: a file is in the way.",
            remedy="Choose another path.",
            path=str(destination),
        ) from problem
    if not is_folder:
        point.touch()


def in_root(root: Path, path: Path) -> Path:
    """Where the absolute ``path`` of a container leads below ``root``: its links never lead out of it."""
    return root / trace(path, root).end.relative_to(HOST_ROOT)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)
