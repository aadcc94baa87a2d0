"""The seam between images and containers: what a container can be started from, and who provides it.

Whatever an image is made of (an index whose content is fetched when it is read, a folder, the host itself),
the rest of Glowplug sees a :class:`RootFilesystem` that a :class:`Mounter` handed out, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from glowplug.image import overlay
from glowplug.image.inside import check_destination
from glowplug.image.job import Job
from glowplug.image.layout import ImageFolders
from glowplug.image.lazy.fuse_mount import detach
from glowplug.image.lock import held
from glowplug.image.record import ImageRecord, Lower, read_record
from glowplug.image.resolve import HOST_ROOT, look_up, trace
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.content import TierRead
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound
from glowplug.types.paths import StateDir

_LOWER_NOTE = "lower"  # beside the overlay: what it was made on
MOUNT_TIMEOUT_S = 10.0  # somebody else's mount of the same image takes about a millisecond


@dataclass(frozen=True)
class Bind:
    """A folder or file of the host shown at ``destination`` of the container."""

    source: Path
    destination: str
    read_only: bool = True


@dataclass(frozen=True)
class RootFilesystem:
    """What a container starts from.

    ``root`` is meant to be mounted read-only with the runtime's own overlay on top. The runtime may create
    missing mount points in it (runsc does so on the host, whatever its overlay): that never reaches a
    user's folder. ``base`` is the same without the layer that takes them, for a runtime that lays its own on
    top; nobody may write to it. ``binds`` come after the runtime's tmpfs mounts, in this order. ``python`` is
    the interpreter to run our runner with, None if there is none.
    """

    root: Path
    base: Path
    binds: tuple[Bind, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    python: str | None = None

    def check_mount_point(self, destination: str) -> None:
        """Raise InvalidInput if mounting something more at ``destination`` would change a host's folder.

        The runtime creates missing mount points, and inside a bind that means: on the host.
        """
        wanted = HOST_ROOT / trace(Path(check_destination(destination, "mount point")), self.root).end
        covering = [bind for bind in self.binds if wanted.is_relative_to(bind.destination)]
        if not covering:
            return
        innermost = max(covering, key=lambda bind: len(bind.destination))
        inner = PurePosixPath("/") / wanted.relative_to(innermost.destination)
        if look_up(Path(inner), innermost.source) is None:
            raise InvalidInput(
                f"{destination} does not exist in {innermost.source}, which is bound read-only at "
                f"{innermost.destination}.",
                remedy="Create it there, or choose a path elsewhere.",
                path=destination,
            )


@dataclass(frozen=True)
class MountUse:
    """How an image is mounted (``graduated``, ``lazy``, ``folder`` ..), and what was read from which tier."""

    kind: str = "folder"
    reads: dict[str, TierRead] = field(default_factory=dict)


class IndexMounts(Protocol):
    """Mounts the trees of image indexes, whose content may still be elsewhere. Safe from many threads."""

    def mount(self, digest: str, command: Sequence[str]) -> Path:
        """Where the tree is; begins to fetch what ``command`` read before. Raises NotFound, SystemUnfit."""
        ...

    def unmount(self, digest: str) -> None:
        """Release it. Raises Conflict while somebody uses it."""
        ...

    def use(self, digest: str) -> MountUse:
        """Totals since it was mounted. Never raises, never takes long: what cannot be told is left out."""
        ...

    def keep_trace(self, digest: str, command: Sequence[str]) -> None:
        """Remember what was read so far as what ``command`` needs to start."""
        ...


class Mounter(Protocol):
    """Gives out root filesystems of images that are ready.

    Duties: ``mount`` is idempotent, safe from several threads and processes, and takes less than 5 ms for
    an image it has mounted before; what it gives out stays valid until ``unmount``, also across restarts of
    the process. ``unmount`` of what is not mounted does nothing; running containers are not disturbed by it.
    """

    def mount(self, image_id: str, command: Sequence[str] = ()) -> RootFilesystem:
        """For starting ``command``. Raises NotFound if the image or its host folder has gone."""
        ...

    def unmount(self, image_id: str) -> None:
        """Release what ``mount`` set up."""
        ...

    def use(self, image_id: str) -> MountUse:
        """How it is mounted and what was read; quick, and never raises."""
        ...

    def keep_trace(self, image_id: str, command: Sequence[str]) -> None:
        """``command`` has just become ready: what it read is what it needs to start."""
        ...


class ImageMounter:
    """All kinds of images: indexes and users' folders under an overlay, skeletons as they are."""

    def __init__(self, state: StateDir, indexes: IndexMounts, clock: Clock | None = None) -> None:
        self._folders = ImageFolders(state)
        self._indexes = indexes
        self._clock = clock or SystemClock()

    def mount(self, image_id: str, command: Sequence[str] = ()) -> RootFilesystem:
        """See :class:`Mounter`."""
        folder = self._folders.image(image_id)
        record = read_record(folder, image_id)
        base = root = folder / "rootfs"
        if record.index_digest is not None:
            base = self._indexes.mount(record.index_digest, command)
            self._mount_overlay(record, base, root)
        elif record.lower is not None:
            self._check_lower(record, record.lower)
            base = Path(record.lower.path)
            self._mount_overlay(record, base, root)
        for bind in record.binds:
            if not Path(bind.source).exists():
                raise _gone(record.id, bind.source)
        return RootFilesystem(
            root=root,
            base=base,
            binds=tuple(Bind(Path(b.source), b.destination, b.read_only) for b in record.binds),
            env=dict(record.env),
            workdir=record.workdir,
            python=record.python,
        )

    def unmount(self, image_id: str) -> None:
        """See :class:`Mounter`."""
        folder = self._folders.image(image_id)
        if (folder / "rootfs").is_mount():
            with self._exclusively(image_id):
                overlay.release(folder / "rootfs")
        record = read_record(folder, image_id)
        if record.index_digest is not None:
            self._indexes.unmount(record.index_digest)

    def use(self, image_id: str) -> MountUse:
        """See :class:`Mounter`."""
        digest = self._digest(image_id)
        return MountUse() if digest is None else self._indexes.use(digest)

    def keep_trace(self, image_id: str, command: Sequence[str]) -> None:
        """See :class:`Mounter`."""
        digest = self._digest(image_id)
        if digest is not None:
            self._indexes.keep_trace(digest, command)

    def _digest(self, image_id: str) -> str | None:
        try:
            return read_record(self._folders.image(image_id), image_id).index_digest
        except GlowplugError:  # removed meanwhile
            return None

    def _check_lower(self, record: ImageRecord, lower: Lower) -> None:
        try:
            is_same = Path(lower.path).stat().st_ino == lower.inode
        except OSError:
            is_same = False
        if not is_same:
            raise _gone(record.id, lower.path)

    def _mount_overlay(self, record: ImageRecord, lower: Path, root: Path) -> None:
        """An overlay keeps the filesystem it was made on, even when something better is mounted there now."""
        if _stands_on(lower, root):
            return
        with self._exclusively(record.id):
            if not _stands_on(lower, root):
                # Whoever runs on the old one keeps it. Both share the upper layer, which holds nothing but
                # empty mount points.
                detach(root)
                (root.parent / _LOWER_NOTE).write_text(_identity(lower))
                overlay.mount(lower, root.parent / "upper", root.parent / "work", root)

    def _exclusively(self, image_id: str) -> AbstractContextManager[None]:
        deadline_s = self._clock.monotonic() + MOUNT_TIMEOUT_S
        job = Job(lambda _text, _fraction: None, self._clock, deadline_s)
        return held(self._folders.mount_lock(image_id), job, f"waiting for the mount of {image_id}")


def _stands_on(lower: Path, root: Path) -> bool:
    """Whether ``root`` is an overlay of what is at ``lower`` now."""
    if not root.is_mount():
        return False
    try:
        return (root.parent / _LOWER_NOTE).read_text() == _identity(lower)
    except FileNotFoundError:
        return False


def _identity(lower: Path) -> str:
    """Of the folder and its filesystem, whose device number is no other's while an overlay holds it."""
    status = lower.stat()
    return f"{status.st_dev} {status.st_ino}"


def _gone(image_id: str, path: str) -> NotFound:
    return NotFound(
        f"The folder {path}, which image {image_id} shows, has gone or was replaced.",
        remedy="Put it back, or deploy again to make an image of what is there now.",
        image_id=image_id,
        path=path,
    )
