"""docs/snapshot-format.md is a contract: its test vector and its tables must be what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from glowplug.image.index.catalog import Catalog
from glowplug.image.node_images import open_images
from glowplug.snapshot import canary
from glowplug.snapshot.canonical import MAX_DEPTH, blake3_hex
from glowplug.snapshot.key import FIELD_NAMES, SnapshotKey
from glowplug.snapshot.manifest import MAX_FILES, MAX_MANIFEST_BYTES, Manifest
from glowplug.snapshot.sealing.files import seal_file
from glowplug.snapshot.sealing.keys import KeyRing
from glowplug.snapshot.sealing.manifests import Manifests
from glowplug.snapshot.status import RestoreStatus
from glowplug.types.paths import StateDir

ANSWER = b'{"id": "cmpl-2", "created": 2, "choices": [{"logprob": -0.25, "text": " Paris"}]}'

PAGES = [bytes(4096) if 200 <= page < 700 else page.to_bytes(8, "little") * 512 for page in range(1000)]


@pytest.fixture(scope="module")
def document() -> str:
    return (Path(__file__).parents[2] / "docs/snapshot-format.md").read_text(encoding="utf-8")


def block(document: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert found, f"no {language} block"
    return found.group(1)


def test_the_key_of_the_test_vector_makes_the_documented_id(document: str) -> None:
    key = SnapshotKey(json.loads(block(document, "json")))
    assert tuple(key.fields) == FIELD_NAMES
    assert f"digest `{key.digest}` and the id `{key.id}`" in document


def test_the_manifest_of_the_test_vector_is_read_and_written_byte_for_byte(document: str) -> None:
    raw = block(document, "manifest").encode()
    key = SnapshotKey(json.loads(block(document, "json")))
    manifest = Manifest.decode(raw, key.id)
    assert manifest.encode() == raw
    assert manifest.snapshot_key == key
    assert manifest.files["pages.img"].blake3 == blake3_hex(bytes(range(256)))
    assert canary.compare(manifest.canary[0], 200, ANSWER) is None


def test_every_field_is_documented(document: str) -> None:
    answer_fields = canary.CanaryAnswer.model_fields
    for name in [*FIELD_NAMES, *Manifest.model_fields, *answer_fields, *RestoreStatus.model_fields]:
        assert re.search(rf'[`"]{name}[`"]', document), f"{name} is not documented"


def test_the_limits_are_those_of_the_code(document: str) -> None:
    assert f"at most {MAX_MANIFEST_BYTES >> 20} MiB" in document
    assert f"1 to {MAX_FILES} of them" in document
    assert f"at most {MAX_DEPTH} levels" in document
    assert f"over {canary.MAX_KEPT_BODY_BYTES >> 10} KiB" in document


def test_the_pages_of_the_test_vector_are_cut_and_named_as_documented(
    document: str, state: StateDir, tmp_path: Path
) -> None:
    (tmp_path / "pages.img").write_bytes(b"".join(PAGES))
    state.create()
    images = open_images(state)
    try:
        digest = images.files.keep(tmp_path, ["pages.img"]).digest
    finally:
        images.close()
    index = Catalog(state).get(digest)
    [file] = index.tree().root.children.values()
    before, after = file.extents
    assert [chunk.size_bytes >> 12 for chunk in (*before.chunks, *after.chunks)] == [87, 256, 188, 51, 162]
    assert after.offset >> 12 == 87 + 256 + 256
    for words in (digest, *(chunk.id.hex()[:16] for chunk in index.table())):
        assert f"`{words}`" in document


def test_the_sealed_test_vector_is_what_the_code_makes(document: str, tmp_path: Path) -> None:
    ring = KeyRing.parse(re.findall(r"`(gpk1-[0-9a-f-]+)`", document)[0], "the document")
    raw = block(document, "sealed").encode()
    plain = Manifest.decode(block(document, "manifest").encode(), json.loads(raw)["id"])
    assert Manifests(ring).encode(plain) == raw
    assert Manifests(ring).decode(raw, plain.id).manifest == plain
    path = tmp_path / "pages.img"
    path.write_bytes(b"".join(PAGES))
    first, hole, *others = seal_file(path, path.name, ring.first).chunks
    assert [chunk.size_bytes >> 12 for chunk in (first, hole, *others)] == [256, 256, 235, 101, 152]
    assert first.seal is not None
    assert hole.seal is None
    sealed = path.read_bytes()[: first.size_bytes]
    for words in (first.seal.iv.hex(), first.seal.tag.hex(), sealed[:16].hex(), blake3_hex(sealed)):
        assert f"`{words}`" in document
