"""Images for tests: written blob by blob, as hostile as need be, or made by umoci from real folders."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image.index.nasty_folder import ACL, CAPABILITY

from glowplug.image.origin.oci_manifest import OCI_INDEX, OCI_MANIFEST

PROGRAM_TIMEOUT_S = 120
GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
HERE = {"os": "linux", "architecture": "amd64"}


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False, **options
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout} {ended.stderr}"
    return ended


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(entries: Mapping[str, bytes | None]) -> bytes:
    """An archive of these files in this order; None: a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mtime = 1_600_000_000
            info.mode = 0o755 if content is None else 0o644
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


@dataclass
class BlobFolder:
    """An OCI layout, filled by hand; nothing keeps it from being wrong."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Store a blob; returns its descriptor."""
        digest = digest_of(data)
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def path(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def add_json(self, document: object, media_type: str, **more: Any) -> dict[str, Any]:
        return self.add(json.dumps(document).encode(), media_type, **more)

    def add_layer(self, archive: bytes, **more: Any) -> tuple[dict[str, Any], str]:
        """A gzip layer: its descriptor and its diff_id."""
        return self.add(gzip.compress(archive, 1, mtime=0), GZIP_LAYER, **more), digest_of(archive)

    def add_image(
        self,
        layers: Sequence[tuple[dict[str, Any], str]],
        *,
        config: Mapping[str, Any] | None = None,
        platform: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """An image of layers that are there: the descriptor of its manifest."""
        platform = HERE if platform is None else platform
        diff_ids = [diff_id for _, diff_id in layers]
        document = {**platform, "config": config or {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.add_json(document, CONFIG),
            "layers": [descriptor for descriptor, _ in layers],
        }
        return self.add_json(manifest, OCI_MANIFEST)

    def add_index(self, *images: dict[str, Any]) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(images)}
        return self.add_json(document, OCI_INDEX)

    def publish(self, *images: dict[str, Any], tag: str | None = "app") -> None:
        """Make these what ``index.json`` names."""
        annotations = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        document = {"schemaVersion": 2, "manifests": [{**image, **annotations} for image in images]}
        (self.folder / "index.json").write_text(json.dumps(document))


def simple_layout(folder: Path, *archives: bytes, config: Mapping[str, Any] | None = None) -> BlobFolder:
    """A layout with one image, ``app``, of these layers."""
    blobs = BlobFolder(folder)
    blobs.publish(blobs.add_image([blobs.add_layer(archive) for archive in archives], config=config))
    return blobs


def make_umoci_layout(folder: Path, work: Path) -> Path:
    """An image ``app`` of four layers with everything that layers are hard about; returns the layout."""
    layout = folder / "layout"
    run("umoci", "init", "--layout", layout)
    image = f"{layout}:app"
    run("umoci", "new", "--image", image)
    for number, change in enumerate((_first_layer, _second_layer, _third_layer)):
        bundle = work / f"bundle{number}"
        run("umoci", "unpack", "--image", image, bundle)
        change(bundle / "rootfs")
        run("umoci", "repack", "--image", image, bundle)
        shutil.rmtree(bundle)
    (work / "opaque").mkdir()
    (work / "opaque" / "only this").write_text("is left")
    run("umoci", "insert", "--opaque", "--image", image, work / "opaque", "/srv/data")
    run(
        "umoci", "config", "--image", image,
        "--config.env", "GREETING=hello=world", "--config.entrypoint", "/bin/program",
        "--config.cmd", "--now",
        "--config.workingdir", "/srv", "--config.user", "1000:1000", "--config.label", "team=images",
    )  # fmt: skip
    return layout


def make_shell_root(root: Path, *programs: str) -> None:
    """Little more than these programs of the machine's, with the libraries that they link to."""
    for program in programs:
        libraries = run("ldd", program)
        files = [word for word in libraries.stdout.split() if word.startswith("/")]
        for path in (program, *files):
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def unpack_by_umoci(layout: Path, tag: str, work: Path) -> Path:
    """What umoci makes of an image: the folder of its root."""
    bundle = work / f"unpacked-{tag}"
    run("umoci", "unpack", "--image", f"{layout}:{tag}", bundle)
    return bundle / "rootfs"


def _first_layer(root: Path) -> None:
    for folder in ("bin", "etc/conf.d", "srv/data/deep", "var/spool", "opt/replaced", "tmp"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    generator = random.Random(3)
    program = root / "bin" / "program"
    program.write_bytes(generator.randbytes(70_000))
    program.chmod(0o4755)
    (root / "bin" / "again").hardlink_to(program)
    (root / "bin" / "ping").write_bytes(b"#!")
    os.setxattr(root / "bin" / "ping", "security.capability", CAPABILITY)
    (root / "etc" / "settings").write_text("old")
    os.setxattr(root / "etc" / "settings", "user.origin", b"\0binary\xff")
    os.setxattr(root / "etc" / "conf.d", "system.posix_acl_default", ACL)
    (root / "etc" / "conf.d" / "10-first").write_text("first")
    (root / "etc" / "conf.d" / "20-second").write_text("second")
    (root / "lib").symlink_to("usr/lib")
    (root / "srv" / "data" / "deep" / "hidden").write_text("by the opaque directory")
    (root / "opt" / "replaced" / "file").write_text("a directory that becomes a file")
    (root / "opt" / "gone").write_text("removed")
    with (root / "var" / "sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(2 << 20)
        file.write(generator.randbytes(1000))
    (root / "var" / "large").write_bytes(generator.randbytes((2 << 20) + 17))
    os.mkfifo(root / "var" / "spool" / "fifo")
    os.mknod(root / "var" / "spool" / "device", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    os.mknod(root / "var" / "spool" / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    (root / "var" / "owned").write_text("by nobody we know")
    os.chown(root / "var" / "owned", 3_000_000_000, 100_000)
    os.utime(root / "var" / "owned", ns=(-5_000_000_000, -5_000_000_000))
    (root / "größe ✓").write_text("a name")


def _second_layer(root: Path) -> None:
    (root / "etc" / "settings").write_text("new")
    (root / "etc" / "conf.d" / "10-first").unlink()
    shutil.rmtree(root / "opt" / "replaced")
    (root / "opt" / "replaced").write_text("a file now")
    (root / "opt" / "gone").unlink()
    (root / "bin" / "third name").hardlink_to(root / "bin" / "program")
    (root / "var" / "spool").chmod(0o2770)


def _third_layer(root: Path) -> None:
    (root / "opt" / "replaced").unlink()
    (root / "opt" / "replaced").mkdir(mode=0o700)
    (root / "opt" / "replaced" / "again").write_text("a directory again")
    (root / "lib").unlink()
    (root / "lib").mkdir()
    (root / "lib" / "library").write_text("a directory where a link was")
    shutil.rmtree(root / "etc" / "conf.d")
    (root / "etc" / "conf.d").mkdir()
    (root / "etc" / "conf.d" / "30-third").write_text("third")
