from __future__ import annotations

import errno
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glowplug.image.layout import ImageFolders
from glowplug.image.lock import held_if_free
from glowplug.image.mount import ImageMounter
from glowplug.image.store import ImageStore
from glowplug.types.clock import ManualClock
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GlowplugError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from glowplug.types.paths import StateDir
from glowplug.types.replica import ImageView
from glowplug.types.spec import DirectoryImage, HostPythonImage

from .conftest import names, quiet


def staged(state: StateDir) -> list[str]:
    staging = ImageFolders(state).staging
    return names(staging) if staging.exists() else []


def test_an_image_is_made_once_and_found_again(state: StateDir, tree: Path) -> None:
    clock = ManualClock()
    store = ImageStore(state, clock=clock)
    made = store.ensure(DirectoryImage(path=str(tree)), quiet)
    clock.advance(60)
    assert store.ensure(DirectoryImage(path=str(tree)), quiet) == made
    assert ImageStore(state).get(made.id) == made
    assert store.list() == [made]
    assert (made.kind, made.bytes, made.created_at) == ("directory", 0, 1_000_000.0)


def test_progress_ends_at_one_and_never_goes_back(store: ImageStore, venv: Path) -> None:
    fractions: list[float | None] = []
    store.ensure(HostPythonImage(venv=str(venv)), lambda _text, fraction: fractions.append(fraction))
    told = [fraction for fraction in fractions if fraction is not None]
    assert told == sorted(told)
    assert fractions[-1] == 1.0


def test_callers_at_once_share_one_image(state: StateDir, venv: Path) -> None:
    barrier = threading.Barrier(8)
    spec = HostPythonImage(venv=str(venv))

    def ensure(_number: int) -> ImageView:
        store = ImageStore(state)
        barrier.wait(timeout=60)
        return store.ensure(spec, quiet)

    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(ensure, range(8)))
    assert all(view == views[0] for view in views)
    assert staged(state) == []


def test_a_second_caller_is_told_that_it_waits_until_its_deadline(state: StateDir, tree: Path) -> None:
    spec = DirectoryImage(path=str(tree))
    impatient = ImageStore(state, build_timeout_s=1.0)
    said: list[str] = []
    with held_if_free(ImageFolders(state).lock(impatient.identify(spec))), pytest.raises(DeadlineExceeded):
        impatient.ensure(spec, lambda text, _fraction: said.append(text))
    assert "waiting for somebody else" in said[0]


def test_a_caller_that_goes_away_stops_waiting(store: ImageStore, state: StateDir, tree: Path) -> None:
    spec = DirectoryImage(path=str(tree))
    gone = threading.Event()
    with held_if_free(ImageFolders(state).lock(store.identify(spec))), pytest.raises(Unavailable):
        store.ensure(spec, lambda _text, _fraction: gone.set(), gone)


def test_a_failure_leaves_nothing_and_does_not_stand_in_the_way(
    store: ImageStore, state: StateDir, tree: Path
) -> None:
    def fail(_text: str, _fraction: float | None) -> None:
        raise KeyboardInterrupt

    spec = DirectoryImage(path=str(tree))
    with pytest.raises(KeyboardInterrupt):
        store.ensure(spec, fail)
    assert (store.list(), staged(state)) == ([], [])
    assert store.ensure(spec, quiet).id == store.identify(spec)


def test_a_crash_while_making_is_cleared_by_the_next_store(state: StateDir, tree: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from glowplug.image.store import ImageStore\n"
        "from glowplug.types.paths import StateDir\n"
        "from glowplug.types.spec import DirectoryImage\n"
        "store = ImageStore(StateDir(Path(sys.argv[1])))\n"
        "store.ensure(DirectoryImage(path=sys.argv[2]), lambda *_: os._exit(9))\n"
    )
    died = subprocess.run([sys.executable, "-c", script, state.root, tree], timeout=60, check=False)
    assert died.returncode == 9
    assert len(staged(state)) == 1
    store = ImageStore(state)
    assert (staged(state), store.list()) == ([], [])
    store.ensure(DirectoryImage(path=str(tree)), quiet)


