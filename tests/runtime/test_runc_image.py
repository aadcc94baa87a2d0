"""What describes a memory image of runc: pure."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime.sandboxes import failure

from glowplug.runtime.criu import OutsideFile
from glowplug.runtime.runc_image import DESCRIPTION, check_empty, read_description, write_description
from glowplug.types.errors import RuntimeFailed

OUTSIDE = [OutsideFile(27, 1 << 40), OutsideFile(28, 5)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "image"
    image.mkdir()
    (image / "core-1.img").write_bytes(b"core")
    (image / "pages-1.img").write_bytes(bytes(8192))
    write_description(image, OUTSIDE)
    return image


def test_what_was_written_is_read_again(image: Path) -> None:
    assert read_description(image, "r-1") == OUTSIDE


@pytest.mark.parametrize("size", [0, 4096, 8191, 8193])
def test_a_file_of_another_size_is_named_with_both(image: Path, size: int) -> None:
    os.truncate(image / "pages-1.img", size)
    with pytest.raises(RuntimeFailed, match=f"pages-1.img has {size} bytes instead of 8192"):
        read_description(image, "r-1")


def test_a_missing_file_is_named(image: Path) -> None:
    (image / "core-1.img").unlink()
    with pytest.raises(RuntimeFailed, match=r"core-1\.img"):
        read_description(image, "r-1")


def test_another_version_is_refused(image: Path) -> None:
    described = json.loads((image / DESCRIPTION).read_text())
    (image / DESCRIPTION).write_text(json.dumps({**described, "version": 2}))
    with pytest.raises(RuntimeFailed, match="version 2"):
        read_description(image, "r-1")


def test_an_image_folder_must_be_empty(image: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="exists"):
        check_empty(image, "r-1")
    (tmp_path / "fresh").mkdir()
    check_empty(tmp_path / "fresh", "r-1")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_description_holds_it_is_refused_in_one_line(image: Path, content: bytes) -> None:
    (image / DESCRIPTION).write_bytes(content)
    error = failure(lambda: read_description(image, "r-1"))
    assert isinstance(error, RuntimeFailed)
    assert "\n" not in error.message
    assert error.remedy


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(version=st.just(1) | JSON, outside=JSON, sizes=JSON)
def test_fields_of_other_kinds_are_refused_or_read(
    image: Path, version: object, outside: object, sizes: object
) -> None:
    text = json.dumps({"version": version, "outside": outside, "bytes": sizes})
    (image / DESCRIPTION).write_text(text)
    error = failure(lambda: read_description(image, "r-1"))
    assert error is None or (isinstance(error, RuntimeFailed) and "\n" not in error.message)


def test_a_description_nested_without_end_is_refused(image: Path) -> None:
    (image / DESCRIPTION).write_text("[" * 100_000)
    assert isinstance(failure(lambda: read_description(image, "r-1")), RuntimeFailed)
