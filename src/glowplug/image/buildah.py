"""The builder we drive: buildah with a storage of its own, so that nothing else on the machine is touched.

One :class:`Buildah` is one storage folder. Whoever uses it holds :meth:`session`: one build at a time, and
whatever ends it, no container and no mount of it is left, not even after kill -9 (see :meth:`clean`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from glowplug.image import overlay
from glowplug.image.command import Ended, stream
from glowplug.image.inside import DEFAULT_PATH
from glowplug.image.job import Job
from glowplug.image.lock import held, held_if_free
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, ResourceExhausted, RuntimeFailed, SystemUnfit

CLEAN_TIMEOUT_S = 60.0
INSTALL_REMEDY = "Run `glowplug doctor --fix` (or: apt-get install buildah mmdebstrap)."
_FULL = ("no space left on device", "disk quota exceeded")
# One command, because the mount is seen by this command only.
_COPY = """
set -e
layers=$(buildah mount "$1")
cp -a --reflink=auto "$layers/." "$2"
sync -f "$2"
buildah umount "$1"
"""
_LOG = logging.getLogger(__name__)


class Buildah:
    """buildah, with everything it writes below ``storage``."""

    def __init__(self, storage: Path, clock: Clock, reaching: Mapping[str, str] | None = None) -> None:
        """``reaching``: environment variables with which it reaches registries (proxies, certificates)."""
        self._storage = storage
        self._clock = clock
        self._reaching = dict(reaching or {})
        self._driver = ""

    @property
    def scratch(self) -> Path:
        """For the session's own files; its existence also says that a session runs, or died."""
        return self._storage / "scratch"

    @contextmanager
    def session(self, job: Job) -> Iterator[None]:
        """The storage for us alone. Raises SystemUnfit if the machine cannot build."""
        require_programs("buildah", "mmdebstrap", "apt-config", "setpriv", "unshare")
        if os.geteuid() != 0:
            raise SystemUnfit(
                "Images are built by root only.",
                remedy="Run `glowplug up` as root, or use Image.host_python() or Image.from_directory().",
            )
        with held(self._storage / "lock", job, "waiting for another build on this node"):
            self.clean()
            self.scratch.mkdir(mode=0o700)
            try:
                self._choose_driver(job)
                yield
            finally:
                self.clean()

    def clean_up_after_death(self) -> None:
        """Remove what a session that was killed left. Does nothing while one runs, or if none was killed."""
        if not self.scratch.exists():
            return
        with held_if_free(self._storage / "lock") as is_held:
            if is_held:
                self.clean()

    def clean(self) -> None:
        """Remove containers, mounts and scratch files (not images: they are the cache)."""
        job = self._own_job()
        for driver in self._configured_drivers():
            ended = stream(
                ["buildah", "rm", "--all"], job, stage="cleaning up", environment=self._environment(driver)
            )
            if ended.exit_code != 0:
                _LOG.warning("buildah could not remove its containers: %s", " | ".join(ended.last_lines))
        if self.scratch.exists():
            shutil.rmtree(self.scratch)

    def forget(self, name: str) -> None:
        """Drop an image and the cached layers only it needs; left for another time while a build runs."""
        if not self._storage.is_dir() or shutil.which("buildah", path=DEFAULT_PATH) is None:
            return
        job = self._own_job()
        with held_if_free(self._storage / "lock") as is_held:
            for driver in self._configured_drivers() if is_held else []:
                # Not there, or already gone with another image that had the same steps: as wanted.
                command = ["buildah", "rmi", "--force", name]
                stream(command, job, stage="cleaning up", environment=self._environment(driver))

    def run(
        self, job: Job, stage: str, *arguments: str, on_line: Callable[[str], None] = lambda _line: None
    ) -> Ended:
        """One buildah command, whatever its end."""
        environment = self._environment(self._driver)
        return stream(["buildah", *arguments], job, stage=stage, environment=environment, on_line=on_line)

    def ask(self, job: Job, stage: str, *arguments: str) -> str:
        """One buildah command that must succeed; its last line (buildah prints ids and paths there)."""
        ended = self.run(job, stage, *arguments)
        if ended.exit_code != 0:
            raise failure(f"`buildah {arguments[0]}` failed while {stage}.", ended)
        return ended.last_lines[-1] if ended.last_lines else ""

    def copy_out(self, job: Job, stage: str, name: str, target: Path) -> None:
        """Copy the files of the image ``name`` into the folder ``target``, safely on disk."""
        container = self.ask(job, stage, "from", "--pull-never", name)
        arguments = ["sh", "-c", _COPY, "sh", container, str(target)]
        ended = stream(arguments, job, stage=stage, environment=self._environment(self._driver))
        if ended.exit_code != 0:
            raise failure("The built image could not be copied out.", ended)

    def has_image(self, job: Job, name: str) -> bool:
        """Whether the storage holds the image ``name``."""
        arguments = ["inspect", "--type", "image", "--format", "{{.FromImageID}}", name]
        return self.run(job, "looking for cached layers", *arguments).exit_code == 0

    def _choose_driver(self, job: Job) -> None:
        """Overlays share layers; the vfs driver copies everything per layer but works on any filesystem."""
        probe = self.scratch / "probe"
        probe.mkdir()
        self._driver = "overlay" if overlay.is_possible(probe) else "vfs"
        if self._driver == "vfs":
            job.say("note: no overlays on this filesystem; building with full copies, which takes more room")
        root = self._storage / self._driver
        root.mkdir(mode=0o700, exist_ok=True)
        self._configuration(self._driver).write_text(
            f'[storage]\ndriver = "{self._driver}"\n'
            f'graphroot = "{root / "root"}"\nrunroot = "{root / "run"}"\n'
        )

    def _own_job(self) -> Job:
        """For work that must be done even when nobody waits for it any more."""
        return Job(lambda _text, _fraction: None, self._clock, self._clock.monotonic() + CLEAN_TIMEOUT_S)

    def _configured_drivers(self) -> list[str]:
        return [driver for driver in ("overlay", "vfs") if self._configuration(driver).exists()]

    def _configuration(self, driver: str) -> Path:
        return self._storage / driver / "storage.conf"

    def _environment(self, driver: str) -> Mapping[str, str]:
        # Nothing of the caller's environment: proxies and passwords must not get into an image's history.
        return {
            **self._reaching,
            "PATH": DEFAULT_PATH,
            "HOME": str(self._storage / driver),
            "TMPDIR": str(self.scratch),
            "LC_ALL": "C.UTF-8",
            "CONTAINERS_STORAGE_CONF": str(self._configuration(driver)),
            "BUILDAH_ISOLATION": "chroot",
        }


def require_programs(*names: str) -> None:
    """Raise SystemUnfit naming the programs that are missing."""
    missing = [name for name in names if shutil.which(name, path=DEFAULT_PATH) is None]
    if missing:
        raise SystemUnfit(
            f"Building images needs {', '.join(missing)}, which this node does not have.",
            remedy=INSTALL_REMEDY,
            missing=missing,
        )


def failure(
    message: str,
    ended: Ended,
    *,
    kind: type[GlowplugError] = RuntimeFailed,
    remedy: str = "Its last lines are in the details.",
    **details: object,
) -> GlowplugError:
    """The error for a program that failed: a full disk is told apart, whichever program met it."""
    output = list(ended.last_lines)
    text = "\n".join(output)
    if any(sign in text.lower() for sign in _FULL):
        kind, remedy = ResourceExhausted, "Make room on the disk of the state directory, and try again."
    return kind(message, remedy=remedy, exit_code=ended.exit_code, output=text, **details)
