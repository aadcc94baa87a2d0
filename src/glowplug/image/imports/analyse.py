"""Makes an image's import graph from its files: Python modules and scripts, extension modules, libraries.

Of several installations of one package the one in the largest folder of packages counts, behind the standard
library, as on ``sys.path``. A library is found by its name alone, wherever it lies. Both is right for images
of one application; where it is not, the graph names what nobody reads, or lacks what somebody does.
"""

from __future__ import annotations

import re
import stat
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.image.imports.command import INTERPRETER, STARTUP_FILES
from glowplug.image.imports.elf_file import HEAD_BYTES, is_elf, linked
from glowplug.image.imports.graph import ImportGraph, Node
from glowplug.image.imports.python_source import MAX_SOURCE_BYTES, imported_by
from glowplug.image.index.tree import Inode, Tree

WHOLE_BYTES = 32 << 20
"""Programs and libraries up to this are read as a whole: who reads parts of one reads ahead over the rest."""

MAX_SCRIPT_BYTES = 64 << 10
_ROOT = re.compile(r"(.*/(?:site-packages|dist-packages|lib-dynload)|.*?/lib/python3(?:\.\d+)?)/(.+)")
_SOURCE = re.compile(r"(?:(.*)/)?([^/]+)\.py")
_COMPILED = re.compile(r"(?:(.*)/)?__pycache__/([^/]+)\.cpython-\d+\.pyc")
_EXTENSION = re.compile(r"(?:(.*)/)?(?!lib)([^/.]+)(?:\.cpython-[^/]*|\.abi3)?\.so")
_LIBRARY = re.compile(r"[^/]+\.so(?:\.[^/]*)?")
_STARTUP = re.compile(
    r"/etc/ld\.so\.cache|/usr/bin/env|/usr/lib/locale/C\.utf8/.*|/usr/lib/.*/gconv-modules\.cache|.*/pyvenv\.cfg"
    r"|.*-packages/[^/]+\.pth|.*-packages/[^/]+\.dist-info/entry_points\.txt"
)
_SCRIPT = re.compile(rb"#![^\n]*python")
_CACHED_CHUNKS = 8


@dataclass
class _Module:
    """Files of one module in one folder of packages."""

    name: str
    is_package: bool = False
    source: Inode | None = None
    compiled: Inode | None = None
    extension: Inode | None = None


@dataclass
class _Found:
    """What of a tree can load or be loaded."""

    roots: dict[str, dict[str, _Module]] = field(default_factory=dict)
    libraries: dict[str, Inode] = field(default_factory=dict)  # by path
    links: dict[str, str] = field(default_factory=dict)  # names of libraries and what they stand for
    programs: dict[str, Inode] = field(default_factory=dict)  # files in some bin, by path
    startup: list[Inode] = field(default_factory=list)  # small files that most Python programs read


def analyse(
    tree: Tree, table: ChunkTable, read: Callable[[Chunk], bytes], check: Callable[[], None]
) -> ImportGraph:
    """The import graph of a tree whose chunks ``read`` gives. ``check`` is called often, and may raise."""
    return _Analysis(tree, table, read, check).graph()


