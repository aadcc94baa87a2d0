"""Secrets are read late, completely, and never shown."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glowplug as gp
from glowplug.sdk.secret import parse_lines
from glowplug.types.errors import InvalidInput

from .conftest import patient

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@patient
@given(values=st.dictionaries(names, st.text(), max_size=5))
def test_any_value_survives_being_written_in_double_quotes(values: dict[str, str]) -> None:
    content = "\n".join(f"{name}={quoted(value)}" for name, value in values.items())
    assert parse_lines(content, "file") == values


@patient
@given(content=st.text())
def test_any_text_is_read_or_refused_without_showing_it(content: str) -> None:
    message = ""
    try:
        parse_lines(content, "file")
    except InvalidInput as error:
        message = error.message
    assert re.fullmatch(r"(file, line \d+ is not NAME=VALUE\.)?", message)


def test_the_forms_people_write() -> None:
    content = """
# a comment
export A=1
B = two words   # a comment
C='literal \\n # kept'
D="line\\nbreak \\"quoted\\""  # a comment
E=
F=has#hash
G=#nothing
"""
    assert parse_lines(content, "file") == {
        "A": "1",
        "B": "two words",
        "C": "literal \\n # kept",
        "D": 'line\nbreak "quoted"',
        "E": "",
        "F": "has#hash",
        "G": "",
    }


def test_a_value_is_in_no_repr_and_no_error(tmp_path: Path) -> None:
    secret = gp.Secret.from_dict({"TOKEN": "hush-hush"})
    assert repr(secret) == "Secret(TOKEN)"
    (tmp_path / "secrets").write_bytes(b"TOKEN='hush-hush\n\xff")
    for broken in (
        gp.Secret.from_file("secrets"),
        gp.Secret.from_dict({"hush": b"hush-hush"}),  # type: ignore[dict-item]
        gp.Secret.from_dict({"A": "hush-hush\0"}),
        gp.Secret.from_dict({"A": "hush-hush\ud800"}),
    ):
        with pytest.raises(InvalidInput) as caught:
            broken.resolve(tmp_path)
        assert "hush-hush" not in "".join(traceback.format_exception(caught.value)).replace(repr(broken), "")


def test_the_environment_is_read_when_the_app_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    secret = gp.Secret.from_env("HF_TOKEN")
    with pytest.raises(InvalidInput, match="'HF_TOKEN' is not set") as caught:
        secret.resolve(Path())
    assert "export HF_TOKEN" in caught.value.remedy
    monkeypatch.setenv("HF_TOKEN", "hush")
    assert secret.resolve(Path()) == {"HF_TOKEN": "hush"}


def test_a_file_is_read_relative_to_the_app(tmp_path: Path) -> None:
    (tmp_path / ".secrets").write_text("\ufeffA=1\r\nB='2'\r\n")
    assert gp.Secret.from_file(".secrets").resolve(tmp_path) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    "content", ["", "# nothing\n", "no equals sign", "A='open", "1A=x", "A\0=1", "A=" + "x" * (1 << 20)]
)
def test_a_file_that_is_not_one_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets").write_text(content)
    with pytest.raises(InvalidInput):
        gp.Secret.from_file("secrets").resolve(tmp_path)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    for path in ("missing", str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(InvalidInput):
            gp.Secret.from_file(path).resolve(tmp_path)


def test_names_that_are_no_variables_are_refused() -> None:
    for name in ("", "A B", "1A", "A=B", "É"):
        with pytest.raises(InvalidInput):
            gp.Secret.from_dict({name: "x"}).resolve(Path())
    with pytest.raises(InvalidInput):
        gp.Secret.from_env()
    with pytest.raises(InvalidInput):
        gp.Secret.from_dict({})
