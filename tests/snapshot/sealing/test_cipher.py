"""What is sealed is opened again by the same key, for the same purpose, unaltered, and by nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.snapshot.sealing.cipher import IV_BYTES, TAG_BYTES, Seal, Sealer, WrongSeal
from glowplug.snapshot.sealing.keys import SealingKey

KEY = SealingKey(bytes(range(32)))
SEALER = Sealer(KEY, "chunk")
contents = st.binary(max_size=5000)


@given(contents, st.binary(max_size=40))
def test_what_was_sealed_is_opened_and_sealed_alike_again(plain: bytes, bound: bytes) -> None:
    seal, sealed = SEALER.seal_small(plain, bound)
    assert len(sealed) == len(plain)
    assert SEALER.open_small(sealed, seal, bound) == plain
    assert Sealer(KEY, "chunk").seal_small(plain, bound) == (seal, sealed)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_changed_bit_anywhere_is_noticed(plain: bytes, data: st.DataObject) -> None:
    seal, sealed = SEALER.seal_small(plain, b"bound")
    whole = bytearray(sealed + seal.iv + seal.tag)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    body, rest = bytes(whole[: len(sealed)]), bytes(whole[len(sealed) :])
    with pytest.raises(WrongSeal):
        SEALER.open_small(body, Seal(rest[:IV_BYTES], rest[IV_BYTES : IV_BYTES + TAG_BYTES]), b"bound")


@given(contents, st.integers(1, 20))
def test_a_cut_off_or_longer_one_is_noticed(plain: bytes, count: int) -> None:
    seal, sealed = SEALER.seal_small(plain)
    with pytest.raises(WrongSeal):
        SEALER.open_small(sealed + bytes(count), seal)
    if sealed:
        with pytest.raises(WrongSeal):
            SEALER.open_small(sealed[:-count], seal)


@given(contents, contents)
def test_another_message_has_another_seal_and_neither_opens_the_other(one: bytes, other: bytes) -> None:
    (seal, sealed), (other_seal, other_sealed) = SEALER.seal_small(one), SEALER.seal_small(other)
    if one == other:
        assert (seal, sealed) == (other_seal, other_sealed)
        return
    assert seal.iv != other_seal.iv
    with pytest.raises(WrongSeal):
        SEALER.open_small(sealed, other_seal)
    with pytest.raises(WrongSeal):
        SEALER.open_small(other_sealed, seal)


@given(contents, st.binary(max_size=9), st.binary(max_size=9))
def test_what_is_bound_cannot_be_changed_nor_moved_into_the_content(
    plain: bytes, bound: bytes, other: bytes
) -> None:
    seal, sealed = SEALER.seal_small(plain, bound)
    if other != bound:
        with pytest.raises(WrongSeal):
            SEALER.open_small(sealed, seal, other)
        assert SEALER.seal_small(plain, other)[0].iv != seal.iv
    assert bound == b"" or SEALER.seal_small(bound + plain)[0].iv != seal.iv


@pytest.mark.parametrize(
    "other", [Sealer(SealingKey(b"x" * 32), "chunk"), Sealer(KEY, "table")], ids=["key", "purpose"]
)
def test_another_key_and_another_purpose_open_nothing(other: Sealer) -> None:
    seal, sealed = SEALER.seal_small(b"memory")
    assert other.seal_small(b"memory")[0].iv != seal.iv, "nor tell that it is the same content"
    with pytest.raises(WrongSeal):
        other.open_small(sealed, seal)
