"""Where a command enters an import graph."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from glowplug.image.imports.graph import ImportGraph
from glowplug.image.imports.python_source import imported_by

STARTUP_FILES = "/"  # the node of small files that are no modules
INTERPRETER = re.compile(r"python3?(?:\.\d+)?")
STARTUP = (
    "encodings",
    "encodings.aliases",
    "encodings.utf_8",
    "codecs",
    "io",
    "abc",
    "site",
    "os",
    "sitecustomize",
)
"""What CPython imports before it looks at the command (``Python/pylifecycle.c``, ``Lib/site.py``)."""


def predicted_chunks(graph: ImportGraph, command: Sequence[str]) -> array[int]:
    """What the command will read, in about that order, as far as the image's files tell. Perhaps nothing.

    Known are Python programs: ``python -c CODE``, ``-m MODULE``, a script of the image by its path, and a
    script of some ``bin`` by its name. What they load by other means than imports is not.
    """
    starts = list(dict.fromkeys(_entries(graph, command)))
    return graph.chunks(graph.loaded(starts))


def _entries(graph: ImportGraph, command: Sequence[str]) -> Iterator[int]:
    if not command:
        return
    program, arguments = PurePosixPath(command[0]).name, list(command[1:])
    if INTERPRETER.fullmatch(program):
        entered = list(_after_interpreter(graph, arguments))
    else:
        entered = list(_files(graph, command[0]))
        if not entered:
            return
    yield from _modules(graph, (STARTUP_FILES,))
    yield from (n for n, name in enumerate(graph.names) if _is_interpreter(name))
    yield from _modules(graph, STARTUP)
    yield from entered


def _is_interpreter(name: str) -> bool:
    return name.startswith("/") and INTERPRETER.fullmatch(name.rpartition("/")[2]) is not None


def _after_interpreter(graph: ImportGraph, arguments: list[str]) -> Iterator[int]:
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option == "-c" and arguments:
            yield from _modules(
                graph, imported_by(arguments[0].replace(";", "\n").encode(), "__main__", is_package=False)
            )
            return
        if option == "-m" and arguments:
            module = arguments[0]
            yield from _modules(graph, ("runpy", module, f"{module}.__main__"))
            return
        if option in ("-W", "-X") and arguments:
            arguments.pop(0)
    if arguments:
        yield from _files(graph, arguments[0])


def _modules(graph: ImportGraph, names: Iterator[str] | Sequence[str]) -> Iterator[int]:
    return (number for name in names if (number := graph.number(name)) is not None)


def _files(graph: ImportGraph, path: str) -> Iterator[int]:
    """A file by its path, or a program of that name where programs are."""
    if "/" in path:
        number = graph.number(path)
        return iter(() if number is None else (number,))
    return (n for n, name in enumerate(graph.names) if name.endswith(f"bin/{path}"))
