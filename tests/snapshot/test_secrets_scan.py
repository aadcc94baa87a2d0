from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.snapshot import secrets_scan
from glowplug.snapshot.secrets_scan import FoundSecret, find_secrets, too_short_to_find

TOKEN = b"hf_0123456789abcdef"
CHUNK = secrets_scan._CHUNK_BYTES


def test_a_secret_is_found_with_its_file_and_offset(tmp_path: Path) -> None:
    (tmp_path / "pages.img").write_bytes(b"\0" * 1000 + TOKEN + b"\0" * 1000)
    (tmp_path / "checkpoint.img").write_bytes(b"nothing here")
    assert find_secrets(tmp_path, {"HF_TOKEN": TOKEN}) == [FoundSecret("HF_TOKEN", "pages.img", 1000)]


@pytest.mark.parametrize("shift", range(-len(TOKEN) - 1, 2))
def test_a_secret_across_a_seam_is_found(tmp_path: Path, shift: int) -> None:
    offset = CHUNK + shift
    (tmp_path / "pages.img").write_bytes(b"\0" * offset + TOKEN + b"\0" * 10)
    secrets = {"HF_TOKEN": TOKEN, "LONG": b"never there" * 50}
    assert find_secrets(tmp_path, secrets) == [FoundSecret("HF_TOKEN", "pages.img", offset)]


@settings(deadline=None)
@given(data=st.data())
def test_the_offset_is_that_of_the_first_occurrence(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("scan")
    content = data.draw(st.lists(st.sampled_from([b"ab", b"a", b"b", b"abab"]), min_size=1))
    whole = b"".join(content)
    secrets = {"S": b"abab", "T": b"ba", "U": b"bb"}
    (directory / "f").write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets_scan, "_CHUNK_BYTES", data.draw(st.integers(1, 9)))
        found = find_secrets(directory, secrets, min_length=1)
    expected = {name: whole.find(value) for name, value in secrets.items() if value in whole}
    assert {hit.name: hit.offset for hit in found} == expected


def test_a_secret_longer_than_a_chunk_is_found(tmp_path: Path) -> None:
    secret = bytes(range(256)) * 20_000
    (tmp_path / "pages.img").write_bytes(b"x" * 12345 + secret)
    assert find_secrets(tmp_path, {"KEYFILE": secret}) == [FoundSecret("KEYFILE", "pages.img", 12345)]


def test_each_secret_is_reported_once_per_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TOKEN * 3)
    (tmp_path / "b").write_bytes(b"." + TOKEN)
    assert find_secrets(tmp_path, {"X": TOKEN, "Y": TOKEN}) == [
        FoundSecret("X", "a", 0),
        FoundSecret("Y", "a", 0),
        FoundSecret("X", "b", 1),
        FoundSecret("Y", "b", 1),
    ]


def test_folders_are_searched_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(TOKEN)
    capture = tmp_path / "capture"
    (capture / "deep").mkdir(parents=True)
    (capture / "deep/f").write_bytes(TOKEN)
    (capture / "link").symlink_to(outside)
    assert find_secrets(capture, {"X": TOKEN}) == [FoundSecret("X", "deep/f", 0)]


def test_short_secrets_are_named_and_not_searched(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1234 short")
    secrets = {"PIN": b"1234", "EMPTY": b"", "TOKEN": TOKEN}
    assert find_secrets(tmp_path, secrets) == []
    assert too_short_to_find(secrets) == ["EMPTY", "PIN"]
    assert find_secrets(tmp_path, secrets, min_length=4) == [FoundSecret("PIN", "f", 0)]


def test_a_missing_folder_does_not_count_as_clean(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_secrets(tmp_path / "absent", {"X": TOKEN})
