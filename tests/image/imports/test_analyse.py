"""From the files of an image to what a command reads, beside what a real interpreter loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image.lazy.node import Node, a_job

from glowplug.chunks.compression import compress
from glowplug.chunks.region import Region
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.image import distribute
from glowplug.image.imports.command import predicted_chunks
from glowplug.image.imports.graph import ImportGraph
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.types.paths import StateDir

PACKAGES = (
    "json",
    "asyncio",
    "logging",
    "concurrent",
    "collections",
    "importlib",
    "email",
    "re",
    "encodings",
)
VERSION = f"python3.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with this interpreter, a standard library, and one package that has an extension module."""
    root = tmp_path_factory.mktemp("imports") / "root"
    library = root / "usr/lib" / VERSION
    library.mkdir(parents=True)
    source = Path(sysconfig.get_path("stdlib"))
    for module in source.glob("*.py"):
        shutil.copy(module, library)
    for package in PACKAGES:
        shutil.copytree(source / package, library / package)
    shutil.copytree(source / "lib-dynload", library / "lib-dynload", ignore=shutil.ignore_patterns("*test*"))
    (root / "usr/bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), root / "usr/bin" / VERSION)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(library)], check=True)
    site = library / "site-packages/app"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("from . import part\n")
    (site / "part.py").write_text("import asyncio\ndef later():\n    import email\n")
    (root / "usr/bin/serve").write_text("#!/usr/bin/python3\nfrom app import part\n")
    return root


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "node")
    yield made
    made.close()


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return Region(ObstoreObjects(str(tmp_path / "region")), tmp_path / "kept")


def files_of(folder: IndexFolder, chunks: list[int]) -> set[str]:
    """Files that have some of these chunks, and not one more name for the same content."""
    wanted = {folder.table()[number].id for number in chunks}
    return {
        path.decode()
        for path, inode in folder.tree().walk()
        for extent in inode.extents
        if any(chunk.id in wanted for chunk in extent.chunks)
    }


def loaded_by(root: Path, module: str) -> set[str]:
    """Files of the root that the interpreter loads, as paths in it."""
    script = f"""
import sys, {module}
for one in list(sys.modules.values()):
    spec = getattr(one, "__spec__", None)
    if spec is not None and spec.has_location:
        print(spec.cached or spec.origin)
"""
    environment = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(root / "usr/lib" / VERSION / "site-packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-S", "-c", script], env=environment, capture_output=True, check=True
    )
    inside = str(root)
    return {path.removeprefix(inside) for path in ran.stdout.decode().splitlines() if path.startswith(inside)}


def test_a_push_tells_other_nodes_what_commands_read(
    root: Path, node: Node, region: Region, tmp_path: Path
) -> None:
    folder = node.add_image(root)
    distribute.push(folder, "app", region, node.ssd, a_job())
    other = Catalog(StateDir(tmp_path / "other"))
    pulled = other.get(distribute.pull("app", region, other, a_job())["digest"])
    graph = ImportGraph.parse(pulled.imports_path.read_bytes(), pulled.table())

    real = loaded_by(root, "asyncio")
    read = files_of(pulled, list(predicted_chunks(graph, ["python3", "-c", "import asyncio"])))
    assert len(real) > 40
    assert real - read == set()
    assert f"/usr/bin/{VERSION}" in read
    assert not any("/email/" in path for path in read)

    served = files_of(pulled, list(predicted_chunks(graph, ["serve"])))
    assert {"/usr/bin/serve", f"/usr/lib/{VERSION}/site-packages/app/part.py"} <= served
    assert real - served == set()


def test_a_second_push_looks_at_nothing_again(root: Path, node: Node, region: Region) -> None:
    folder = node.add_image(root)
    distribute.push(folder, "app", region, node.ssd, a_job())
    before = folder.imports_path.stat()
    distribute.push(folder, "again", region, node.ssd, a_job())
    assert folder.imports_path.stat() == before


def test_a_damaged_graph_is_made_anew_or_done_without(
    root: Path, node: Node, region: Region, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = node.add_image(root)
    folder.imports_path.write_bytes(b"something else")
    distribute.push(folder, "app", region, node.ssd, a_job())
    assert ImportGraph.parse(folder.imports_path.read_bytes(), folder.table()).is_useful
    (remote,) = (tmp_path / "region").rglob("imports.bin.zst")
    for content in (b"no zstd", compress(b"no graph")):
        remote.write_bytes(content)
        other = Catalog(StateDir(tmp_path / content.hex()))
        pulled = other.get(distribute.pull("app", region, other, a_job())["digest"])
        assert not pulled.imports_path.exists()
    assert "is done without" in caplog.text


def test_an_image_without_programs_has_none(node: Node, region: Region, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights").write_bytes(b"w" * 5000)
    folder = node.add_image(tmp_path / "data")
    distribute.push(folder, "data", region, node.ssd, a_job())
    assert not folder.imports_path.exists()
    assert list((tmp_path / "region").rglob("imports.bin.zst")) == []


def test_a_push_waits_for_no_analysis_that_takes_too_long(
    root: Path, node: Node, region: Region, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distribute, "ANALYSIS_S", 0.0)
    folder = node.add_image(root)
    assert distribute.push(folder, "app", region, node.ssd, a_job())["digest"] == folder.digest
    assert not folder.imports_path.exists()
    assert "takes more than 0 s" in caplog.text
