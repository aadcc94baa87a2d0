"""What the benchmark measures with, made once and kept: a root, packed images, regions, a node that has all.

All of it lies in one folder of an ext4 filesystem (about 25 GB), so a second run starts at once. Remove the
folder when done, or when a format has changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from bench_node import Node, job
from machine import container, read_tree
from native_tools import NativeTools

from glowplug.chunks.region import Region
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.image import distribute
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.lazy import trace

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE, LAZY, ORDERED = "vllm", "vllm-through-daemon", "vllm-ordered"
BIG_BYTES = 2 << 30
MAKE_TIMEOUT_S = 3600.0


class Workshop:
    """``folder`` holds everything that is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.tools = NativeTools(folder / "bin")

    @cached_property
    def root(self) -> Path:
        """The root filesystem with vLLM, on ext4."""
        made = subprocess.run(
            [str(REPOSITORY / "scripts" / "vllm_root.sh")],
            check=True, stdout=subprocess.PIPE, text=True, timeout=MAKE_TIMEOUT_S,
        )  # fmt: skip
        return Path(made.stdout.splitlines()[-1])

    @cached_property
    def python(self) -> str:
        """The engine's interpreter in the root."""
        (found,) = self.root.glob("var/cache/glowplug/engines/vllm-*/bin/python")
        return f"/{found.relative_to(self.root)}"

    @property
    def root_venv(self) -> str:
        """The engine's packages, below the root."""
        return f"{Path(self.python).parents[1]}/lib/python3.11/site-packages".lstrip("/")

    def importing(self, package: str) -> list[str]:
        """A command that imports a package and ends."""
        return [self.python, "-c", f"import {package}"]

    @cached_property
    def full(self) -> Node:
        """A node that has all content, as ``IMAGE`` and, to be mounted through the daemon, as ``LAZY``."""
        node = Node(self.folder / "full")
        if IMAGE not in node.catalog.names():
            read_tree(self.root)
            node.build(self.root, IMAGE)
        if LAZY not in node.catalog.names():
            add_variant(node, IMAGE, LAZY)
        assert node.mounts.graduate(node.folder(IMAGE).digest)
        return node

    @cached_property
    def region(self) -> Path:
        """A region's folder that has the image in the order of its tree."""
        return self._pushed("region", IMAGE)

    @cached_property
    def ordered_region(self) -> Path:
        """Another, whose image has what ``import torch`` reads first."""
        folder = self.full.folder(IMAGE)
        if ORDERED not in self.full.catalog.names():
            table = folder.table()
            order = trace.order_for_layout(trace.Trace("", self.torch_trace()), table)
            self.full.build(self.root, ORDERED, order)
        return self._pushed("region-ordered", ORDERED)

    def torch_trace(self) -> array[int]:
        """The chunks that ``import torch`` reads, as the daemon saw it."""
        node, digest = self.full, self.full.folder(LAZY).digest
        mounted = node.mounts.mount(digest, direct=False)
        node.client().reset_trace(digest)
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        container(mounted.path, self.importing("torch"))
        found = node.client().trace(digest)
        node.mounts.unmount(digest)
        return found

    @cached_property
    def erofs(self) -> Path:
        """The root as one EROFS file with all content in it, uncompressed: a whole image to download."""
        file = self.folder / "whole" / "image.erofs"
        return _made(file, ["mkfs.erofs", "--quiet", "{}", str(self.root)])

    @cached_property
    def squashfs(self) -> Path:
        """The root as a squashfs file, zstd."""
        file = self.folder / "whole" / "image.squashfs"
        return _made(file, ["mksquashfs", str(self.root), "{}", "-comp", "zstd", "-quiet", "-no-progress"])

    @cached_property
    def big_folder(self) -> Path:
        """A folder with one file of 2 GiB that nothing compresses."""
        folder = self.folder / "big"
        folder.mkdir(exist_ok=True)
        file = folder / "file.bin"
        if not file.exists():
            fresh = folder / ".new"
            with fresh.open("wb") as out:
                for _ in range(BIG_BYTES >> 24):
                    out.write(os.urandom(1 << 24))
            fresh.rename(file)
        return folder

    def close(self) -> None:
        """End what runs; what was made stays."""
        if "full" in self.__dict__:
            self.full.close()

    def _pushed(self, place: str, image: str) -> Path:
        folder = self.folder / place
        if not (folder / "refs").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            region = Region(ObstoreObjects(str(folder)))
            distribute.push(self.full.folder(image), image, region, self.full.ssd, job())
            region.close()
        return folder


def add_variant(node: Node, image: str, name: str) -> str:
    """The same image under another digest (another label), so that it can be mounted in another way."""
    folder = node.folder(image)
    config = ImageConfig(labels={"bench": name})
    manifest = folder.manifest.model_copy(update={"config": config})
    node.catalog.add(manifest, folder.index_path.read_bytes(), folder.chunks_path.read_bytes())
    node.catalog.name(name, manifest.image_digest)
    return manifest.image_digest


def _made(file: Path, command: Sequence[str]) -> Path:
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        subprocess.run(
            [part.format(fresh) for part in command],
            check=True,
            timeout=MAKE_TIMEOUT_S,
            stdout=subprocess.DEVNULL,
        )
        fresh.rename(file)
    return file
