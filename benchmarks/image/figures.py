"""The figures that issue 3 promises, computed from the samples and judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rounds import Sample, Samples, median

NATIVE, GRADUATED, LAZY = "native ext4", "graduated", "through daemon"
WARM = "native ext4, warm"
TRACED, ORDERED, UNTRACED = "with trace", "with trace, laid out by it", "without trace"
FILES = "file-at-a-time FUSE"


class Figure(NamedTuple):
    """One promise: a number that is to be at most (``is_floor``: at least) ``budget``."""

    name: str
    value: float
    budget: float
    unit: str = "x"
    is_floor: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether it is."""
        return self.value >= self.budget if self.is_floor else self.value <= self.budget

    def row(self) -> tuple[str, str, str, str]:
        """For a table."""
        sign = ">=" if self.is_floor else "<="
        return (
            self.name,
            f"{sign} {self.budget:g} {self.unit}",
            f"{self.value:.3g} {self.unit}",
            "yes" if self.is_kept else "**no**",
        )


def of_index(size: Sample, builds: Samples, mounts: Samples) -> Iterator[Figure]:
    """Index, build, mount."""
    yield Figure("mount through the daemon", median(mounts[LAZY]) * 1e3, 100, "ms")
    yield Figure("mount from local packs", median(mounts[GRADUATED]) * 1e3, 100, "ms")
    yield Figure("chunks read by a mount", median(mounts[LAZY], "chunks_read"), 0, "")
    yield Figure("index, as transferred", size["sent_bytes_per_entry"], 120, "bytes a file")
    yield Figure("index, as it lies here", size["raw_bytes_per_entry"], 120, "bytes a file")
    (built,) = builds.values()
    yield Figure("index built from a warm folder", median(built, "mb_per_s"), 300, "MB/s", is_floor=True)


def of_imports(package: str, found: Samples) -> Iterator[Figure]:
    """All chunks on the SSD."""
    name = f"`import {package}`, all on SSD"
    yield Figure(f"{name}, warm", _ratio(found, GRADUATED, "warm_s"), 1.05)
    yield Figure(f"{name}, caches dropped", _ratio(found, GRADUATED, "cold_s"), 1.0)
    yield Figure(f"{name}, second container", _ratio(found, GRADUATED, "second_s"), 1.05)


def of_empty_cache(latency_ms: float, found: Samples) -> Iterator[Figure]:
    """Nothing on the SSD."""
    name = f"`import torch`, empty cache, {latency_ms:g} ms"
    near = latency_ms < 10
    warm = median(found[WARM])
    yield Figure(f"{name}, with trace", median(found[TRACED]) / warm, 1.25 if near else 1.4)
    yield Figure(f"{name}, with trace, laid out by it", median(found[ORDERED]) / warm, 1.25 if near else 1.4)
    yield Figure(
        f"{name}, share of the image fetched", median(found[TRACED], "share_of_image") * 100, 20, "%"
    )
    yield Figure(f"{name}, without trace", median(found[UNTRACED]) / warm, 2 if near else 3)
    if FILES in found:
        ahead = median(found[FILES]) / median(found[TRACED])
        yield Figure(f"{name}, file-at-a-time FUSE is slower by", ahead, 3 if near else 8, is_floor=True)


def of_whole_reads(found: Samples) -> Iterator[Figure]:
    """``tar``."""
    faster = median(found[NATIVE]) / median(found[GRADUATED])
    yield Figure("`tar` of the whole image, caches dropped: faster than native", faster, 1.8, is_floor=True)
    yield Figure("page cache per byte read, graduated", median(found[GRADUATED], "page_cache_ratio"), 1.15)
    yield Figure("page cache per byte read, through daemon", median(found[LAZY], "page_cache_ratio"), 2.1)


def of_file_reads(found: Samples) -> Iterator[Figure]:
    """2 GiB."""
    lazy, native = found[LAZY], found[NATIVE]
    cached = median(lazy, "from_cached_chunks_mb_per_s")
    yield Figure(
        "2 GiB in order through the daemon, chunks in page cache", cached / 1e3, 2, "GB/s", is_floor=True
    )
    disk = median(found["disk (O_DIRECT)"], "cold_mb_per_s")
    for kind in (LAZY, GRADUATED):
        rate = median(found[kind], "cold_mb_per_s") / disk
        yield Figure(f"2 GiB in order, {kind}, caches dropped, of the disk's rate", rate, 0.9, is_floor=True)
    for kind in (LAZY, GRADUATED):
        again = median(found[kind], "again_mb_per_s") / median(native, "again_mb_per_s")
        yield Figure(f"2 GiB again, {kind}, of native", again, 0.95, is_floor=True)
        for key, what in (("random_cold_per_s", "1 reader"), ("random_cold_8_per_s", "8 readers")):
            rate = median(found[kind], key) / median(native, key)
            yield Figure(
                f"4 KiB at random, {kind}, {what}, caches dropped, of native", rate, 0.8, is_floor=True
            )
        eight = median(found[kind], "readers_8_cold_mb_per_s") / median(native, "readers_8_cold_mb_per_s")
        yield Figure(f"8 readers in order, {kind}, caches dropped, of native", eight, 0.9, is_floor=True)
        yield Figure(
            f"page cache per byte of the 2 GiB, {kind}",
            median(found[kind], "page_cache_ratio"),
            1.15 if kind == GRADUATED else 2.1,
        )


def of_twenty(found: Samples) -> Iterator[Figure]:
    """20 images."""
    yield Figure("20 mounts", median(found[LAZY]), 2, "s")
    yield Figure("daemon with 20 images mounted", median(found[LAZY], "daemon_mb"), 120, "MB")
    yield Figure("daemon after reads of all 20", median(found[LAZY], "daemon_after_reads_mb"), 120, "MB")


def of_dedup(found: Mapping[str, float]) -> Iterator[Figure]:
    """One more pip package."""
    yield Figure(
        "two images, one package apart, share on SSD",
        found["shared_of_possible"] * 100,
        92,
        "%",
        is_floor=True,
    )
    yield Figure(
        "the same, over the network", found["pushed_shared_of_possible"] * 100, 92, "%", is_floor=True
    )


def _ratio(found: Samples, case: str, key: str) -> float:
    return median(found[case], key) / median(found[NATIVE], key)
