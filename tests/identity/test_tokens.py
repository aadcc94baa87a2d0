"""Join tokens: what they look like, and what proves that somebody has one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.identity.tokens import JoinToken, is_proven, prove
from glowplug.types.errors import InvalidInput

AUTHORITY = "ab" * 32


def test_a_token_is_read_back_as_it_was_written() -> None:
    token = JoinToken.new(AUTHORITY)
    assert JoinToken.parse(f" {token}\n") == token
    assert str(token).startswith(f"gpj1.{AUTHORITY}.")


def test_no_two_tokens_are_alike_and_neither_are_their_ids() -> None:
    tokens = [JoinToken.new(AUTHORITY) for _ in range(100)]
    assert len({str(token) for token in tokens}) == len({token.id for token in tokens}) == 100


def test_neither_its_words_nor_its_id_nor_the_key_that_is_kept_tell_the_secret() -> None:
    token = JoinToken.new(AUTHORITY)
    assert token.secret not in repr(token) + token.id + token.proof_key
    assert token.id not in token.proof_key


@given(st.text(max_size=300))
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        JoinToken.parse(text)
    assert len(text) < 8 or text not in str(refused.value)


@given(st.data())
def test_a_token_with_one_character_changed_is_another_or_none(data: st.DataObject) -> None:
    token = JoinToken(AUTHORITY, "s" * 43)
    text = str(token)
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.characters().filter(lambda c: c != text[place])) + text[place + 1 :]
    try:
        other = JoinToken.parse(changed)
    except InvalidInput:
        return
    assert other != token


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_proof_is_of_one_message_and_one_token(message: bytes, other: bytes) -> None:
    token, stranger = JoinToken(AUTHORITY, "s" * 43), JoinToken(AUTHORITY, "t" * 43)
    proof = prove(token.proof_key, message)
    assert is_proven(token.proof_key, message, proof)
    assert is_proven(token.proof_key, other, proof) == (message == other)
    assert not is_proven(stranger.proof_key, message, proof)


@given(st.text(max_size=100))
def test_any_text_as_a_proof_is_judged_and_breaks_nothing(proof: str) -> None:
    assert not is_proven(JoinToken(AUTHORITY, "s" * 43).proof_key, b"message", proof)
