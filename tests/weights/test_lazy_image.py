"""Weights in a lazily mounted image: what is read comes from the chunk store, checked, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image.lazy.node import MountingNode
from tests.image.lazy.small_image import needs_root
from tests.weights.files import tensor, write_shards
from tests.weights.test_reading import Host

from glowplug.types.errors import Unavailable
from glowplug.weights.reading import Reading

pytestmark = needs_root

READING = Reading(threads=4, block_bytes=256 << 10)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MountingNode]:
    node = MountingNode(tmp_path / "node")
    yield node
    node.close()


def mounted(node: MountingNode, folder: Path, seed: int) -> tuple[Path, dict[str, bytes]]:
    shards = [
        {f"{shard}.{n}": tensor("F16", [size], seed * 100 + n) for n, size in enumerate((500_000, 3, 70_001))}
        for shard in range(3)
    ]
    write_shards(folder / "model", shards)
    image = node.add_image(folder)
    mount = node.mounts("lazy").mount(image.digest)
    assert mount.kind == "lazy"
    return mount.path / "model", {
        name: content for shard in shards for name, (_, _, content) in shard.items()
    }


def test_weights_are_read_from_a_lazily_mounted_image(node: MountingNode, tmp_path: Path) -> None:
    path, expected = mounted(node, tmp_path / "first", seed=1)
    assert Host(path, READING).read() == expected


def test_a_dead_store_is_an_error_and_never_zeros(node: MountingNode, tmp_path: Path) -> None:
    path, _ = mounted(node, tmp_path / "second", seed=2)
    host = Host(path, READING)  # the headers were read, the tensors not
    node.kill_daemon()
    with pytest.raises(Unavailable, match="cannot be read"):
        host.read()
