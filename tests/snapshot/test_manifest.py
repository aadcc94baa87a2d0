from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glowplug.snapshot.canary import record
from glowplug.snapshot.canonical import blake3_hex, canonical_json
from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.manifest import (
    MAX_MANIFEST_BYTES,
    CapturedGpu,
    CaptureTimings,
    FileEntry,
    Manifest,
)
from glowplug.types.errors import SnapshotInvalid
from glowplug.types.spec import HttpCall

from .conftest import make_draft, make_key

DIGEST = "0f" * 32


def make_manifest(**changes: Any) -> Manifest:
    key, draft = make_key(), make_draft()
    values: dict[str, Any] = {
        "id": key.id,
        "app": draft.app,
        "server": draft.server,
        "deployment": draft.deployment,
        "key": dict(key.fields),
        "created_at": 1_700_000_000.5,
        "files": {"pages.img": FileEntry(bytes=3, blake3=DIGEST)},
        "content": DIGEST,
        "deduplicated_bytes": 1,
        "canary": draft.canary,
        "timings": draft.timings,
        "tools": draft.tools,
    }
    return Manifest(**(values | changes))


def encode_raw(data: dict[str, Any]) -> bytes:
    """A manifest of any content with a correct integrity hash: what a forger could write."""
    content = {name: value for name, value in data.items() if name != "integrity"}
    return canonical_json({**content, "integrity": blake3_hex(canonical_json(content))}) + b"\n"


def forged(**changes: Any) -> bytes:
    data = json.loads(make_manifest().encode())
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = data
        for parent in parents:
            target = target[parent]
        target[last] = value
    return encode_raw(data)


def decode(raw: bytes) -> Manifest:
    return Manifest.decode(raw, make_key().id)


texts = st.text(st.characters(codec="utf-8"), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=10,
)
file_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True).filter(
    lambda name: name not in ("manifest.json", "status.json")
)
answers = st.builds(
    lambda path, request, ignore, body: record(
        HttpCall(method="POST", path="/" + path, json_body=request, ignore=ignore),
        200,
        {"content-type": "application/json"},
        json.dumps(body).encode(),
    ),
    st.from_regex(r"[a-z/]{0,10}", fullmatch=True),
    json_values,
    st.lists(texts, max_size=2),
    json_values,
)

