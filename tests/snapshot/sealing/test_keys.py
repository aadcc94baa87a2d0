"""Keys from files and from the environment: what is taken, what is refused, and that nothing tells a key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.snapshot.sealing.keys import (
    FILE_VARIABLE,
    VARIABLE,
    KeyRing,
    SealingKey,
    forget_variable,
    make_key_file,
    rotate_key_file,
)
from glowplug.types.errors import InvalidInput, KeyMissing

OLD, NEW = SealingKey(b"o" * 32), SealingKey(b"n" * 32)
secrets = st.binary(min_size=32, max_size=32)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_first_key_of_a_file_seals_and_all_open(tmp_path: Path) -> None:
    file = write(tmp_path / "keys", f"# ours\n{NEW.encode()}  # since May\n\n{OLD.encode()}\n")
    ring = KeyRing.read(file)
    assert ring.first == NEW
    assert ring.get(OLD.id, "it") == OLD


@given(secrets, secrets)
def test_keys_are_read_as_they_are_written_and_have_ids_of_their_own(one: bytes, other: bytes) -> None:
    first, second = SealingKey(one), SealingKey(other)
    if one == other:
        with pytest.raises(InvalidInput, match="twice"):
            KeyRing.parse(f"{first.encode()},{second.encode()}", "it")
    else:
        assert KeyRing.parse(f"{first.encode()},{second.encode()}", "it").keys == (first, second)
        assert first.id != second.id


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(KeyMissing, match=OLD.id) as caught:
        KeyRing((NEW,)).get(OLD.id, "Snapshot sn-1")
    assert caught.value.details == {"key_id": OLD.id}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InvalidInput, match="can be read by others") as caught:
        KeyRing.read(write(tmp_path / "keys", NEW.encode(), mode))
    assert "chmod 600" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "keys", NEW.encode())
    os.chown(file, 65534, 65534)
    with pytest.raises(InvalidInput, match="owner user 65534"):
        KeyRing.read(file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds 0 keys"),
        ("# nothing\n", "holds 0 keys"),
        (NEW.encode()[:-1], "is not a key"),
        (NEW.encode() + "0", "is not a key"),
        (NEW.secret.hex(), "is not a key"),
        (f"{OLD.encode()}\n{NEW.encode()[:-1]}0", "line 2 says it is the key"),
        (f"{OLD.encode()} {OLD.encode()}", "twice"),
        ("x" * 70_000, "more than 65536 bytes"),
        ("gpk1-äöü", "is not text"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        KeyRing.read(write(tmp_path / "keys", text))
    said = f"{caught.value} {caught.value.to_dict()}"
    assert NEW.secret.hex()[:16] not in said
    assert "keygen" in said


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        KeyRing.read(tmp_path / "absent")
    with pytest.raises(InvalidInput, match="not a regular file"):
        KeyRing.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="not a regular file"):
        KeyRing.read(tmp_path / "pipe")


def test_the_environment_has_keys_or_names_a_file_but_not_both(tmp_path: Path) -> None:
    file = write(tmp_path / "keys", OLD.encode())
    assert KeyRing.from_environment({}) is None
    assert KeyRing.from_environment({VARIABLE: NEW.encode()}) == KeyRing((NEW,))
    assert KeyRing.from_environment({FILE_VARIABLE: str(file)}) == KeyRing((OLD,))
    with pytest.raises(InvalidInput, match="both"):
        KeyRing.from_environment({VARIABLE: NEW.encode(), FILE_VARIABLE: str(file)})


def test_child_processes_are_given_no_key() -> None:
    environ = {VARIABLE: NEW.encode(), FILE_VARIABLE: "/etc/keys", "OTHER": "1"}
    forget_variable(environ)
    assert environ == {FILE_VARIABLE: "/etc/keys", "OTHER": "1"}


def test_nothing_that_is_printed_tells_a_key() -> None:
    said = f"{NEW!r} {NEW} {KeyRing((NEW,))!r}"
    assert NEW.secret.hex() not in said
    assert repr(NEW.secret) not in said


def test_a_key_file_is_made_once_and_rotated(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    old = make_key_file(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(InvalidInput, match="there already"):
        make_key_file(file)
    assert KeyRing.read(file).keys == (old,)
    new = rotate_key_file(file)
    assert KeyRing.read(file).keys == (new, old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_purposes_have_keys_of_their_own() -> None:
    assert len({NEW.subkey("one"), NEW.subkey("two"), OLD.subkey("one"), NEW.secret}) == 4