class _Analysis:
    def __init__(
        self, tree: Tree, table: ChunkTable, read: Callable[[Chunk], bytes], check: Callable[[], None]
    ) -> None:
        self._read = lru_cache(_CACHED_CHUNKS)(read)
        self._check = check
        self._layout = lru_cache(1)(_layout)  # inodes are compared by identity
        self._chunks = {chunk.id: number for number, chunk in enumerate(table)}
        self._found = _find(tree)
        self._modules = _choose(self._found.roots)
        self._by_name = {path.rpartition("/")[2]: path for path in reversed(self._found.libraries)}
        for link, target in self._found.links.items():
            if target in self._by_name:
                self._by_name.setdefault(link, self._by_name[target])
        self._numbers: dict[str, int] = {}

    def graph(self) -> ImportGraph:
        programs = {
            path: inode for path, inode in self._found.programs.items() if self._is_python(path, inode)
        }
        names = [*self._modules, *programs, *self._found.libraries, STARTUP_FILES]
        self._numbers = {name: number for number, name in enumerate(names)}
        return ImportGraph.of(self._nodes(programs))

    def _nodes(self, programs: dict[str, Inode]) -> Iterator[Node]:
        for module in self._modules.values():
            self._check()
            yield self._of_module(module)
        for path, inode in programs.items():
            if INTERPRETER.fullmatch(path.rpartition("/")[2]):
                yield self._of_library(path, inode)
            else:
                loads = self._loads(self._content(inode), "__main__", is_package=False)
                yield Node(path, loads, self._spans(inode))
        for path, inode in self._found.libraries.items():
            self._check()
            yield self._of_library(path, inode)
        yield Node(STARTUP_FILES, (), [span for inode in self._found.startup for span in self._spans(inode)])

    def _of_module(self, module: _Module) -> Node:
        if module.extension is not None:
            return self._of_library(module.name, module.extension)
        read = module.compiled or module.source
        loads: list[int] = []
        if module.source is not None:
            loads = self._loads(self._content(module.source), module.name, is_package=module.is_package)
        return Node(module.name, loads, self._spans(read) if read is not None else ())

    def _loads(self, source: bytes, name: str, *, is_package: bool) -> list[int]:
        imported = imported_by(source, name, is_package=is_package)
        return list(dict.fromkeys(self._numbers[one] for one in imported if one in self._modules))

    def _of_library(self, name: str, inode: Inode) -> Node:
        told = linked(inode.size_bytes, lambda offset, size: self._bytes(inode, offset, size))
        needed = dict.fromkeys(self._by_name[one] for one in told.needed if one in self._by_name)
        loads = [self._numbers[path] for path in needed if path != name]
        if inode.size_bytes <= WHOLE_BYTES or inode.is_cut_at_pages:
            return Node(name, loads, self._spans(inode))
        return Node(name, loads, self._spans(inode, told.read))

    def _is_python(self, path: str, inode: Inode) -> bool:
        head = self._bytes(inode, 0, max(HEAD_BYTES, 128))
        if INTERPRETER.fullmatch(path.rpartition("/")[2]):
            return is_elf(head)
        return inode.size_bytes <= MAX_SCRIPT_BYTES and _SCRIPT.match(head) is not None

    def _content(self, inode: Inode) -> bytes:
        return self._bytes(inode, 0, min(inode.size_bytes, MAX_SOURCE_BYTES))

    def _bytes(self, inode: Inode, offset: int, size_bytes: int) -> bytes:
        """That much of a file, or what there is. Holes read as zeros."""
        self._check()
        end = min(offset + size_bytes, inode.size_bytes)
        if offset >= end:
            return b""
        content = bytearray(end - offset)
        starts, chunks = self._layout(inode)
        first = max(0, bisect_right(starts, offset) - 1)
        for number in range(first, bisect_left(starts, end)):
            start, chunk = starts[number], chunks[number]
            begin, stop = max(start, offset), min(start + chunk.size_bytes, end)
            if begin < stop:
                content[begin - offset : stop - offset] = self._read(chunk)[begin - start : stop - start]
        return bytes(content)

    def _spans(self, inode: Inode, wanted: Iterable[tuple[int, int]] | None = None) -> list[tuple[int, int]]:
        """Runs of chunks of a file, or those with these bytes, in the order of their first use."""
        ranges = [(0, inode.size_bytes)] if wanted is None else list(wanted)
        starts, chunks = self._layout(inode)
        numbers: dict[int, None] = {}
        for offset, size_bytes in ranges:
            first = max(0, bisect_right(starts, offset) - 1)
            for place in range(first, bisect_left(starts, offset + size_bytes)):
                if offset < starts[place] + chunks[place].size_bytes:
                    numbers[self._chunks[chunks[place].id]] = None
        spans: list[tuple[int, int]] = []
        for number in numbers:
            if spans and sum(spans[-1]) == number:
                spans[-1] = (spans[-1][0], spans[-1][1] + 1)
            else:
                spans.append((number, 1))
        return spans


def _layout(inode: Inode) -> tuple[list[int], list[Chunk]]:
    """Where each chunk of a file begins, in order, and the chunks."""
    starts: list[int] = []
    for extent in inode.extents:
        offset = extent.offset
        for chunk in extent.chunks:
            starts.append(offset)
            offset += chunk.size_bytes
    return starts, [chunk for extent in inode.extents for chunk in extent.chunks]


def _find(tree: Tree) -> _Found:
    found = _Found()
    for raw, inode in tree.walk():
        try:
            path = raw.decode()
        except UnicodeDecodeError:
            continue
        folder, _, name = path.rpartition("/")
        if "\n" in path:
            continue
        if stat.S_ISLNK(inode.mode):
            if _LIBRARY.fullmatch(name):
                found.links[name] = inode.target.decode(errors="replace").rpartition("/")[2]
            continue
        if not inode.is_regular or not inode.extents:
            continue
        if _STARTUP.fullmatch(path):
            found.startup.append(inode)
        if folder.endswith("bin"):
            found.programs[path] = inode
        rooted = _ROOT.fullmatch(path)
        if rooted is not None and _add_module(found.roots.setdefault(rooted[1], {}), rooted[2], inode):
            continue
        if _LIBRARY.fullmatch(name) and name != "ld.so.cache":
            found.libraries[path] = inode
    return found


def _add_module(modules: dict[str, _Module], path: str, inode: Inode) -> bool:
    """Whether it is a file of a module."""
    for kind, pattern in (("source", _SOURCE), ("compiled", _COMPILED), ("extension", _EXTENSION)):
        matched = pattern.fullmatch(path)
        if matched is None:
            continue
        parts = [*(matched[1] or "").split("/"), matched[2]] if matched[1] else [matched[2]]
        is_package = len(parts) > 1 and parts[-1] == "__init__"
        if is_package:
            parts.pop()
        if not all(part.isidentifier() for part in parts):
            return kind != "extension"
        module = modules.setdefault(".".join(parts), _Module(".".join(parts)))
        setattr(module, kind, inode)
        module.is_package = module.is_package or is_package
        return True
    return False


def _choose(roots: dict[str, dict[str, _Module]]) -> dict[str, _Module]:
    """One of each name: of the standard library, else of the largest folder that has its package."""
    ranked = sorted(roots, key=lambda root: (root.endswith("-packages"), -len(roots[root]), root))
    owners: dict[str, str] = {}
    for root in ranked:
        for package in Counter(name.partition(".")[0] for name in roots[root]):
            owners.setdefault(package, root)
    return {
        name: module
        for root in ranked
        for name, module in roots[root].items()
        if owners[name.partition(".")[0]] == root and (module.source or module.compiled or module.extension)
    }