gpus = st.builds(
    CapturedGpu,
    uuid=st.uuids().map(lambda number: f"GPU-{number}"),
    chip=texts,
    memory_bytes=st.integers(0, 1 << 40),
    is_given=st.booleans(),
    held_bytes=st.integers(0, 1 << 40),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    key = SnapshotKey(draw(st.dictionaries(texts, texts, max_size=5)))
    seconds = st.floats(0, 1e12)
    digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
    entries = st.builds(FileEntry, bytes=st.integers(0, 1 << 60), blake3=digests)
    return Manifest(
        id=key.id,
        app=draw(texts),
        server=draw(texts),
        deployment=draw(texts),
        key=dict(key.fields),
        created_at=draw(seconds),
        files=draw(st.dictionaries(file_names, entries, min_size=1, max_size=4)),
        content=draw(digests),
        deduplicated_bytes=draw(st.integers(0, 1 << 60)),
        canary=draw(st.lists(answers, max_size=3)),
        gpus=draw(st.lists(gpus, max_size=2)),
        timings=CaptureTimings(capture_s=draw(seconds), frozen_s=draw(seconds)),
        tools=draw(st.dictionaries(texts, texts, max_size=3)),
    )


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(manifests())
def test_a_manifest_reads_back_as_it_was_written(manifest: Manifest) -> None:
    encoded = manifest.encode()
    read = Manifest.decode(encoded, manifest.id)
    assert read == manifest
    assert read.encode() == encoded


@given(st.data())
def test_any_flipped_byte_is_noticed(data: st.DataObject) -> None:
    raw = bytearray(make_manifest().encode())
    index = data.draw(st.integers(0, len(raw) - 1))
    raw[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SnapshotInvalid):
        decode(bytes(raw))


def test_a_manifest_without_gpus_does_not_mention_them() -> None:
    assert b'"gpus"' not in make_manifest().encode()
    gpu = CapturedGpu(uuid=f"GPU-{'0' * 8}-0000-0000-0000-{'0' * 12}", chip="NVIDIA L4", memory_bytes=1)
    assert decode(make_manifest(gpus=[gpu]).encode()).gpus == [gpu]


def test_every_single_bit_of_a_manifest_counts() -> None:
    raw = make_manifest().encode()
    for index in range(len(raw)):
        flipped = bytearray(raw)
        flipped[index] ^= 1 << (index % 8)
        with pytest.raises(SnapshotInvalid):
            decode(bytes(flipped))


def test_every_truncation_is_noticed() -> None:
    raw = make_manifest().encode()
    for length in range(len(raw)):
        with pytest.raises(SnapshotInvalid):
            decode(raw[:length])


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_hostile_bytes_are_snapshot_invalid_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(SnapshotInvalid) as caught:
        decode(raw)
    assert caught.value.details["snapshot_id"] == make_key().id
    assert "glowplug snapshot rm" in caught.value.remedy


@given(st.dictionaries(st.sampled_from(list(Manifest.model_fields)), json_values, min_size=1))
def test_wrong_types_with_a_right_hash_are_snapshot_invalid(changes: dict[str, Any]) -> None:
    data = json.loads(make_manifest().encode()) | changes
    try:
        decode(encode_raw(data))
    except SnapshotInvalid as error:
        assert error.remedy  # noqa: PT017 - some random changes are no changes


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        ".hidden",
        "a\nb",
        "a\0b",
        "x" * 256,
        "manifest.json",
        "ü",
    ],
)
def test_a_file_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(SnapshotInvalid, match="files"):
        decode(forged(files={name: {"bytes": 1, "blake3": DIGEST}}))


@pytest.mark.parametrize("version", [0, 1, 3, 999, "2", True, 2.0, None, [1], {"a": 1}])
def test_an_unknown_format_is_refused_by_name(version: Any) -> None:
    with pytest.raises(SnapshotInvalid, match="reads 2 only"):
        decode(forged(format=version))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {}},
        {"files": {"a": {"bytes": -1, "blake3": DIGEST}}},
        {"files": {"a": {"bytes": "1", "blake3": DIGEST}}},
        {"files": {"a": {"bytes": 1, "blake3": DIGEST.upper()}}},
        {"files": {"a": {"bytes": 1, "blake3": DIGEST, "more": 1}}},
        {"files": {f"f{n}": {"bytes": 1, "blake3": DIGEST} for n in range(1025)}},
        {"created_at": -1},
        {"key": {"image": 1}},
        {"canary": [{"request": {"path": "no-slash"}}]},
        {"unheard_of": 1},
        {"app": None},
    ],
)
def test_wrong_content_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SnapshotInvalid, match="wrong content"):
        decode(forged(**changes))


def test_an_oversized_manifest_is_not_even_parsed() -> None:
    with pytest.raises(SnapshotInvalid, match="larger than"):
        decode(b" " * (MAX_MANIFEST_BYTES + 1))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(SnapshotInvalid, match="deep"):
        decode(b'{"format":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_a_manifest_in_another_layout_is_refused() -> None:
    pretty = json.dumps(json.loads(make_manifest().encode()), indent=2).encode()
    with pytest.raises(SnapshotInvalid, match="canonical"):
        decode(pretty)


def test_a_key_that_does_not_make_the_id_is_refused() -> None:
    with pytest.raises(SnapshotInvalid, match="its key makes"):
        decode(forged(key__image="im-2"))


def test_a_manifest_of_another_snapshot_is_refused() -> None:
    with pytest.raises(SnapshotInvalid, match="belongs to"):
        Manifest.decode(make_manifest().encode(), "sn-0000000000000000")
