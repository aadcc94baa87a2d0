"""What ``glowplug image import SOURCE`` names: a folder, a tar, an OCI layout, a registry, a Dockerfile.

A prefix decides; without one, what lies at the path does. Nothing is read here, only looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glowplug.image.origin.reference import Reference, is_tag
from glowplug.types.errors import InvalidInput, NotFound

LAYOUT_MARK = "oci-layout"
PREFIXES = ("docker://", "oci:", "dockerfile:", "dir:", "tar:")
_REMEDY = "Write a folder, a tar file, oci:FOLDER[:TAG], docker://NAME[:TAG] or dockerfile:PATH."


@dataclass(frozen=True)
class FolderSource:
    """A root filesystem as a folder."""

    path: Path


@dataclass(frozen=True)
class TarSource:
    """A root filesystem as a tar archive."""

    path: Path


@dataclass(frozen=True)
class LayoutSource:
    """An image in an OCI layout folder; without a tag, its only one."""

    path: Path
    tag: str | None


@dataclass(frozen=True)
class RegistrySource:
    """An image in a registry."""

    reference: Reference


@dataclass(frozen=True)
class DockerfileSource:
    """A Dockerfile and the folder that its COPY steps copy from."""

    dockerfile: Path
    context: Path


SourceName = FolderSource | TarSource | LayoutSource | RegistrySource | DockerfileSource


def parse_source(text: str) -> SourceName:
    """Find out what ``text`` names. Raises InvalidInput or NotFound, which say what to write instead."""
    if "\0" in text or not text:
        raise InvalidInput("The source of an image needs a name.", remedy=_REMEDY)
    prefix = next((prefix for prefix in PREFIXES if text.startswith(prefix)), "")
    rest = text.removeprefix(prefix)
    match prefix:
        case "docker://":
            return RegistrySource(Reference.parse(rest))
        case "oci:":
            return _layout(rest)
        case "dockerfile:":
            return _dockerfile(_existing(rest))
        case "dir:":
            return FolderSource(_folder(rest))
        case "tar:":
            return TarSource(_file(rest))
        case _:
            return _by_path(text)


def _by_path(text: str) -> SourceName:
    path = _existing(text)
    if not path.is_dir():
        return TarSource(path)
    if (path / LAYOUT_MARK).is_file() and (path / "index.json").is_file():
        raise InvalidInput(
            f"{text} is an OCI layout, not a root filesystem.",
            remedy=f"Write oci:{text} for the image in it, or dir:{text} for the folder as it is.",
        )
    return FolderSource(path)


def _layout(text: str) -> LayoutSource:
    if Path(text).is_dir():
        return LayoutSource(Path(text), None)
    path, colon, tag = text.rpartition(":")
    if colon and path and is_tag(tag):
        return LayoutSource(_folder(path), tag)
    return LayoutSource(_folder(text), None)


def _dockerfile(path: Path) -> DockerfileSource:
    if not path.is_dir():
        return DockerfileSource(path, path.parent)
    for name in ("Containerfile", "Dockerfile"):
        if (path / name).is_file():
            return DockerfileSource(path / name, path)
    raise NotFound(f"There is no Dockerfile in {path}.", remedy="Write dockerfile:PATH with the file itself.")


def _folder(text: str) -> Path:
    path = _existing(text)
    if not path.is_dir():
        raise InvalidInput(f"{text} is not a folder.", remedy=_REMEDY)
    return path


def _file(text: str) -> Path:
    path = _existing(text)
    if path.is_dir():
        raise InvalidInput(f"{text} is a folder, not an archive.", remedy=_REMEDY)
    return path


def _existing(text: str) -> Path:
    path = Path(text)
    try:
        path.stat()
    except OSError as problem:
        hint = f"For an image in a registry write docker://{text}. " if _may_be_reference(text) else ""
        raise NotFound(
            f"{text[:200]} cannot be read: {problem.strerror}.", remedy=f"{hint}{_REMEDY}", path=text[:200]
        ) from problem
    return path


def _may_be_reference(text: str) -> bool:
    try:
        Reference.parse(text)
    except InvalidInput:
        return False
    return True
