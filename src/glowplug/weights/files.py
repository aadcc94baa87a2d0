"""Which files a model's weights are in: one file, a folder, or a model of Hugging Face's cache here.

A folder is read as the libraries do: with an index (``*.safetensors.index.json``) the files that it names,
else every ``*.safetensors`` in it. Inside a container such a folder may be a volume or a part of the image;
a lazily mounted image fetches from the chunk store's tiers what is read here, and checks it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.types.errors import InvalidInput, NotFound, Unavailable
from glowplug.weights.header import Entry, Header, read_header

MAX_INDEX_BYTES = 64 << 20
_INDEX = "*.safetensors.index.json"
_USUAL_INDEX = "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class WeightFile:
    """One file and what its header says."""

    path: Path
    header: Header


@dataclass(frozen=True)
class Weights:
    """The files of one model. A name occurs once."""

    files: tuple[WeightFile, ...]

    def chosen(self, wanted: Callable[[str], bool] | None = None) -> list[tuple[int, Entry]]:
        """``(number of the file, tensor)`` in the order in which they are read; those ``wanted``, or all."""
        return [
            (number, entry)
            for number, file in enumerate(self.files)
            for entry in file.header.entries
            if wanted is None or wanted(entry.name)
        ]


def find_weights(source: Source | Sequence[Source]) -> Weights:
    """The files that ``source`` (a path, ``ORG/NAME``, several files) means, their headers read and checked.

    Raises NotFound, InvalidInput for malformed files, Unavailable for those that cannot be read.
    """
    files = tuple(map(_opened, _paths(source)))
    seen: dict[str, Path] = {}
    for file in files:
        for entry in file.header.entries:
            if entry.name in seen:
                raise InvalidInput(
                    f"Tensor {entry.name[:80]!r} is in {seen[entry.name].name} and in {file.path.name}.",
                    remedy="Name the file, or the files, that make up the model.",
                    file=str(file.path),
                )
            seen[entry.name] = file.path
    return Weights(files)


def unreadable(path: Path, error: OSError, offset: int | None = None) -> Unavailable:
    """The system cannot read a file that is there: its disk failed, or the store behind a lazy image."""
    where = "" if offset is None else f" at byte {offset}"
    return Unavailable(
        f"{path} cannot be read{where}: {error.strerror or error}.",
        remedy="Look into the node's log: its disk, or the store that the image is fetched from, fails.",
        file=str(path),
    )


def _paths(source: Source | Sequence[Source]) -> list[Path]:
    if not isinstance(source, str | os.PathLike):
        if not source:
            raise NotFound("There is no file of weights to load.", remedy="Name one at least.")
        return [Path(file) for file in source]
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.exists() and isinstance(source, str) and _HUB_NAME.fullmatch(source):
        path = _in_hub_cache(source)
    if not path.is_dir():
        raise NotFound(
            f"There are no weights at {source}.",
            remedy="Give a .safetensors file, a folder of them, or ORG/NAME of a model in HF_HUB_CACHE; in a "
            "container its volume or image must hold it.",
        )
    return _in_folder(path)


def _in_folder(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob(_INDEX), key=lambda index: index.name != _USUAL_INDEX)
    if indexes:
        return _named_by(indexes[0])
    files = sorted(folder.glob("*.safetensors"), key=_natural)
    if not files:
        raise NotFound(
            f"{folder} holds no *.safetensors.", remedy="Convert the model's weights to safetensors first."
        )
    return files


def _named_by(index: Path) -> list[Path]:
    """The files that an index names. They lie beside it: a name that leads elsewhere is refused."""
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise _bad_index(index, f"it is larger than {MAX_INDEX_BYTES} bytes")
        content: Any = json.loads(index.read_bytes())
    except OSError as error:
        raise unreadable(index, error) from error
    except (ValueError, RecursionError) as error:
        raise _bad_index(index, f"it is malformed: {error}") from error
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise _bad_index(index, "it has no weight_map from tensors to files")
    names = sorted(set(named.values()), key=lambda name: _natural(Path(name)))
    for name in names:
        if name != Path(name).name or name in ("", ".", "..") or "\0" in name:
            raise _bad_index(index, f"it names {name[:80]!r}, which is not the name of a file beside it")
        if not (index.parent / name).is_file():
            raise NotFound(f"{index.name} names {name}, which is not there.", remedy="Copy the model again.")
    return [index.parent / name for name in names]


def _opened(path: Path) -> WeightFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return WeightFile(path, read_header(descriptor, str(path)))
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.", remedy="Correct the path.") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _in_hub_cache(name: str) -> Path:
    """Where Hugging Face's library keeps the model's main revision (its own rules and variables)."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    model = cache / f"models--{name.replace('/', '--')}"
    try:
        revision = (model / "refs" / "main").read_text().strip()
    except OSError:
        revision = ""
    return model / "snapshots" / revision


def _natural(path: Path) -> list[tuple[int, str]]:
    """``model-2`` before ``model-10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _bad_index(index: Path, why: str) -> InvalidInput:
    return InvalidInput(
        f"{index} is no usable index of weights: {why}.", remedy="Copy the model again.", file=str(index)
    )
