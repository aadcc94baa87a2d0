"""Fuzz the tar reader, whatever is around the archive. Run as :mod:`fuzz.engine` says.

An input is a byte that chooses a sound archive to start from (or none), then changes to it. Whatever comes of
it makes a tree that could be an image, or InvalidInput; anything else is a finding.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence

from fuzz.engine import instrumented, run

with instrumented(__name__, "glowplug.image.origin"):
    from tests.image.origin.tars import sound_archives

    from glowplug.image.index.tree import Extent
    from glowplug.image.job import Job
    from glowplug.image.origin.confine import TreeBuilder
    from glowplug.image.origin.limits import ArchiveLimits
    from glowplug.image.origin.port import ByteStream, Range
    from glowplug.image.origin.sink import cut
    from glowplug.image.origin.tar import apply_tar
    from glowplug.types.clock import SystemClock
    from glowplug.types.errors import InvalidInput

TIMEOUT_S = 60
LIMITS = ArchiveLimits(
    unpacked_bytes=32 << 20,
    logical_bytes=1 << 40,
    entries=5000,
    metadata_bytes=4 << 20,
    ratio_grace_bytes=1 << 20,
)
PLAIN = sound_archives()
SEEDS = [*PLAIN, gzip.compress(PLAIN[0])]
SOUND = [bytes([number]) for number in range(len(SEEDS))]


class NoSink:
    """Takes content as the real one does, and drops it."""

    def add_contents(self, contents: Sequence[bytes]) -> list[tuple[Extent, ...]]:
        """No content at all."""
        return [() for _ in contents]

    def add_stream(
        self, stream: ByteStream, size_bytes: int, data_ranges: Sequence[Range] | None = None
    ) -> tuple[Extent, ...]:
        """Read as much as the real one would."""
        for _, pieces in cut(size_bytes, data_ranges):
            for _, length in pieces:
                stream.read(length)
        return ()


def fuzz(data: bytes) -> bool:
    """One input: as it is, and with checksums that are right, as a layer."""
    archive = _changed(data[0] % (len(SEEDS) + 1), data[1:]) if data else data
    clock = SystemClock()
    job = Job(lambda _text, _fraction: None, clock, clock.monotonic() + TIMEOUT_S)
    taken = []
    for packed, whiteouts in ((archive, False), (_with_checksums(archive), True)):
        builder = TreeBuilder(LIMITS)
        try:
            apply_tar(io.BytesIO(packed), builder, NoSink(), LIMITS, job, whiteouts=whiteouts)  # type: ignore[arg-type]
            builder.finish()
        except InvalidInput:
            continue
        taken.append(packed)
    return bool(taken)


def _changed(seed: int, changes: bytes) -> bytes:
    """A sound archive after changes of {position, length, bytes}: fuzzing starts inside the format."""
    if seed == len(SEEDS):
        return changes
    archive = bytearray(SEEDS[seed])
    at = 0
    while at + 3 <= len(changes):
        position = int.from_bytes(changes[at : at + 2], "little") % len(archive)
        length = 1 + changes[at + 2] % 12
        archive[position : position + length] = changes[at + 3 : at + 3 + length].ljust(length, b"\0")
        at += 3 + length
    return bytes(archive)


def _with_checksums(archive: bytes) -> bytes:
    """Otherwise nearly every change would end at a header's checksum."""
    fixed = bytearray(archive)
    for at in range(0, len(fixed) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        if fixed[at + 257 : at + 262] == b"ustar":
            fixed[at + 148 : at + 156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(fixed[at : at + tarfile.BLOCKSIZE])
    return bytes(fixed)


if __name__ == "__main__":
    run(fuzz)
