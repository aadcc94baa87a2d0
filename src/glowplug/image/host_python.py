"""``Image.host_python``: the node's own ``/usr`` and a virtual environment, bound read-only.

Every path keeps its place, because virtual environments and compiled caches hold absolute paths: each
folder is bound where it really lies, and the host's links that lead to it are repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glowplug.image.inside import DEFAULT_ENVIRONMENT, check_path, environment_of, put_first
from glowplug.image.interpreter import Interpreter, ask_interpreter
from glowplug.image.job import Job
from glowplug.image.record import BindRecord
from glowplug.image.resolve import HOST_ROOT, Trace, trace
from glowplug.image.skeleton import BOUND, add_links, add_mount_point, make_skeleton
from glowplug.image.source import Prepared
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir
from glowplug.types.spec import HostPythonImage

SYSTEM_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Hold secrets, or everything: never shown whole, whatever an interpreter says its prefix is.
PRIVATE_FOLDERS = ("/root", "/home", "/etc", "/var", "/run", "/proc", "/sys", "/dev")


# The runtime mounts a tmpfs there, so a link that we repeat would be hidden (a bind would not).
TEMPORARY_FOLDERS = ("/tmp", "/dev/shm")


@dataclass(frozen=True)
class HostPythonSource:
    """An interpreter that works, and what must be visible for it. Made by :func:`look_at_host_python`."""

    spec: HostPythonImage
    interpreter: Interpreter
    traces: tuple[Trace, ...]
    bound: tuple[Path, ...]
    env: dict[str, str]

    def identity(self) -> dict[str, object]:
        """The virtual environment's path and everything that would make it another one."""
        libraries = Path("/etc/ld.so.cache")
        return {
            "venv": self.spec.venv,
            "libraries": hashlib.sha256(libraries.read_bytes()).hexdigest() if libraries.exists() else "",
            **self.interpreter.identity(),
        }

    def prepare(self, folder: Path, job: Job) -> Prepared:
        """Make the skeleton; the rest is binds."""
        self._say_what_is_missing(job)
        root = folder / "rootfs"
        root.mkdir()
        make_skeleton(root)
        add_links(root, self.traces, self.bound)
        for path in self.bound:
            add_mount_point(root, path, is_folder=path.is_dir())
        workdir = Path(self.spec.workdir)
        if not any(workdir.is_relative_to(path) for path in self.bound):
            add_mount_point(root, workdir, is_folder=True)
        binds = [BindRecord(source=str(path), destination=str(path)) for path in self.bound]
        return Prepared(
            env=self.env, python=str(self.interpreter.executable), binds=binds, workdir=self.spec.workdir
        )

    def _say_what_is_missing(self, job: Job) -> None:
        """Editable installs and .pth files may point anywhere: not an error, but not to be kept quiet."""
        local = [Path(local_dir.remote_path) for local_dir in self.spec.local_dirs]
        for entry in self.interpreter.search_path:
            if entry.exists() and not any(entry.is_relative_to(path) for path in (*self.bound, *local)):
                job.say(
                    f"note: {entry} is on the Python path of {self.interpreter.prefix} but not part of the "
                    "image; add_local_dir() makes it one"
                )


def look_at_host_python(spec: HostPythonImage, state: StateDir) -> HostPythonSource:
    """Check ``spec.venv`` and find what it needs; raises InvalidInput telling what is wrong with it."""
    venv = Path(check_path(spec.venv, "virtual environment")) if spec.venv is not None else None
    interpreter = ask_interpreter(venv)
    needed = [interpreter.executable, interpreter.prefix, *interpreter.base_prefixes]
    needed += [interpreter.home] if interpreter.home is not None else []
    needed += [venv] if venv is not None else []
    traces = [trace(path) for path in needed]
    folders = [trace(path).end for path in (interpreter.prefix, *interpreter.base_prefixes)]
    for folder in folders:
        _refuse_private(folder, state)
    for name in SYSTEM_FOLDERS:
        system = HOST_ROOT / name
        if system.is_symlink():
            traces.append(trace(system))
        elif system.is_dir():
            folders.append(system)
    for name in BOUND:
        if (in_etc := Path("/etc") / name).exists():
            traces.append(trace(in_etc))
            folders.append(traces[-1].end)
    bound = _outermost(folders)
    _refuse_hidden_links(traces, bound)
    return HostPythonSource(spec, interpreter, tuple(traces), bound, _environment(spec))


def _environment(spec: HostPythonImage) -> dict[str, str]:
    if spec.venv is None:
        return environment_of(DEFAULT_ENVIRONMENT, spec.env)
    env = environment_of({**DEFAULT_ENVIRONMENT, "VIRTUAL_ENV": spec.venv}, spec.env)
    return {**env, "PATH": put_first(env["PATH"], f"{spec.venv}/bin")}


def _outermost(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Without those that lie in another one: all are bound in place, so the outer one shows the inner."""
    outermost: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(outer) for outer in outermost):
            outermost.append(folder)
    return tuple(outermost)


def _refuse_hidden_links(traces: Iterable[Trace], bound: Iterable[Path]) -> None:
    shown = list(bound)
    for where in (where for host_trace in traces for where, _target in host_trace.links):
        is_hidden = any(where.is_relative_to(folder) for folder in TEMPORARY_FOLDERS)
        if is_hidden and not any(where.is_relative_to(folder) for folder in shown):
            raise InvalidInput(
                f"The way to the interpreter goes through the link {where}, which containers cannot see: "
                "they have temporary folders of their own.",
                remedy="Name the real path of the virtual environment, or move it elsewhere.",
                path=str(where),
            )


def _refuse_private(folder: Path, state: StateDir) -> None:
    own = trace(state.root).end
    private = [*(Path(path) for path in PRIVATE_FOLDERS), own]
    if any(path.is_relative_to(folder) for path in private) or (folder / ".ssh").exists():
        raise InvalidInput(
            f"The interpreter's prefix {folder} holds more than an interpreter; it would be shown to "
            "containers whole.",
            remedy="Make a virtual environment from an interpreter in /usr, or one with a folder of its own.",
            path=str(folder),
        )