def test_opening_a_store_leaves_alone_what_is_being_made_right_now(
    store: ImageStore, state: StateDir, tree: Path
) -> None:
    seen: list[list[str]] = []

    def look(_text: str, _fraction: float | None) -> None:
        ImageStore(state)
        seen.append(staged(state))

    image = store.ensure(DirectoryImage(path=str(tree)), look)
    assert seen[0] == [image.id]


def test_a_damaged_record_is_made_anew(store: ImageStore, state: StateDir, venv: Path) -> None:
    spec = HostPythonImage(venv=str(venv))
    image = store.ensure(spec, quiet)
    for damage in ("", "{", "[]", '{"version": 2}'):
        (state.images / image.id / "image.json").write_text(damage)
        assert store.list() == []
        with pytest.raises(GlowplugError, match="damaged"):
            store.get(image.id)
        assert store.ensure(spec, quiet).id == image.id
        assert store.get(image.id).id == image.id


def test_a_record_that_belongs_to_another_image_is_damaged(
    store: ImageStore, state: StateDir, tree: Path
) -> None:
    one = store.ensure(DirectoryImage(path=str(tree)), quiet)
    two = store.ensure(DirectoryImage(path=str(tree), env={"A": "b"}), quiet)
    record = (state.images / one.id / "image.json").read_text()
    (state.images / two.id / "image.json").write_text(record)
    with pytest.raises(GlowplugError, match="belongs to"):
        store.get(two.id)


def test_an_image_in_use_is_not_removed(state: StateDir, tree: Path) -> None:
    used: set[str] = set()
    store = ImageStore(state, in_use=lambda: used)
    image = store.ensure(DirectoryImage(path=str(tree)), quiet)
    used.add(image.id)
    assert store.get(image.id).in_use
    with pytest.raises(Conflict):
        store.remove(image.id)
    used.clear()
    store.remove(image.id)
    assert (store.list(), staged(state)) == ([], [])
    with pytest.raises(NotFound):
        store.remove(image.id)


def test_an_image_that_is_being_made_is_not_removed(store: ImageStore, state: StateDir, tree: Path) -> None:
    image = store.ensure(DirectoryImage(path=str(tree)), quiet)
    with held_if_free(ImageFolders(state).lock(image.id)), pytest.raises(Conflict):
        store.remove(image.id)


@pytest.mark.parametrize(
    "image_id", ["", ".", "..", "../snapshots", "im-0123456789abcdef/..", ".staging", "im-x"]
)
def test_what_is_no_id_is_never_a_path(store: ImageStore, state: StateDir, image_id: str) -> None:
    for call in (store.get, store.remove):
        with pytest.raises(NotFound):
            call(image_id)
    assert state.images.is_dir()


@pytest.mark.sandbox
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, venv: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root], check=True, timeout=60)
    try:
        state = StateDir(root / "state")
        state.create()
        store = ImageStore(state)
        with pytest.raises(ResourceExhausted) as caught:
            store.ensure(HostPythonImage(venv=str(venv)), quiet)
        assert caught.value.remedy
        assert (store.list(), staged(state)) == ([], [])
    finally:
        subprocess.run(["umount", root], check=True, timeout=60)


def test_other_errors_of_the_disk_are_not_mistaken_for_a_full_one(
    store: ImageStore, state: StateDir, tree: Path
) -> None:
    def break_staging(_text: str, _fraction: float | None) -> None:
        (ImageFolders(state).staging / store.identify(DirectoryImage(path=str(tree)))).joinpath(
            "upper"
        ).mkdir()

    with pytest.raises(OSError, match="exists") as caught:
        store.ensure(DirectoryImage(path=str(tree)), break_staging)
    assert caught.value.errno == errno.EEXIST
    assert staged(state) == []


def test_a_mounted_image_is_unmounted_when_it_is_removed(
    store: ImageStore, mounter: ImageMounter, tree: Path
) -> None:
    image = store.ensure(DirectoryImage(path=str(tree)), quiet)
    root = mounter.mount(image.id).root
    assert root.is_mount()
    store.remove(image.id)
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
