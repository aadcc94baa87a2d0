from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glowplug.image.layout import IMAGE_ID
from glowplug.image.store import ImageStore
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir
from glowplug.types.spec import BuildImage, BuildStep, DirectoryImage, ImageSpec, LocalDir

IN_ORDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
WORD = st.text(alphabet="abcxyz0189=<> \"'\\$\né", min_size=1, max_size=12)
STEP = st.one_of(
    st.builds(BuildStep, op=st.just("run"), args=st.lists(WORD, min_size=1, max_size=3)),
    st.builds(
        BuildStep,
        op=st.sampled_from(["apt", "pip"]),
        args=st.lists(st.sampled_from(["alpha", "beta", "gamma"]), min_size=1, max_size=3),
    ),
)
ENV = st.dictionaries(st.from_regex(r"[A-Z_]{1,6}", fullmatch=True), WORD, max_size=3)
WORKDIR = st.sampled_from(["/", "/app", "/srv/x"])
BUILD = st.builds(BuildImage, steps=st.lists(STEP, max_size=4), env=ENV, workdir=WORKDIR)


@IN_ORDER
@given(spec=BUILD)
def test_an_id_survives_a_trip_through_json(store: ImageStore, spec: BuildImage) -> None:
    again = BuildImage.model_validate_json(spec.model_dump_json())
    assert store.identify(again) == store.identify(spec)
    assert IMAGE_ID.fullmatch(store.identify(spec))


@IN_ORDER
@given(first=BUILD, second=BUILD)
def test_ids_are_equal_exactly_when_specifications_are(
    store: ImageStore, first: BuildImage, second: BuildImage
) -> None:
    assert (store.identify(first) == store.identify(second)) == (first == second)


@IN_ORDER
@given(env=ENV)
def test_the_order_of_variables_does_not_matter(store: ImageStore, env: dict[str, str]) -> None:
    backwards = dict(reversed(env.items()))
    assert store.identify(BuildImage(env=env)) == store.identify(BuildImage(env=backwards))


def test_the_id_does_not_depend_on_where_state_lies_nor_on_the_machines_proxies(tmp_path: Path) -> None:
    spec = BuildImage(steps=[BuildStep(op="pip", args=["numpy"])])
    one = ImageStore(StateDir(tmp_path / "one"), environ={})
    two = ImageStore(StateDir(tmp_path / "two"), environ={"https_proxy": "http://proxy.invalid"})
    assert one.identify(spec) == two.identify(spec)


def test_a_folder_is_the_same_image_by_any_of_its_names(store: ImageStore, tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree)
    ids = {
        store.identify(DirectoryImage(path=path))
        for path in (str(tree), f"{tree}/", f"{tree}/../{tree.name}", str(tree.parent / "link"))
    }
    assert len(ids) == 1


def test_reading_a_folder_does_not_change_its_id(store: ImageStore, tree: Path) -> None:
    (tree / "etc" / "file").write_text("x")
    before = store.identify(DirectoryImage(path=str(tree)))
    (tree / "etc" / "file").read_text()
    list(tree.rglob("*"))
    assert store.identify(DirectoryImage(path=str(tree))) == before


@pytest.mark.parametrize("path", ["usr/bin/new-program", "var/lib/dpkg/status", "bin/sh"])
def test_installing_something_into_a_folder_changes_its_id(store: ImageStore, tree: Path, path: str) -> None:
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    os.utime((tree / path).parent, (1, 1))  # not within the same tick of the kernel's clock as the change
    before = store.identify(DirectoryImage(path=str(tree)))
    (tree / path).write_text("new")
    assert store.identify(DirectoryImage(path=str(tree))) != before


def test_a_folder_that_was_replaced_is_another_image(store: ImageStore, tree: Path) -> None:
    before = store.identify(DirectoryImage(path=str(tree)))
    tree.rename(tree.with_name("old"))
    (tree / "bin").mkdir(parents=True)
    assert store.identify(DirectoryImage(path=str(tree))) != before


def with_local(tree: Path, local: Path, remote: str = "/data") -> ImageSpec:
    return DirectoryImage(path=str(tree), local_dirs=[LocalDir(local_path=str(local), remote_path=remote)])


def test_changed_files_of_a_local_folder_are_another_image(
    store: ImageStore, tree: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    (local / "package" / "__pycache__").mkdir(parents=True)
    (local / "package" / "module.py").write_text("x = 1")
    before = store.identify(with_local(tree, local))
    assert store.identify(with_local(tree, local, "/elsewhere")) != before

    (local / "package" / "__pycache__" / "module.pyc").write_text("compiled")
    assert store.identify(with_local(tree, local)) == before

    (local / "package" / "module.py").write_text("x = 22")
    changed = store.identify(with_local(tree, local))
    assert changed != before
    (local / "package" / "module.py").unlink()
    assert store.identify(with_local(tree, local)) not in (before, changed)


def test_links_in_a_local_folder_are_not_followed(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / "circle").symlink_to(local)
    (local / "out").symlink_to("/")
    assert IMAGE_ID.fullmatch(store.identify(with_local(tree, local)))


def test_a_local_folder_too_large_to_look_at_is_refused(
    store: ImageStore, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glowplug.image.local_dirs.MAX_ENTRIES", 3)
    local = tmp_path / "local"
    local.mkdir()
    for number in range(3):
        (local / str(number)).touch()
    store.identify(with_local(tree, local))
    (local / "one-more").touch()
    with pytest.raises(InvalidInput, match="more than 3 files") as caught:
        store.identify(with_local(tree, local))
    assert "volume" in caught.value.remedy
