"""Where chunks lie, and which ranges to read for some of them."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.chunks.pack import MAX_PACK_BYTES, Encoding, PackWriter, pack_key
from glowplug.chunks.placement import Place, Placement, placement_limit_bytes
from glowplug.types.errors import InvalidInput

PACKS = [bytes([number]) * 32 for number in range(4)]
PLACES = st.lists(
    st.builds(
        Place,
        st.sampled_from(PACKS),
        st.integers(0, 20 << 20),
        st.integers(1, CHUNK_BYTES),
        st.sampled_from(list(Encoding)),
    ),
    max_size=40,
)


def placed(places: list[Place]) -> Placement:
    return Placement(Placement.pack(places))


def neighbours(sizes: list[int], gap_bytes: int = 0) -> list[Place]:
    """In one pack, one after the other."""
    places, offset = [], 0
    for size in sizes:
        places.append(Place(PACKS[0], offset, size, Encoding.RAW))
        offset += size + gap_bytes
    return places


@given(PLACES)
def test_places_come_back(places: list[Place]) -> None:
    placement = placed(places)
    assert [placement.place(index) for index in range(len(placement))] == places
    assert set(placement.pack_ids()) == {place.pack_id for place in places}
    assert len(placement.data) <= placement_limit_bytes(len(places))


def test_a_placement_is_mapped_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "placement.bin"
    path.write_bytes(Placement.pack(neighbours([5, 6])))
    assert Placement.open(path).place(1) == Place(PACKS[0], 5, 6, Encoding.RAW)


def test_an_empty_file_is_no_placement(tmp_path: Path) -> None:
    (tmp_path / "placement.bin").touch()
    with pytest.raises(InvalidInput):
        Placement.open(tmp_path / "placement.bin")


def test_a_chunk_that_is_not_there_has_no_place() -> None:
    placement = placed(neighbours([5]))
    for index in (1, -1):
        with pytest.raises(IndexError):
            placement.place(index)


@given(PLACES, st.data())
def test_a_plan_reads_every_chunk_once_and_within_its_limits(
    places: list[Place], data: st.DataObject
) -> None:
    placement = placed(places)
    wanted = data.draw(st.lists(st.integers(0, len(places) - 1))) if places else []
    gap, most = data.draw(st.integers(0, 1 << 20)), data.draw(st.integers(CHUNK_BYTES, 8 << 20))
    ranges = placement.plan(wanted, gap_bytes=gap, max_bytes=most)
    assert sorted(index for each in ranges for index in each.indices) == sorted(set(wanted))
    for each in ranges:
        of_each = [places[index] for index in each.indices]
        assert each.size_bytes <= most
        assert each.start == min(place.offset for place in of_each)
        assert each.start + each.size_bytes == max(place.end for place in of_each)
        assert {pack_key(place.pack_id) for place in of_each} == {each.key}
        assert each.offsets == [place.offset for place in of_each]
        for first, second in pairwise(of_each):
            assert second.offset - first.end <= gap
    first_asked = [min(wanted.index(index) for index in each.indices) for each in ranges]
    assert first_asked == sorted(first_asked)


def test_neighbours_are_one_read() -> None:
    [only] = placed(neighbours([1000, 2000, 3000])).plan([2, 0, 1])
    assert (only.start, only.size_bytes) == (0, 6000)


def test_a_small_gap_is_read_over_and_a_large_one_is_not() -> None:
    placement = placed(neighbours([10] * 3, gap_bytes=1000))
    assert len(placement.plan([0, 1, 2], gap_bytes=1000)) == 1
    assert len(placement.plan([0, 1, 2], gap_bytes=999)) == 3


def test_the_first_range_is_the_one_that_is_wanted_first() -> None:
    places = [Place(PACKS[3], 0, 10, Encoding.RAW), Place(PACKS[0], 0, 10, Encoding.RAW)]
    assert [each.key for each in placed(places).plan([0, 1])] == [pack_key(PACKS[3]), pack_key(PACKS[0])]


@pytest.mark.parametrize("index", [-1, 3])
def test_a_chunk_that_is_not_there_is_in_no_plan(index: int) -> None:
    with pytest.raises(IndexError):
        placed(neighbours([10] * 3)).plan([0, index])


@pytest.mark.parametrize("is_compressing", [False, True])
def test_chunks_of_a_range_are_opened_and_what_is_wrong_is_told(is_compressing: bool) -> None:
    pieces = [b"some text " * 500, b"other words " * 500, b"x"]
    writer = PackWriter(is_compressing=is_compressing)
    for piece in pieces:
        writer.add(Chunk.of(piece), piece)
    pack = writer.finish()
    placement = placed([Place(pack.id, m.offset, m.stored_bytes, m.encoding) for m in pack.members])
    [wanted] = placement.plan([1, 2])
    data = bytes(pack.data[wanted.start : wanted.start + wanted.size_bytes])
    chunks = [Chunk.of(piece) for piece in pieces[1:]]
    run = wanted.open(data, chunks)
    assert run.wrong() == []
    assert [bytes(run.body(number)) for number in range(2)] == pieces[1:]
    assert wanted.open(bytes(byte ^ 1 for byte in data), chunks).wrong() == [0, 1]
    assert wanted.open(bytes([data[0] ^ 1]) + data[1:], chunks).wrong() == [0]
    assert wanted.open(data[:5], chunks).wrong() == [0, 1]
    last = wanted.only([1])
    assert last.open(data, chunks[1:]).wrong() == []
    alone = wanted.alone(1)
    begin = alone.start - wanted.start
    assert alone.open(data[begin : begin + alone.size_bytes], chunks[1:]).wrong() == []


@settings(max_examples=300)
@given(PLACES, st.randoms(use_true_random=False))
def test_a_damaged_placement_is_refused_or_points_into_possible_packs(
    places: list[Place], source: random.Random
) -> None:
    data = bytearray(Placement.pack(places))
    for _ in range(source.randint(1, 4)):
        data[source.randrange(len(data))] = source.randrange(256)
    if source.random() < 0.3:
        del data[source.randrange(len(data)) :]
    try:
        placement = Placement(bytes(data))
    except InvalidInput:
        return
    for index in range(len(placement)):
        place = placement.place(index)
        assert 0 <= place.offset < MAX_PACK_BYTES
        assert 0 < place.stored_bytes <= CHUNK_BYTES
    placement.plan(range(len(placement)))


@pytest.mark.parametrize(
    ("at", "value"), [(8, 0xFFFFFFFF), (12, 3), (12, 0xFFFFFFFF), (48, 1), (52, 1 << 30), (56, 0)]
)
def test_impossible_numbers_are_refused(at: int, value: int) -> None:
    data = bytearray(Placement.pack(neighbours([5])))
    data[at : at + 4] = value.to_bytes(4, "little")
    with pytest.raises(InvalidInput):
        Placement(bytes(data))
