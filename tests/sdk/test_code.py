"""The code digest: the same for the same code, another for any other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glowplug.sdk.code as code
from glowplug.sdk.code import code_digest, code_spec
from glowplug.types.errors import InvalidInput

from .conftest import patient

file_names = st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2}x)?", fullmatch=True).map(lambda stem: f"{stem}.py")
folders = st.dictionaries(file_names, st.binary(max_size=20), max_size=4)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@given(one=folders, other=folders)
@settings(patient, max_examples=50)
def test_two_folders_have_one_digest_exactly_if_their_python_files_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    base = tmp_path_factory.mktemp("code")
    digests = code_digest(write(base / "one", one)), code_digest(write(base / "other", other))
    assert (digests[0] == digests[1]) == (one == other)


def test_only_code_that_can_be_imported_counts(tmp_path: Path) -> None:
    write(tmp_path / "a", {"app.py": b"1"})
    before = code_digest(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("x")
    write(tmp_path / "a" / ".git", {"hook.py": b"x"})
    write(tmp_path / "a" / "env", {"lib.py": b"x"})
    (tmp_path / "a" / "env" / "pyvenv.cfg").touch()
    assert code_digest(tmp_path / "a") == before
    (tmp_path / "a" / "new.py").touch()
    assert code_digest(tmp_path / "a") != before


def test_a_loop_of_links_and_a_pipe_do_not_hold_it_up(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("x = 1")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.py")
    assert code_digest(tmp_path)


def test_a_dangling_link_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "app.py").symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidInput, match=r"app\.py cannot be read"):
        code_digest(tmp_path)


def test_too_many_files_are_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MAX_FILES", 3)
    for index in range(4):
        (tmp_path / f"{index}.txt").touch()
    with pytest.raises(InvalidInput, match="more than 3 files") as caught:
        code_digest(tmp_path)
    assert "folder of its own" in caught.value.remedy


def test_too_much_code_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    with (tmp_path / "big.py").open("wb") as file:
        file.truncate(code.MAX_CODE_BYTES + 1)
    with pytest.raises(InvalidInput, match="more than 64 MiB of Python"):
        code_digest(tmp_path)


def test_an_app_must_be_in_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a Python file"):
        code_spec(tmp_path / "notebook.ipynb", "F", "cls")
