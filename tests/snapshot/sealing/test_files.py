"""Files sealed where they lie, and opened: all of it, or a typed error, and never other bytes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES
from glowplug.snapshot.sealing.files import open_files, seal_file
from glowplug.snapshot.sealing.keys import KeyRing, SealingKey
from glowplug.snapshot.sealing.table import (
    SealedFile,
    decode_table,
    encode_table,
    sealed_name,
)
from glowplug.types.errors import InvalidInput, KeyMissing

KEY = SealingKey(b"k" * 32)
OTHER = SealingKey(b"o" * 32)
PAGES = os.urandom(300 << 12) + bytes(600 << 12) + os.urandom(500 << 12)
FILES = {
    "pages.img": PAGES,
    "odd.img": os.urandom((2 << 20) + 5),
    "meta": b"m" * 5000,
    "empty": b"",
    "0001": b"x",
}


def sealed_in(folder: Path, files: dict[str, bytes], key: SealingKey = KEY) -> list[SealedFile]:
    """The files, sealed, in ``folder``."""
    folder.mkdir(parents=True)
    made = []
    for number, (name, content) in enumerate(files.items()):
        (folder / sealed_name(number)).write_bytes(content)
        made.append(seal_file(folder / sealed_name(number), name, key))
    return made


def opened(folder: Path, files: list[SealedFile], target: Path, key: SealingKey = KEY) -> dict[str, bytes]:
    """What opening gives."""
    target.mkdir()
    open_files(folder, files, target, key)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def test_all_files_are_opened_as_they_were(tmp_path: Path) -> None:
    files = sealed_in(tmp_path / "sealed", FILES)
    assert opened(tmp_path / "sealed", files, tmp_path / "plain") == FILES


def test_a_sealed_file_is_as_long_has_the_same_holes_and_holds_nothing_of_the_plain_one(
    tmp_path: Path,
) -> None:
    (file,) = sealed_in(tmp_path / "sealed", {"pages.img": PAGES})
    sealed = (tmp_path / "sealed" / sealed_name(0)).read_bytes()
    assert len(sealed) == len(PAGES)
    assert all(PAGES[at : at + 64] not in sealed for at in range(0, 300 << 12, ALIGN_BYTES))
    offset = 0
    for chunk in file.chunks:
        is_hole = not any(PAGES[offset : offset + chunk.size_bytes])
        assert (chunk.seal is None) is is_hole
        assert is_hole is not any(sealed[offset : offset + chunk.size_bytes])
        assert chunk.size_bytes % ALIGN_BYTES == 0
        offset += chunk.size_bytes
    assert any(chunk.seal is None for chunk in file.chunks)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 3 * CHUNK_BYTES), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_any_files_are_opened_as_they_were(tmp_path: Path, sizes: list[int], seed: int) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    noise = (seed.to_bytes(5, "little") + bytes(3)) * (CHUNK_BYTES // 2)
    contents = {f"f{number}": noise[:size] for number, size in enumerate(sizes)}
    files = sealed_in(folder / "sealed", contents)
    assert opened(folder / "sealed", files, folder / "plain") == contents


def test_equal_memory_is_sealed_equally_wherever_it_lies_and_cut_where_only_the_key_tells(
    tmp_path: Path,
) -> None:
    noise = random.Random(7)  # where chunks end is a matter of chance
    weights = noise.randbytes(2000 << 12)
    (first,) = sealed_in(tmp_path / "one", {"p": noise.randbytes(40 << 12) + weights})
    (moved,) = sealed_in(tmp_path / "two", {"p": noise.randbytes(41 << 12) + weights})
    (other,) = sealed_in(tmp_path / "three", {"p": noise.randbytes(41 << 12) + weights}, OTHER)
    seals = {chunk.seal for chunk in first.chunks}
    shared_bytes = sum(chunk.size_bytes for chunk in moved.chunks if chunk.seal in seals)
    assert shared_bytes > len(weights) * 0.6
    assert not {chunk.seal for chunk in other.chunks} & seals
    lengths = [chunk.size_bytes for chunk in moved.chunks][-3:]
    assert lengths != [chunk.size_bytes for chunk in other.chunks][-3:]


def flip(path: Path, offset: int) -> None:
    body = bytearray(path.read_bytes())
    body[offset] ^= 1
    path.write_bytes(body)


def swap_chunks(path: Path) -> None:
    body = path.read_bytes()
    path.write_bytes(body[CHUNK_BYTES : 2 * CHUNK_BYTES] + body[:CHUNK_BYTES] + body[2 * CHUNK_BYTES :])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit": lambda folder: flip(folder / "0001", CHUNK_BYTES + 17),
    "last byte": lambda folder: flip(folder / "0001", (2 << 20) + 4),
    "bit of memory": lambda folder: flip(folder / "0000", 0),
    "cut off": lambda folder: os.truncate(folder / "0001", 1 << 20),
    "longer": lambda folder: os.truncate(folder / "0001", 3 << 20),
    "chunks swapped": lambda folder: swap_chunks(folder / "0001"),
    "files swapped": lambda folder: (folder / "0002").rename(folder / "0003"),
    "missing": lambda folder: (folder / "0002").unlink(),
    "zeroed": lambda folder: (folder / "0002").write_bytes(bytes(5000)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_a_typed_error(tmp_path: Path, kind: str) -> None:
    files = sealed_in(tmp_path / "sealed", FILES)
    DAMAGE[kind](tmp_path / "sealed")
    with pytest.raises(InvalidInput, match="corrupt"):
        opened(tmp_path / "sealed", files, tmp_path / "plain")


def test_what_fills_a_hole_is_not_read(tmp_path: Path) -> None:
    files = sealed_in(tmp_path / "sealed", FILES)
    flip(tmp_path / "sealed" / sealed_name(0), 650 << 12)
    assert opened(tmp_path / "sealed", files, tmp_path / "plain") == FILES


def test_a_wrong_key_opens_nothing(tmp_path: Path) -> None:
    files = sealed_in(tmp_path / "sealed", FILES)
    with pytest.raises(InvalidInput, match="another key"):
        opened(tmp_path / "sealed", files, tmp_path / "plain", OTHER)


def test_the_table_tells_all_with_its_key_and_names_the_key_without(tmp_path: Path) -> None:
    files = sealed_in(tmp_path / "sealed", FILES)
    raw = encode_table(files, KEY)
    assert decode_table(raw, KeyRing((OTHER, KEY)), "it") == (files, KEY)
    assert b"pages.img" not in raw
    with pytest.raises(KeyMissing, match=KEY.id):
        decode_table(raw, KeyRing((OTHER,)), "it")


@given(data=st.data())
def test_an_altered_table_is_never_another_table(data: st.DataObject) -> None:
    files = [SealedFile("a", 0, ()), SealedFile("b", 0, ())]
    raw = encode_table(files, KEY)
    length = data.draw(st.integers(0, len(raw)))
    altered = bytearray(raw[:length])
    if length == len(raw):
        bit = data.draw(st.integers(0, len(raw) * 8 - 1))
        altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises((InvalidInput, KeyMissing)):
        decode_table(bytes(altered), KeyRing((KEY,)), "it")


@given(st.binary(max_size=200))
def test_garbage_is_no_table(raw: bytes) -> None:
    with pytest.raises((InvalidInput, KeyMissing)):
        decode_table(raw, KeyRing((KEY,)), "it")
