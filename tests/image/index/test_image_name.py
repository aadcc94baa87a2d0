"""Names of images: what is one, what is none, and the file each is kept in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.index.image_name import check_name, file_name_of, is_digest_prefix, name_of_file
from glowplug.types.errors import InvalidInput


@pytest.mark.parametrize(
    "name",
    [
        "vllm",
        "team/vllm:1",
        "a",
        "0",
        "a/b/c:Latest_1.2-3",
        "py3.11",
        "a..b",
        "a" * 200,
        "deadbee",
        "cafe/deadbeef",
    ],
)
def test_names_that_images_can_have(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/a", "a/", "a//b", "a/../b", "a/.b", "A", "a b", "a\n", "a:", "a:b:c", ":a", "a:/b",
     "-a", "a" * 201, "a:" + "t" * 129, "a\0b", "é", "a+b", "deadbeef", "0" * 64],
)  # fmt: skip
def test_names_that_images_cannot_have(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


@given(
    st.from_regex(
        r"[a-z0-9][a-z0-9._-]{0,9}(/[a-z0-9][a-z0-9._-]{0,9}){0,3}(:[A-Za-z0-9_]{1,9})?", fullmatch=True
    )
)
def test_the_file_of_a_name_is_one_that_cannot_escape_and_tells_the_name(name: str) -> None:
    if is_digest_prefix(name):
        return
    check_name(name)
    file_name = file_name_of(name)
    assert "/" not in file_name
    assert not file_name.startswith(".")
    assert name_of_file(file_name) == name
