from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.inside import check_destination, check_path, environment_of, put_first
from glowplug.types.errors import InvalidInput


@pytest.mark.parametrize("path", ["", "app", "/app/", "//app", "/a/../etc", "/./a", "/a\nb", "/a\0b"])
def test_a_path_that_does_not_say_plainly_where_it_leads_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="plain absolute path"):
        check_path(path, "working directory")


@pytest.mark.parametrize(
    "path", ["/", "/proc", "/proc/self", "/dev/shm", "/run/glowplug/env.json", "/.glowplug"]
)
def test_nothing_is_placed_where_the_runtime_or_we_put_things(path: str) -> None:
    with pytest.raises(InvalidInput, match="Nothing can be placed"):
        check_destination(path, "local folder")


@given(st.text(alphabet="/.ab", min_size=1, max_size=12))
def test_an_accepted_path_is_normal_and_absolute(path: str) -> None:
    try:
        check_path(path, "path")
    except InvalidInput:
        return
    assert path == posixpath.normpath(path)
    assert path.startswith("/")


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_an_impossible_environment_variable_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="not well formed"):
        environment_of({}, {name: "x"})


def test_the_callers_own_place_for_a_folder_in_the_path_is_kept() -> None:
    assert put_first("/usr/bin:/bin", "/env/bin") == "/env/bin:/usr/bin:/bin"
    assert put_first("/mine:/env/bin", "/env/bin") == "/mine:/env/bin"
