"""What the tests of this room share: a state directory, small root filesystems, a real sandbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glowplug.image import overlay
from glowplug.image.mount import ImageMounter, RootFilesystem
from glowplug.image.node_images import NodeImages, open_images
from glowplug.image.store import ImageStore
from glowplug.types.paths import TOOLS_DIR, StateDir

Enter = Callable[..., "subprocess.CompletedProcess[str]"]
SANDBOX_TIMEOUT_S = 120
PATIENCE_S = 60.0


def quiet(_text: str, _fraction: float | None) -> None:
    """A progress callback for tests that are about something else."""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def some_seconds() -> str:
    """A number to sleep for that no other process on this machine has as an argument."""
    return str(100_000 + uuid.uuid4().int % 800_000_000)


def read_process_arguments() -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # ended while we look
            continue
    return found


def wait_until_no_process_has(word: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(word in arguments for arguments in read_process_arguments()):
        assert time.monotonic() < deadline, f"a process with {word!r} is still there"
        threading.Event().wait(0.05)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path / "state")
    state.create()
    yield state
    for folder in state.images.glob("im-*"):
        overlay.release(folder / "rootfs")
    shutil.rmtree(state.images)  # pytest would keep whole root filesystems for three more runs


@pytest.fixture
def store(state: StateDir) -> ImageStore:
    return ImageStore(state)


@pytest.fixture
def node_images(state: StateDir) -> Iterator[NodeImages]:
    """The images of a node as its agent has them, with a real blob daemon where one is needed."""
    images = open_images(state)
    yield images
    images.release_all()
    images.close()


@pytest.fixture
def new_mounter(state: StateDir) -> Iterator[Callable[[], ImageMounter]]:
    """Mounters as other processes would have them."""
    opened: list[NodeImages] = []

    def make() -> ImageMounter:
        opened.append(open_images(state))
        return opened[-1].mounter

    yield make
    for images in opened:
        images.close()


@pytest.fixture
def mounter(node_images: NodeImages) -> ImageMounter:
    return node_images.mounter


@pytest.fixture(scope="session")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real virtual environment of the interpreter that runs the tests; for reading only."""
    return make_venv(tmp_path_factory.mktemp("venv") / "env")


def make_venv(path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True, timeout=120)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The smallest folder that passes for a root filesystem."""
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    return root


@pytest.fixture
def bootable_tree(tree: Path) -> Path:
    """A root filesystem with cat, ls and a shell that really run."""
    for program in ("/bin/cat", "/bin/ls", "/bin/sh"):
        shutil.copy2(program, tree / "bin" / Path(program).name)
        libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, timeout=60)
        for word in libraries.stdout.split():
            if word.startswith("/") and not (target := tree / word.lstrip("/")).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(word, target)
    return tree


@pytest.fixture
def enter(tmp_path: Path) -> Enter:
    """Run a command in a root filesystem with the real runsc, set up as the node sets it up."""
    runsc = TOOLS_DIR / "runsc"
    if os.geteuid() != 0 or not runsc.exists():
        pytest.skip("needs root and runsc")

    def run(root: RootFilesystem, *command: str) -> subprocess.CompletedProcess[str]:
        bundle = tmp_path / f"bundle-{uuid.uuid4().hex}"
        bundle.mkdir()
        mounts: list[dict[str, object]] = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        ]
        mounts += [
            {
                "destination": bind.destination,
                "type": "bind",
                "source": str(bind.source),
                "options": ["rbind", "ro" if bind.read_only else "rw"],
            }
            for bind in root.binds
        ]
        configuration = {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": list(command),
                "env": [f"{name}={value}" for name, value in root.env.items()],
                "cwd": root.workdir,
            },
            "root": {"path": str(root.root), "readonly": True},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
        }
        (bundle / "config.json").write_text(json.dumps(configuration))
        options = ["--overlay2=root:memory", "--platform=systrap", "--network=none"]
        start: list[str | Path] = [runsc, f"--root={tmp_path / 'runsc'}", *options]
        return subprocess.run(
            [*start, "run", f"--bundle={bundle}", f"image-test-{uuid.uuid4().hex}"],
            capture_output=True,
            text=True,
            timeout=SANDBOX_TIMEOUT_S,
            check=False,
        )

    return run
