"""What the dynamic linker reads, told of real libraries, and of files that only look like one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.imports.elf_file import is_elf, linked

SOURCE = """
#include <zlib.h>
static int table[1000];
static __attribute__((noinline, aligned(1 << 20))) int far_away(int x) {
    return table[x % 1000] = (int)zlibVersion()[0];
}
__attribute__((aligned(1 << 20))) int not_called(int x) { return x * 3; }
__attribute__((constructor, aligned(1 << 20))) static void begin(void) { far_away(3); }
"""


def reader(content: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: content[offset : offset + size] if offset >= 0 else b""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elf")
    (folder / "lib.c").write_text(SOURCE)
    target = folder / "libmade.so"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(target),
        str(folder / "lib.c"),
        "-Wl,--no-as-needed",
        "-lz",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return target


def symbol_offset(library: Path, name: str) -> int:
    listed = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
    return next(int(line.split()[0], 16) for line in listed.splitlines() if line.endswith(f" {name}"))


def test_needed_libraries_are_those_that_readelf_tells(library: Path) -> None:
    for file in (library, Path(sys.executable).resolve()):
        listed = subprocess.run(
            ["readelf", "-d", str(file)], capture_output=True, text=True, check=True
        ).stdout
        needed = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
        content = file.read_bytes()
        assert linked(len(content), reader(content)).needed == needed


def test_constructors_and_what_they_call_are_read_and_other_code_is_not(library: Path) -> None:
    content = library.read_bytes()
    told = linked(len(content), reader(content)).read
    assert all(start >= 0 and size > 0 and start + size <= len(content) for start, size in told)

    def is_told(symbol: str) -> bool:
        at = symbol_offset(library, symbol)
        return any(start <= at < start + size for start, size in told)

    assert is_told("begin")
    assert is_told("far_away")
    assert not is_told("not_called")


@given(st.data())
def test_a_damaged_file_is_told_something_within_its_bounds(library: Path, data: st.DataObject) -> None:
    content = bytearray(library.read_bytes()[: data.draw(st.integers(0, 20_000))])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 19_999), st.integers(0, 255)), max_size=20)):
        if at < len(content):
            content[at] = value
    told = linked(len(content), reader(bytes(content)))
    assert all(start >= 0 and size >= 0 and start + size <= len(content) for start, size in told.read)


@given(st.binary(max_size=200))
def test_what_is_no_elf_file_is_its_head(content: bytes) -> None:
    told = linked(len(content), reader(content))
    assert is_elf(content) or (told.needed == [] and told.read == [(0, len(content))] * bool(content))
