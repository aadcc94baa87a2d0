"""The index of a real root filesystem of several GB: Debian with vLLM, as ``make root`` makes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests import needs
from tests.image.index.conftest import fsck
from tests.image.origin.origin_kit import OpenStore
from typing_extensions import Buffer

from glowplug.chunks.chunk import Chunk
from glowplug.image.index.build import build_image
from glowplug.image.index.catalog import Catalog
from glowplug.image.job import Job
from glowplug.image.origin.folder import FolderOrigin
from glowplug.types.clock import SystemClock
from glowplug.types.paths import StateDir

ROOTS = Path(os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")) / "roots"
BUILD_TIMEOUT_S = 800.0


class Forgetful(OpenStore):
    """Keeps names only: the content is too large for memory, and not asked for."""

    def put(self, chunk: Chunk, data: Buffer) -> None:
        self.bodies[chunk.id] = b""


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_fsck_accepts_the_index_of_a_root_with_vllm(tmp_path: Path) -> None:
    complete = next(iter(sorted(ROOTS.glob("vllm-*.complete"))), None)
    if complete is None:
        needs.lacking("the root filesystem that `make root` makes")
    catalog = Catalog(StateDir(tmp_path / "state"))
    clock = SystemClock()
    job = Job(lambda _text, _fraction: None, clock, clock.monotonic() + BUILD_TIMEOUT_S)
    built = build_image(FolderOrigin(complete.with_suffix("")), Forgetful(), catalog, job)
    index = catalog.get(built.digest)
    assert built.entries > 50_000
    assert fsck(index.index_path.read_bytes(), tmp_path, [index.table().blob_bytes]) == ""
