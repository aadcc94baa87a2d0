"""A store, a key and files to capture, shared by the tests of the snapshot room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glowplug.snapshot import (
    CaptureTimings,
    MachineIdentity,
    ManifestDraft,
    Snapshot,
    SnapshotKey,
    SnapshotStore,
)
from glowplug.snapshot.canary import record
from glowplug.snapshot.manifest import MANIFEST_NAME, Manifest
from glowplug.types.clock import Clock, ManualClock
from glowplug.types.identity import RuntimeIdentity
from glowplug.types.paths import StateDir
from glowplug.types.spec import HostPythonImage, HttpCall, ServerSpec

from .folder_content import FolderContent

RUNTIME = RuntimeIdentity("runsc", "20240729.0", ("--platform=systrap", "--network=sandbox"))
MACHINE = MachineIdentity(cpu_model="Example CPU", cpu_features="0123456789abcdef", kernel="6.18")
FILES = {"checkpoint.img": b"state" * 50, "pages.img": bytes(range(256)) * 64, "pages_meta.img": b"meta"}


def make_server(**changes: object) -> ServerSpec:
    """A server spec that differs from the usual one in ``changes``."""
    values: dict[str, object] = {
        "name": "vllm",
        "image": HostPythonImage(),
        "command": ["vllm", "serve", "/models/tiny"],
        "env": {"HF_HUB_OFFLINE": "1"},
    }
    return ServerSpec.model_validate(values | changes)


def make_key(image_id: str = "im-1", **changes: object) -> SnapshotKey:
    """The key of :func:`make_server` on an example machine."""
    return SnapshotKey.compute(make_server(**changes), image_id, RUNTIME, MACHINE)


def make_draft(app: str = "chat", server: str = "vllm") -> ManifestDraft:
    """What a capture would know."""
    call = HttpCall(method="POST", path="/v1/completions", json_body={"prompt": "hi"})
    return ManifestDraft(
        app=app,
        server=server,
        deployment=f"{app}-v1",
        canary=[record(call, 200, {"Content-Type": "application/json"}, b'{"id": "x", "text": "Paris"}')],
        timings=CaptureTimings(capture_s=9.5, frozen_s=2.25),
        tools={"runsc": "20240729.0"},
    )


def write_files(directory: Path, files: dict[str, bytes] | None = None) -> None:
    """What a runtime would write."""
    for name, content in (FILES if files is None else files).items():
        (directory / name).write_bytes(content)


def garbage(state: StateDir) -> list[str]:
    """What lies in the store besides finished snapshots."""
    referenced = {path.readlink().name for path in state.snapshots.glob("sn-*")}
    generations = {path.name for path in (state.snapshots / ".generations").iterdir()}
    content = FolderContent(state.root / "content")
    needed = {
        Manifest.decode((path / MANIFEST_NAME).read_bytes(), path.name).content
        for path in state.snapshots.glob("sn-*")
    }
    left = {path.name for path in state.snapshot_staging.iterdir()} - {"change.lock"}
    return sorted(left | (generations - referenced) | (content.digests() - needed))


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000.0)


def open_store(state: StateDir, clock: Clock | None = None) -> SnapshotStore:
    """A store whose content lies in plain folders."""
    return SnapshotStore(state, FolderContent(state.root / "content"), clock)


@pytest.fixture
def store(state: StateDir, clock: ManualClock) -> SnapshotStore:
    return open_store(state, clock)


Capture = Callable[..., Snapshot]


@pytest.fixture
def capture(store: SnapshotStore) -> Capture:
    """Capture a snapshot: ``capture(key, files=.., app=..)``."""

    def run(key: SnapshotKey | None = None, files: dict[str, bytes] | None = None, **draft: str) -> Snapshot:
        with store.begin(key or make_key()) as staging:
            write_files(staging.path, files)
            return staging.commit(make_draft(**draft))

    return run
