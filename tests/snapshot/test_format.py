"""docs/snapshot-format.md is a contract: its test vector and its tables must be what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from glowplug.snapshot import canary
from glowplug.snapshot.canonical import MAX_DEPTH, blake3_hex
from glowplug.snapshot.key import FIELD_NAMES, SnapshotKey
from glowplug.snapshot.manifest import MAX_FILES, MAX_MANIFEST_BYTES, Manifest
from glowplug.snapshot.status import RestoreStatus

ANSWER = b'{"id": "cmpl-2", "created": 2, "choices": [{"logprob": -0.25, "text": " Paris"}]}'


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
