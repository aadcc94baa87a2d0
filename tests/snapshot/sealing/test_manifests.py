"""Manifests in their envelopes: what is readable, what is not, and that neither can be changed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.snapshot.test_manifest import make_manifest

from glowplug.snapshot.sealing.keys import KeyRing, SealingKey
from glowplug.snapshot.sealing.manifests import Manifests, content_named
from glowplug.types.errors import KeyMissing, SnapshotInvalid

KEY, OTHER = SealingKey(b"k" * 32), SealingKey(b"o" * 32)
SEALING = Manifests(KeyRing((KEY,)))
MANIFEST = make_manifest()
RAW = SEALING.encode(MANIFEST)


def test_a_sealed_manifest_is_read_as_it_was() -> None:
    stored = SEALING.decode(RAW, MANIFEST.id)
    assert (stored.manifest, stored.raw, stored.sealed_with) == (MANIFEST, RAW, KEY.id)
    later = Manifests(KeyRing((OTHER, KEY)))
    assert later.decode(RAW, MANIFEST.id).manifest == MANIFEST


def test_the_envelope_tells_id_content_and_key_and_nothing_else() -> None:
    envelope = json.loads(RAW)
    assert set(envelope) == {"format", "id", "content", "key", "seal", "sealed"}
    assert (envelope["id"], envelope["content"], envelope["key"]) == (MANIFEST.id, MANIFEST.content, KEY.id)
    assert content_named(RAW, MANIFEST.id) == MANIFEST.content
    for word in (MANIFEST.app, MANIFEST.server, *MANIFEST.files, *MANIFEST.key.values()):
        assert len(word) < 4 or word.encode() not in RAW


@pytest.mark.parametrize("keys", [None, KeyRing((OTHER,))])
def test_without_the_key_it_is_locked_and_the_key_named(keys: KeyRing | None) -> None:
    with pytest.raises(KeyMissing, match=f"{MANIFEST.id} is sealed with the key {KEY.id}"):
        Manifests(keys).decode(RAW, MANIFEST.id)


def test_plain_manifests_are_written_without_keys_and_read_by_everybody() -> None:
    raw = Manifests().encode(MANIFEST)
    assert raw == MANIFEST.encode()
    for manifests in (Manifests(), SEALING):
        assert manifests.decode(raw, MANIFEST.id).sealed_with is None
    assert content_named(raw, MANIFEST.id) == MANIFEST.content


@given(data=st.data())
def test_no_altered_or_cut_off_manifest_is_read(data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(RAW)))
    altered = bytearray(RAW[:length])
    if length == len(RAW):
        at = data.draw(st.integers(0, len(RAW) - 1))
        altered[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != RAW[at]))
    with pytest.raises((SnapshotInvalid, KeyMissing)):
        SEALING.decode(bytes(altered), MANIFEST.id)


@pytest.mark.parametrize("field", ["id", "content", "key"])
def test_what_is_readable_is_bound_to_the_seal(field: str) -> None:
    envelope = json.loads(RAW)
    envelope[field] = {"id": "sn-" + "0" * 16, "content": "0" * 64, "key": OTHER.id}[field]
    raw = (json.dumps(envelope, sort_keys=True, separators=(",", ":")) + "\n").encode()
    with pytest.raises(SnapshotInvalid):
        Manifests(KeyRing((KEY, OTHER))).decode(raw, envelope["id"])


def test_a_manifest_under_another_snapshots_name_is_refused() -> None:
    with pytest.raises(SnapshotInvalid, match="belongs to"):
        SEALING.decode(RAW, "sn-0000000000000000")
    with pytest.raises(SnapshotInvalid, match="belongs to"):
        content_named(RAW, "sn-0000000000000000")


def test_an_oversized_envelope_is_refused() -> None:
    with pytest.raises(SnapshotInvalid, match="larger than"):
        SEALING.decode(b"{" + b" " * (6 << 20), MANIFEST.id)
