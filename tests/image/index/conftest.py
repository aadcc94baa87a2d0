"""What the tests of the index share: real kernel mounts that are gone afterwards, and ``fsck.erofs``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests import needs

from glowplug.image.lazy.erofs_mount import mount_erofs

Mount = Callable[..., Path]


@pytest.fixture
def mount_index(tmp_path: Path) -> Iterator[Mount]:
    """Mount an image on its devices, as the node does; skips where this user or kernel cannot."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    targets: list[Path] = []

    def mount(image: bytes, devices: Sequence[Path]) -> Path:
        number = len(targets)
        index = tmp_path / f"index {number}.erofs"
        index.write_bytes(image)
        target = tmp_path / f"mounted {number}"
        target.mkdir()
        mount_erofs(index, devices, target, directio=False)
        targets.append(target)
        return target

    yield mount
    for target in targets:
        subprocess.run(["umount", "-l", target], check=True, timeout=60)


def fsck(image: bytes, folder: Path, blob_bytes: Sequence[int]) -> str:
    """What ``fsck.erofs`` has against an image: nothing, if it is sound."""
    needs.programs("fsck.erofs")
    index = folder / "checked.erofs"
    index.write_bytes(image)
    devices: list[str] = []
    for number, size_bytes in enumerate(blob_bytes):
        blob = folder / f"empty blob {number}"
        with blob.open("wb") as file:
            file.truncate(size_bytes)
        devices.append(f"--device={blob}")
    checked = subprocess.run(
        ["fsck.erofs", *devices, index],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        errors="replace",
    )
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr
