from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.resolve import look_up, trace
from glowplug.types.errors import InvalidInput

NAMES = st.sampled_from(["a", "b", "c"])
TARGETS = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4).flatmap(
    lambda parts: st.sampled_from(["/".join(parts), "/" + "/".join(parts)])
)


def test_a_path_without_links_is_its_own_end(tmp_path: Path) -> None:
    assert trace(tmp_path / "not" / "there").end == Path(os.path.realpath(tmp_path)) / "not" / "there"


def test_every_link_passed_is_told_in_order(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "second").symlink_to("real")
    (tmp_path / "first").symlink_to("/second")
    passed = trace(Path("/first/file"), tmp_path)
    assert passed.links == ((Path("/first"), "/second"), (Path("/second"), "real"))
    assert passed.end == Path("/real/file")


def test_an_absolute_link_stays_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to("/etc")
    assert look_up(Path("/etc/passwd"), tmp_path / "elsewhere") is None
    (tmp_path / "passwd").symlink_to("/../../../../etc/passwd")
    assert look_up(Path("/passwd"), tmp_path / "elsewhere") is None


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InvalidInput, match="symbolic links"):
        trace(Path("/a/x"), tmp_path)


@given(links=st.dictionaries(NAMES, TARGETS), path=st.lists(NAMES, min_size=1, max_size=4))
def test_no_arrangement_of_links_leads_out_of_the_root(links: dict[str, str], path: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, target in links.items():
            (root / name).symlink_to(target)
        try:
            end = trace(Path("/", *path), root).end
        except InvalidInput:
            return
        assert end.is_absolute()
        assert ".." not in end.parts
