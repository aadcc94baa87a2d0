"""``Image.from_directory``: a root filesystem that already lies on the node. Used in place, never changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from glowplug.image.inside import DEFAULT_ENVIRONMENT, environment_of
from glowplug.image.job import Job
from glowplug.image.local_dirs import real_folder
from glowplug.image.record import Lower
from glowplug.image.resolve import look_up
from glowplug.image.source import Prepared, make_overlay_folders
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir
from glowplug.types.spec import DirectoryImage

# What changes when somebody installs something into a root filesystem: cheap to ask, unlike all its files.
TELLING_PATHS = (
    ".", "app", "bin", "etc", "etc/ld.so.cache", "lib/apk/db/installed", "opt", "usr", "usr/bin", "usr/lib",
    "usr/local/bin", "usr/local/lib", "var/lib/dpkg/status",
)  # fmt: skip


@dataclass(frozen=True)
class DirectorySource:
    """A folder that was found usable. Made by :func:`look_at_directory`."""

    spec: DirectoryImage
    root: Path
    env: dict[str, str]
    python: str | None

    def identity(self) -> dict[str, object]:
        """The canonical path, and inode, size and times of a few paths in it."""
        return {"path": str(self.root), "state": [self._state(path) for path in TELLING_PATHS]}

    def prepare(self, folder: Path, job: Job) -> Prepared:
        """Make the folders for an overlay, so that mount points never appear in the user's folder."""
        job.say(f"using {self.root} in place")
        make_overlay_folders(folder)
        return Prepared(
            env=self.env,
            python=self.python,
            lower=Lower(path=str(self.root), inode=self.root.stat().st_ino),
            workdir=self.spec.workdir,
        )

    def _state(self, path: str) -> list[int] | None:
        try:
            status = (self.root / path).lstat()
        except OSError:  # not there: that is a state too
            return None
        return [status.st_ino, status.st_mtime_ns, status.st_size]


def look_at_directory(spec: DirectoryImage, state: StateDir) -> DirectorySource:
    """Check that ``spec.path`` can be a root filesystem; raises InvalidInput telling why not."""
    root = real_folder(spec.path, "image folder")
    own = Path(os.path.realpath(state.root))
    if own.is_relative_to(root) or root.is_relative_to(own):
        raise InvalidInput(
            f"The image folder {root} would show Glowplug's own state ({own}) to containers.",
            remedy="Use a folder elsewhere; for the node's own programs, use Image.host_python().",
            path=str(root),
        )
    if not any(_is_folder(look_up(Path(path), root)) for path in ("/bin", "/usr/bin")):
        raise InvalidInput(
            f"The image folder {root} has neither /bin nor /usr/bin: it is not a root filesystem.",
            remedy="Unpack a root filesystem into it (for example with mmdebstrap or docker export).",
            path=str(root),
        )
    check_folder_or_nothing(Path(spec.workdir), root)
    env = environment_of(DEFAULT_ENVIRONMENT, spec.env)
    return DirectorySource(spec, root, env, _find_python(root, env["PATH"]))


def check_folder_or_nothing(path: Path, root: Path) -> None:
    """Raise InvalidInput if ``path`` of a user's folder is a file: neither entered nor mounted on."""
    found = look_up(path, root)
    if found is not None and not found.is_dir():
        raise InvalidInput(
            f"{path} of the image folder {root} is not a folder.",
            remedy="Choose another path.",
            path=str(path),
        )


def _find_python(root: Path, search_path: str) -> str | None:
    folders = [folder for folder in search_path.split(":") if folder.startswith("/")]
    for name in ("python3", "python"):
        for folder in folders:
            found = look_up(Path(folder, name), root)
            if found is not None and os.access(found, os.X_OK):
                return f"{folder.rstrip('/')}/{name}"
    return None


def _is_folder(path: Path | None) -> bool:
    return path is not None and path.is_dir()
