from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.origin.reference import Reference
from glowplug.types.errors import InvalidInput

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "registry", "repository", "version"),
    [
        ("alpine", "docker.io", "library/alpine", "latest"),
        ("alpine:3", "docker.io", "library/alpine", "3"),
        ("docker.io/alpine", "docker.io", "library/alpine", "latest"),
        ("index.docker.io/alpine", "docker.io", "library/alpine", "latest"),
        ("vllm/vllm-openai:v0.9", "docker.io", "vllm/vllm-openai", "v0.9"),
        ("localhost/app", "localhost", "app", "latest"),
        ("localhost:5000/app:1", "localhost:5000", "app", "1"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000", "a/b/c", "latest"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
        ("nvcr.io/nvidia/cuda:12.4-base", "nvcr.io", "nvidia/cuda", "12.4-base"),
        (f"app@{DIGEST}", "docker.io", "library/app", DIGEST),
        (f"ghcr.io/a/b:1@{DIGEST}", "ghcr.io", "a/b", DIGEST),
        ("x/a__b.c-d--e_f/g", "docker.io", "x/a__b.c-d--e_f/g", "latest"),
        ("Upper/app", "Upper", "app", "latest"),
    ],
)
def test_names_mean_what_they_mean_to_docker(text: str, registry: str, repository: str, version: str) -> None:
    reference = Reference.parse(text)
    assert (reference.registry, reference.repository, reference.version) == (registry, repository, version)
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", "a:", "a@", "/a", "a/", "a//b", "A", "a b", "a:b:c", "a:.b", "-a", "a-", "a/../b", "..",
        "a.b.c/", "localhost:99999999/a", "x:y/a", "a@sha256:abc", f"a@{DIGEST}0", f"a@{DIGEST.upper()}",
        "a@md5:" + "0" * 32, "a:" + "t" * 129, "a" * 256, "a\n", "a:1\n", "user@host/a", "http://a/b",
        "a?x=1", "a#b", "a%2fb", "..example.com/a", "-.com/a", "a_/b", "[::1/a", "x" * 5000, "[::1]:5000/",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_with_words(text: str) -> None:
    with pytest.raises(InvalidInput):
        Reference.parse(text)


@given(st.text(alphabet="aB0._-:/@[]%?# \n\\é", max_size=60))
def test_a_name_that_is_accepted_reads_back_and_cannot_leave_its_place_in_an_address(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return
    assert Reference.parse(str(reference)) == reference
    path = f"{reference.repository}/{reference.version}"
    assert ".." not in path.split("/")
    assert not set(path) & set("?#%\\ \n")
    assert "@" not in reference.registry
