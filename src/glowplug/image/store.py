"""The images of a node: made once per id, published whole or not at all, removed when nobody uses them.

An id says what is in the image (see ``docs/images.md``), so asking for an image that is there costs only
finding out its id. Safe from any number of threads and processes; a crash at any moment leaves the image
finished or absent, and its remains are cleared when the next store is opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from glowplug.image import overlay
from glowplug.image.build import look_at_build
from glowplug.image.buildah import Buildah
from glowplug.image.directory import check_folder_or_nothing, look_at_directory
from glowplug.image.host_python import look_at_host_python
from glowplug.image.index.catalog import Catalog
from glowplug.image.indexed import look_at_dockerfile, look_at_named, look_at_registry
from glowplug.image.inside import check_path
from glowplug.image.job import Job, Progress
from glowplug.image.layout import ImageFolders
from glowplug.image.local_dirs import check_local_dirs, content_digest
from glowplug.image.lock import held, held_if_free
from glowplug.image.mount import Bind, RootFilesystem
from glowplug.image.record import (
    BindRecord,
    DamagedRecord,
    ImageRecord,
    read_record,
    sync_folder,
    write_record,
)
from glowplug.image.skeleton import add_mount_point
from glowplug.image.source import Prepared, Source
from glowplug.image.task_runner import TaskRunner
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import Conflict, ResourceExhausted
from glowplug.types.paths import StateDir
from glowplug.types.replica import ImageView
from glowplug.types.spec import (
    BuildImage,
    DirectoryImage,
    DockerfileImage,
    HostPythonImage,
    ImageSpec,
    NamedImage,
    RegistryImage,
)

BUILD_TIMEOUT_S = 3600.0
IDENTITY_VERSION = 1
_LOG = logging.getLogger(__name__)


class ImageStore:
    """``in_use`` tells the ids that replicas use right now; ``environ`` how this machine reaches packages.

    Opening a store clears what a crash left. ``build_storage`` (default: below the state) may be shared by
    several state directories.
    """

    def __init__(
        self,
        state: StateDir,
        *,
        in_use: Callable[[], Collection[str]] = frozenset,
        clock: Clock | None = None,
        environ: Mapping[str, str] | None = None,
        build_storage: Path | None = None,
        build_timeout_s: float = BUILD_TIMEOUT_S,
    ) -> None:
        self._state = state
        self._folders = ImageFolders(state)
        self._in_use = in_use
        self._clock = clock or SystemClock()
        self._environ = dict(os.environ if environ is None else environ)
        self._buildah = Buildah(build_storage or self._folders.build_storage, self._clock)
        self._tasks = TaskRunner(state, self._environ)
        self._catalog = Catalog(state)
        self._build_timeout_s = build_timeout_s
        self._clear_remains()

    def identify(self, spec: ImageSpec) -> str:
        """The id of what ``spec`` means on this machine now. Raises InvalidInput for what cannot be used."""
        job = Job(lambda _text, _fraction: None, self._clock, self._deadline_s())
        return _identify(spec, self._look_at(spec, job), check_local_dirs(spec.local_dirs))

    def ensure(
        self, spec: ImageSpec, progress: Progress, cancelled: threading.Event | None = None
    ) -> ImageView:
        """Make the image unless it is there; whoever else asks for it meanwhile waits for the same work.

        Blocks (call it from a thread). Ends within a second of ``cancelled`` being set.
        """
        job = Job(progress, self._clock, self._deadline_s(), cancelled or threading.Event())
        source, local = self._look_at(spec, job), check_local_dirs(spec.local_dirs)
        image_id = _identify(spec, source, local)
        waiting = f"waiting for somebody else who is making {image_id}"
        with held(self._folders.lock(image_id), job, waiting):
            record = self._finished(image_id)
            if record is None:
                record = self._make(image_id, spec, source, local, job)
        job.say(f"image {image_id} is ready", 1.0)
        return self._view(record)

    def get(self, image_id: str) -> ImageView:
        """Raises NotFound, also for what is not an id at all."""
        return self._view(read_record(self._folders.image(image_id), image_id))

    def remove(self, image_id: str) -> None:
        """Raises Conflict while replicas use it or it is being made, NotFound if it is not there."""
        folder = self._folders.image(image_id)
        with held_if_free(self._folders.lock(image_id)) as is_held:
            if not is_held or image_id in self._in_use():
                raise Conflict(
                    f"Image {image_id} is in use.",
                    remedy="Stop the replicas that use it first (`glowplug ps` lists them).",
                    image_id=image_id,
                )
            record = self._record_to_remove(image_id)
            self._discard(folder)
        if record is not None and isinstance(record.spec, BuildImage):
            self._buildah.forget(look_at_build(record.spec, self._buildah, self._environ, self._tasks).tag)

    def list(self) -> Sequence[ImageView]:
        """All finished images, sorted by id. A damaged one is left out, and logged."""
        views = []
        for image_id in self._folders.finished():
            record = self._finished(image_id)
            if record is not None:
                views.append(self._view(record))
        return views

    def digests(self) -> set[str]:
        """The indexes that images here are made of."""
        return {view.digest for view in self.list() if view.digest is not None}

    def _look_at(self, spec: ImageSpec, job: Job) -> Source:
        if spec.workdir is not None:
            check_path(spec.workdir, "working directory")
        match spec:
            case DirectoryImage():
                return look_at_directory(spec, self._state)
            case HostPythonImage():
                return look_at_host_python(spec, self._state)
            case BuildImage():
                return look_at_build(spec, self._buildah, self._environ, self._tasks)
            case RegistryImage():
                return look_at_registry(spec, self._tasks, job)
            case DockerfileImage():
                return look_at_dockerfile(spec, self._tasks)
            case NamedImage():
                return look_at_named(spec, self._catalog, self._tasks, job)

    def _make(
        self, image_id: str, spec: ImageSpec, source: Source, local: Sequence[BindRecord], job: Job
    ) -> ImageRecord:
        final = self._folders.image(image_id)
        staging = self._folders.staging / image_id
        with ExitStack() as undo:
            for remains in (staging, final):
                self._discard(remains)
            undo.callback(self._discard, staging)
            try:
                staging.mkdir(parents=True)
                prepared = source.prepare(staging, job)
                _place(local, staging / "rootfs", prepared)
                record = ImageRecord(
                    id=image_id,
                    spec=spec,
                    created_at=self._clock.wall(),
                    owned_bytes=_owned_bytes(staging),
                    lower=prepared.lower,
                    index_digest=prepared.digest,
                    content_bytes=prepared.content_bytes,
                    binds=[*prepared.binds, *local],
                    env=prepared.env,
                    workdir=prepared.workdir,
                    python=prepared.python,
                )
                write_record(staging, record)
                staging.rename(final)
                sync_folder(final.parent)
            except OSError as problem:
                if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _disk_full(image_id, self._folders.state.images) from problem
                raise
            undo.pop_all()
        return record

    def _finished(self, image_id: str) -> ImageRecord | None:
        folder = self._folders.image(image_id)
        if not folder.exists():
            return None
        try:
            return read_record(folder, image_id)
        except DamagedRecord as damage:
            _LOG.warning("%s", damage)
            return None

    def _record_to_remove(self, image_id: str) -> ImageRecord | None:
        try:
            return read_record(self._folders.image(image_id), image_id)
        except DamagedRecord:
            return None

    def _discard(self, folder: Path) -> None:
        """Remove an image's folder; out of sight first, so that half of one is never seen."""
        if not folder.exists():
            return
        overlay.release(folder / "rootfs")
        doomed = self._folders.staging / f"{folder.name}.{uuid.uuid4().hex}"
        doomed.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)

    def _clear_remains(self) -> None:
        self._buildah.clean_up_after_death()
        if not self._folders.staging.is_dir():
            return
        for folder in self._folders.staging.iterdir():
            with held_if_free(self._folders.lock(folder.name.partition(".")[0])) as is_held:
                if is_held and folder.exists():
                    shutil.rmtree(folder)

    def _deadline_s(self) -> float:
        return self._clock.monotonic() + self._build_timeout_s

    def _view(self, record: ImageRecord) -> ImageView:
        return record.view(is_in_use=record.id in self._in_use())


