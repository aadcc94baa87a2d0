"""An image's small files from a region or a zone, none of them taken on trust.

The digest covers manifest, index and table; a placement and traces are advice, checked here for their form
and where they are used for their content. Lengths are bounded before anything is fetched or unpacked.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from glowplug.chunks.compression import compressed_limit_bytes, expand, expand_at_most
from glowplug.chunks.object_keys import PLACEMENT_NAME
from glowplug.chunks.objects import Objects
from glowplug.chunks.placement import Placement, placement_limit_bytes
from glowplug.chunks.table import ChunkTable
from glowplug.image.imports.graph import MAX_GRAPH_BYTES, ImportGraph
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.index.image_name import check_name, is_digest, is_digest_prefix
from glowplug.image.index.manifest import MAX_MANIFEST_BYTES, FileDigest, ImageManifest
from glowplug.image.job import Job
from glowplug.image.lazy import trace
from glowplug.image.region_refs import MAX_REF_BYTES, Ref, ref_key
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound

_log = logging.getLogger(__name__)

IMAGES_PREFIX = "images/"
INDEX_NAME, CHUNKS_NAME, MANIFEST_NAME = "index.erofs.zst", "chunks.bin.zst", "manifest.json"
IMPORTS_NAME = "imports.bin.zst"
MAX_FILE_BYTES = 1 << 30  # of an index or a table, unpacked: some ten million files
REQUEST_TIMEOUT_S = 300.0


def image_key(digest: str, name: str) -> str:
    """One of an image's small files."""
    return f"{IMAGES_PREFIX}{digest}/{name}"


class Download:
    """What is fetched on behalf of one job, and how much that was (``got_bytes``)."""

    def __init__(self, objects: Objects, job: Job) -> None:
        self._objects = objects
        self._job = job
        self.got_bytes = 0

    def resolve(self, image: str) -> Ref:
        """What a name, a digest or the beginning of one stands for. Raises NotFound, InvalidInput."""
        if is_digest(image):
            return Ref(image)
        if not is_digest_prefix(image):
            check_name(image)
            return Ref.parse(self._get(ref_key(image), MAX_REF_BYTES), image)
        listing = getattr(self._objects, "list", None)
        if listing is None:
            raise InvalidInput(f"{image} is not a whole digest.", remedy="Give all 64 digits, or a name.")
        digests = {info.key.split("/")[1] for info in listing(IMAGES_PREFIX)}
        matching = [digest for digest in digests if is_digest(digest) and digest.startswith(image)]
        if len(matching) == 1:
            return Ref(matching[0])
        why = f"{len(matching)} images in the region have a digest that begins with {image}."
        if matching:
            raise InvalidInput(why, remedy="Give more of its digits.")
        raise NotFound(why, remedy="Give a name, or the digits of another image.")

    def index_into(self, catalog: Catalog, digest: str) -> IndexFolder:
        """Fetch what the digest covers and add it. Raises NotFound, InvalidInput, ResourceExhausted .."""
        manifest = ImageManifest.parse(
            self._get(image_key(digest, MANIFEST_NAME), MAX_MANIFEST_BYTES), digest
        )
        index = self._file(image_key(digest, INDEX_NAME), manifest.index)
        chunks = self._file(image_key(digest, CHUNKS_NAME), manifest.chunks)
        return catalog.add(manifest, index, chunks)

    def placement_into(self, folder: IndexFolder, table: ChunkTable) -> None:
        """Fetch where the image's chunks lie now, in place of what was known. Raises as the other ones."""
        key, limit_bytes = image_key(folder.digest, PLACEMENT_NAME), placement_limit_bytes(len(table))
        data = expand_at_most(self._get(key, compressed_limit_bytes(limit_bytes)), limit_bytes)
        if len(Placement(data)) != len(table):
            raise InvalidInput(f"{key} is of another image.", remedy="Push the image again.")
        replace_file(folder.placement_path, data)

    def imports_into(self, folder: IndexFolder, table: ChunkTable) -> None:
        """Fetch the import graph, if there is one that is sound; one that is here already stays."""
        if folder.imports_path.exists():
            return
        remote = image_key(folder.digest, IMPORTS_NAME)
        try:
            data = expand_at_most(self._get(remote, compressed_limit_bytes(MAX_GRAPH_BYTES)), MAX_GRAPH_BYTES)
            ImportGraph.parse(data, table)
        except NotFound:
            return
        except GlowplugError as problem:
            _log.warning("%s is done without: %s", remote, problem.message)
            return
        replace_file(folder.imports_path, data)

    def trace_into(self, folder: IndexFolder, key: str, table: ChunkTable) -> None:
        """Fetch an access trace, if it can be had and is sound; one that is here already stays."""
        path = folder.traces_path / f"{key}.json"
        if path.exists():
            return
        remote = image_key(folder.digest, f"traces/{key}.json")
        try:
            data = self._get(remote, trace.max_file_bytes(table))
            trace.parse(data, table)
        except GlowplugError as problem:
            _log.warning("%s is done without: %s", remote, problem.message)
            return
        path.parent.mkdir(exist_ok=True)
        replace_file(path, data)

    def _file(self, key: str, expected: FileDigest) -> bytes:
        if expected.size_bytes > MAX_FILE_BYTES:
            raise InvalidInput(
                f"{key} would be {expected.size_bytes} bytes long, more than the {MAX_FILE_BYTES} allowed.",
                remedy="Split the image.",
            )
        return expand(self._get(key, compressed_limit_bytes(expected.size_bytes)), expected.size_bytes)

    def _get(self, key: str, limit_bytes: int) -> bytes:
        self._job.check("pulling")
        data = self._objects.read_all(key, limit_bytes, min(REQUEST_TIMEOUT_S, self._job.remaining_s()))
        self.got_bytes += len(data)
        return data


def replace_file(path: Path, data: bytes) -> None:
    """Write a file such that a reader, or a crash, finds the old content or the new."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
