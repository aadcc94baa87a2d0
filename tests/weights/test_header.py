"""Headers: what is right comes out as it went in, and what is wrong is an InvalidInput, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.weights.files import described, noise, packed, tensor

from glowplug.types.errors import GlowplugError, InvalidInput
from glowplug.weights.files import find_weights
from glowplug.weights.header import DTYPE_BITS, LENGTH_BYTES, MAX_HEADER_BYTES, parse_header

WHOLE_BYTES = sorted(dtype for dtype, bits in DTYPE_BITS.items() if bits >= 8)
TWO = {"a": tensor("F32", [2, 3]), "b": tensor("U8", [5], seed=1)}

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=4)
contents = st.dictionaries(names, st.builds(tensor, st.sampled_from(WHOLE_BYTES), shapes), max_size=6)


def parsed(header: object, data: bytes) -> Any:
    whole = packed(header, data)
    return parse_header(whole[LENGTH_BYTES : len(whole) - len(data)], len(whole), "model.safetensors")


def data_of(tensors: Any) -> bytes:
    return b"".join(content for _, _, content in tensors.values())


@given(contents, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), st.integers(0, 9))
def test_every_tensor_comes_out_with_its_bytes(tensors: Any, metadata: dict[str, str], padding: int) -> None:
    header = {"__metadata__": metadata, **described(tensors)}
    whole = packed(json.dumps(header).encode() + b" " * padding, data_of(tensors))
    length = int.from_bytes(whole[:LENGTH_BYTES], "little")
    found = parse_header(whole[LENGTH_BYTES : LENGTH_BYTES + length], len(whole), "file")
    assert found.metadata == metadata
    assert {
        entry.name: (entry.dtype, list(entry.shape), whole[entry.begin : entry.end])
        for entry in found.entries
    } == {name: (dtype, list(shape), content) for name, (dtype, shape, content) in tensors.items()}
    ends = [entry.end for entry in found.entries]
    assert ends == sorted(ends)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200), st.integers(0, 1 << 64))
@example(b"", 0)
@example(b"{" * 1000, 1000)
@example(b"[" * 100_000, 100_008)
@example(b'{"a":' * 50_000, 250_008)
@example(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}', 9)
@example("{}".encode("utf-16"), 14)
def test_any_bytes_are_a_header_or_an_invalid_input(text: bytes, size_bytes: int) -> None:
    said: InvalidInput | None = None
    try:
        parse_header(text, size_bytes, "file")
    except InvalidInput as error:
        said = error
    assert said is None or (said.remedy and len(str(said)) < 1000)


@given(json_values)
def test_any_json_is_a_header_or_an_invalid_input(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        found = parse_header(text, LENGTH_BYTES + len(text), "file")
    except InvalidInput:
        return
    assert all(entry.size_bytes == 0 for entry in found.entries)


@given(contents, st.data())
@settings(max_examples=200)
def test_one_changed_field_is_never_taken_for_another_layout(tensors: Any, data: st.DataObject) -> None:
    """Whatever is accepted covers the data exactly, with sizes that fit the shapes."""
    header = described(tensors)
    if header:
        name = data.draw(st.sampled_from(sorted(header)))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        header[name][field] = data.draw(json_values | shapes | st.sampled_from(WHOLE_BYTES))
    body = data_of(tensors)
    try:
        found = parsed(header, body)
    except InvalidInput:
        return
    assert sum(entry.size_bytes for entry in found.entries) == len(body)
    for entry in found.entries:
        count = 1
        for size in entry.shape:
            count *= size
        assert entry.size_bytes * 8 == count * DTYPE_BITS[entry.dtype]


def changed(**fields: Any) -> dict[str, Any]:
    header = described(TWO)
    header["b"] |= fields
    return header


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (changed(data_offsets=[20, 25]), "overlaps"),
        (changed(data_offsets=[0, 5]), "overlaps"),
        (changed(data_offsets=[25, 30]), "hole"),
        (changed(data_offsets=[24, 1 << 62]), "needs 5"),
        (changed(data_offsets=[29, 24]), "no range"),
        (changed(data_offsets=[24, 29, 30]), "no range"),
        (changed(data_offsets=[24.0, 29.0]), "no range"),
        (changed(data_offsets=[-5, 0]), "no range"),
        (changed(shape=[6]), "needs 6"),
        (changed(shape=[-5]), "impossible shape"),
        (changed(shape=[True, 5]), "impossible shape"),
        (changed(shape=5), "impossible shape"),
        (changed(shape=[1] * 100), "impossible shape"),
        (changed(shape=[1 << 62, 1 << 62, 0], data_offsets=[24, 24]), "impossible shape"),
        (changed(dtype="F33"), "unknown dtype"),
        (changed(dtype=["U8"]), "unknown dtype"),
        (changed(dtype="F32"), "needs 20"),
        ({**described(TWO), "c": None}, "lacks dtype"),
        ({**described(TWO), "c": {"dtype": "U8"}}, "lacks dtype"),
        ({**described(TWO), "__metadata__": {"a": 1}}, "metadata"),
        ({**described(TWO), "__metadata__": "text"}, "metadata"),
        (b'{"a": {}, "a": {}}', "occurs twice"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [29], "data_offsets": [0, 29]}}', "valid text"),
        (b"[]", "no JSON object"),
        (b"{", "malformed"),
        (b'{"a": NaN}', "lacks dtype"),
        (b"\xff\xfe", "no JSON object"),
        (b"{\xff}", "malformed"),
        (b"PK\x03\x04", "no JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told(header: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        parsed(header, data_of(TWO))
    assert "model.safetensors" in refused.value.message
    assert refused.value.remedy


def test_more_bytes_or_fewer_than_the_header_tells_of_are_refused() -> None:
    for data, words in ((data_of(TWO) + b"x", "follow"), (data_of(TWO)[:-1], "cut off")):
        with pytest.raises(InvalidInput, match=words):
            parsed(described(TWO), data)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, packed(described(TWO), b"", length=1 << 63), packed({}, b"", length=(1 << 64) - 1)],
    ids=["empty", "no length", "longer than the file", "the longest"],
)
def test_a_file_too_short_for_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidInput, match="cut off"):
        find_weights(tmp_path)


def test_a_header_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as sparse:
        sparse.write((1 << 40).to_bytes(8, "little"))
        sparse.truncate((1 << 40) + 8)
    with pytest.raises(InvalidInput, match=f"{MAX_HEADER_BYTES} are the most"):
        find_weights(file)


@pytest.mark.parametrize("cut_bytes", [1, 5, 29, 40, 300])
def test_every_truncation_of_a_file_is_refused(tmp_path: Path, cut_bytes: int) -> None:
    whole = packed(described(TWO), data_of(TWO))
    (tmp_path / "model.safetensors").write_bytes(whole[:-cut_bytes])
    with pytest.raises(GlowplugError, match="cut off"):
        find_weights(tmp_path)


def test_a_long_hostile_name_does_not_fill_the_message() -> None:
    with pytest.raises(InvalidInput) as refused:
        parsed({"x" * 1_000_000: {"dtype": "U8", "shape": ["y" * 1_000_000], "data_offsets": [0, 0]}}, b"")
    assert len(str(refused.value)) < 1000


def test_noise_is_no_header() -> None:
    with pytest.raises(InvalidInput):
        parse_header(noise(1000), 1008, "file")