def _identify(spec: ImageSpec, source: Source, local: Sequence[BindRecord]) -> str:
    identity = {
        "version": IDENTITY_VERSION,
        "kind": spec.kind,
        "source": source.identity(),
        "env": spec.env,
        "workdir": spec.workdir,
        "local_dirs": [[bind.source, bind.destination, content_digest(Path(bind.source))] for bind in local],
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"im-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def _place(local: Sequence[BindRecord], root: Path, prepared: Prepared) -> None:
    """Make the mount points of local folders, unless the root is under an overlay, which takes them."""
    if prepared.digest is not None:
        return
    if prepared.lower is not None:
        for bind in local:
            check_folder_or_nothing(Path(bind.destination), Path(prepared.lower.path))
        return
    earlier = [Bind(Path(bind.source), bind.destination) for bind in prepared.binds]
    for bind in local:
        RootFilesystem(root, root, tuple(earlier)).check_mount_point(bind.destination)
        is_covered = any(Path(bind.destination).is_relative_to(other.destination) for other in earlier)
        if not is_covered:
            add_mount_point(root, Path(bind.destination), is_folder=True)
        earlier.append(Bind(Path(bind.source), bind.destination))


def _owned_bytes(folder: Path) -> int:
    """Room that files take on disk, hard links counted once."""
    seen: set[tuple[int, int]] = set()
    total_bytes = 0
    for parent, _folders, files in os.walk(folder):
        for name in files:
            status = os.lstat(os.path.join(parent, name))  # noqa: PTH118  (a hundred thousand times)
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total_bytes += status.st_blocks * 512
    return total_bytes


def _disk_full(image_id: str, folder: Path) -> ResourceExhausted:
    return ResourceExhausted(
        f"The disk that holds {folder} is full: image {image_id} was not made, and nothing of it is left.",
        remedy="Make room (`glowplug image rm`, `glowplug snapshot rm`), and try again.",
        image_id=image_id,
    )
