"""What a replica's root filesystem is, in a few chained words.

An image is an immutable value: every method returns a new one, so a base can be shared and extended. It
touches no file until the app is described (:meth:`Image.to_spec`), because app files are imported inside
containers too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from glowplug.sdk import validation
from glowplug.types.errors import InvalidInput

StepKind = Literal["apt", "pip", "run"]
ImageKind = Literal["build", "directory", "host_python", "registry", "dockerfile", "named"]
_PYTHON = re.compile(r"3\.\d{1,3}", re.ASCII)


@dataclass(frozen=True)
class Image:
    """A root filesystem: built, from a registry, imported before, a folder, or the node's own Python.

    Make one with the class methods; the fields are details.
    """

    kind: ImageKind
    source: str | os.PathLike[str] | None = None
    context: str | os.PathLike[str] | None = None
    build_args: tuple[tuple[str, str], ...] = ()
    insecure: bool = False
    python: str | None = None
    steps: tuple[tuple[StepKind, tuple[str, ...]], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    working_directory: str | None = None
    local_dirs: tuple[tuple[str | os.PathLike[str], str], ...] = ()

    @classmethod
    def debian_slim(cls, python: str = "3.11") -> Image:
        """A small Debian with this Python, built on the node."""
        if not isinstance(python, str) or not _PYTHON.fullmatch(python):
            raise InvalidInput(f"{python!r} is not a Python version.", remedy='Write python="3.11".')
        return cls("build", python=python)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Image:
        """A root filesystem that already lies in a folder on the node."""
        return cls("directory", source=path)

    @classmethod
    def host_python(cls, venv: str | os.PathLike[str] | None = None) -> Image:
        """The node's own /usr plus a virtual environment (None: the system Python); nothing is copied."""
        return cls("host_python", source=venv)

    @classmethod
    def from_registry(cls, ref: str, *, insecure: bool = False) -> Image:
        """An OCI image, as Docker names it: ``from_registry("nvcr.io/nvidia/pytorch:26.01-py3")``.

        Its content is fetched when it is read. ``insecure``: the registry speaks HTTP without TLS.
        """
        return cls("registry", source=validation.text(ref, "registry reference"), insecure=insecure)

    @classmethod
    def from_dockerfile(
        cls,
        path: str | os.PathLike[str] = "Dockerfile",
        *,
        context: str | os.PathLike[str] | None = None,
        build_args: Mapping[str, str] | None = None,
    ) -> Image:
        """Built on the node from a Dockerfile; ``context`` (default: its folder) is what it copies from."""
        arguments = validation.environment(dict(build_args or {}), "build_args")
        return cls("dockerfile", source=path, context=context, build_args=tuple(arguments.items()))

    @classmethod
    def from_name(cls, name: str) -> Image:
        """An image that `glowplug image import` made or `glowplug image push` brought to the region."""
        return cls("named", source=validation.text(name, "image name"))

    def apt_install(self, *packages: str) -> Image:
        """Install Debian packages (``debian_slim`` images only)."""
        return self._with_step("apt", packages)

    def pip_install(self, *packages: str) -> Image:
        """Install Python packages (``debian_slim`` images only)."""
        return self._with_step("pip", packages)

    def run_commands(self, *commands: str) -> Image:
        """Run shell lines while building (``debian_slim`` images only)."""
        return self._with_step("run", commands)

    def env(self, variables: Mapping[str, str]) -> Image:
        """Set environment variables. Not for secrets: these belong in ``gp.Secret``."""
        if not isinstance(variables, Mapping):
            raise InvalidInput("Image.env needs a dictionary.", remedy='Write .env({"NAME": "value"}).')
        return replace(self, variables=tuple({**dict(self.variables), **variables}.items()))

    def workdir(self, path: str) -> Image:
        """The folder in which the command starts."""
        return replace(self, working_directory=_absolute(path))

    def add_local_dir(self, local: str | os.PathLike[str], remote: str) -> Image:
        """Show a folder of this machine, read-only, at ``remote``; relative paths start at the app file."""
        return replace(
            self, local_dirs=(*self.local_dirs, (local, validation.remote_path(remote, "remote path")))
        )

    def to_spec(self, folder: Path) -> dict[str, Any]:
        """The ``ImageSpec``; ``folder`` is where relative paths start. Raises InvalidInput."""
        spec: dict[str, Any] = {"kind": self.kind, **self._source_to_spec(folder)}
        if self.variables:
            spec["env"] = validation.environment(dict(self.variables), "Image.env")
        if self.working_directory is not None:
            spec["workdir"] = self.working_directory
        if self.local_dirs:
            spec["local_dirs"] = [
                {
                    "local_path": str(validation.local_path(local, folder, "local folder")),
                    "remote_path": remote,
                }
                for local, remote in self.local_dirs
            ]
        return spec

    def _source_to_spec(self, folder: Path) -> dict[str, Any]:
        match self.kind:
            case "build":
                steps = [{"op": op, "args": list(args)} for op, args in self.steps]
                return {"python": self.python, "steps": steps}
            case "directory":
                return {"path": str(validation.local_path(self.source, folder, "image folder"))}
            case "registry":
                return {"ref": self.source, "insecure": self.insecure}
            case "named":
                return {"name": self.source}
            case "dockerfile":
                path = validation.local_path(self.source, folder, "Dockerfile", must_be="file")
                context = path.parent
                if self.context is not None:
                    context = validation.local_path(self.context, folder, "build context")
                return {
                    "path": str(path),
                    "context_dir": str(context),
                    "build_args": dict(self.build_args),
                }
            case "host_python":
                if self.source is None:
                    return {}
                return {"venv": str(validation.local_path(self.source, folder, "virtual environment"))}

    def _with_step(self, op: StepKind, args: tuple[str, ...]) -> Image:
        name = {"apt": "apt_install", "pip": "pip_install", "run": "run_commands"}[op]
        if self.kind != "build":
            raise InvalidInput(
                f"Image.{name} works on images that are built, not on {self.kind} images.",
                remedy="Start from gp.Image.debian_slim(), or install into the folder yourself beforehand.",
            )
        checked = tuple(validation.text(arg, f"an argument of {name}") for arg in args)
        if not checked:
            raise InvalidInput(f"Image.{name} was given nothing.", remedy=f'Write .{name}("...").')
        return replace(self, steps=(*self.steps, (op, checked)))


def _absolute(path: object) -> str:
    # Not remote_path: a command may well start in / or below a mount.
    checked = validation.text(path, "workdir")
    if not checked.startswith("/") or len(checked) > validation.MAX_PATH_CHARACTERS:
        raise InvalidInput(f"workdir {checked!r} is not an absolute path.", remedy='Write .workdir("/app").')
    return checked
