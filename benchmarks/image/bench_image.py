"""Every figure that issue 3 promises of images, beside native ext4 and other ways to start from an image.

    .venv/bin/python benchmarks/image/bench_image.py --runs 9

Needs root, /dev/fuse, Debian's libfuse3-dev, squashfuse, squashfs-tools, erofs-utils, and about 35 GB on ext4
for what it makes once (``--work``; a second run starts at once). The cases of a comparison run in turns. The
distant store is a server in C on this machine: 2 or 20 ms before each answer, 100 MB/s a connection; it takes
its share of the same cores, in favour of nobody. Writes image.json (all samples) and image.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))

import dedup
import figures
import index_figures
import local_speed
import remote_speed
import report
from delayed_store import ceiling_bytes_per_s
from rounds import Samples, summary
from workshop import Workshop

LATENCIES_MS = (2.0, 20.0)


class Bench:
    """The sections, in order; each leaves samples and figures."""

    def __init__(
        self, workshop: Workshop, runs: int, latencies_ms: Sequence[float], *, with_peers: bool
    ) -> None:
        """``with_peers``: beside what others do, too, and not only beside native ext4."""
        self.samples: dict[str, Any] = {}
        self.figures: list[figures.Figure] = []
        self._workshop = workshop
        self._runs = runs
        self._latencies_ms = latencies_ms
        self._with_peers = with_peers

    @property
    def sections(self) -> dict[str, Callable[[], None]]:
        """By name, as ``--only`` takes them."""
        return {
            "index": self._index,
            "torch": lambda: self._imports("torch", with_squashfuse=self._with_peers),
            "vllm": lambda: self._imports("vllm", with_squashfuse=False),
            "empty": self._empty_cache,
            "tar": self._whole_reads,
            "file": self._file_reads,
            "twenty": self._twenty,
            "dedup": self._dedup,
        }

    def _index(self) -> None:
        size = index_figures.index_size(self._workshop)
        builds = index_figures.builds(self._workshop, self._runs)
        mounts = index_figures.mounts(self._workshop, self._runs)
        self.samples |= {"index": size, "build": builds, "mount": mounts}
        self.figures += figures.of_index(size, builds, mounts)

    def _imports(self, package: str, *, with_squashfuse: bool) -> None:
        found = local_speed.imports(self._workshop, package, self._runs, with_squashfuse=with_squashfuse)
        self.samples[f"import {package}"] = found
        self.figures += figures.of_imports(package, found)

    def _empty_cache(self) -> None:
        if self._with_peers:
            self.samples["store_ceiling_mb_per_s"] = (
                ceiling_bytes_per_s(self._workshop.tools, self._workshop.erofs) / 1e6
            )
        for latency_ms in self._latencies_ms:
            found = remote_speed.empty_cache(
                self._workshop, latency_ms, self._runs, with_peers=self._with_peers
            )
            self.samples[f"import torch, empty cache, {latency_ms:g} ms"] = found
            self.figures += figures.of_empty_cache(latency_ms, found)

    def _whole_reads(self) -> None:
        found = local_speed.whole_reads(self._workshop, self._runs)
        self.samples["tar"] = found
        self.figures += figures.of_whole_reads(found)

    def _file_reads(self) -> None:
        found = local_speed.file_reads(self._workshop, self._runs)
        self.samples["file"] = found
        self.figures += figures.of_file_reads(found)

    def _twenty(self) -> None:
        found = index_figures.twenty(self._workshop, self._runs)
        self.samples["twenty"] = found
        self.figures += figures.of_twenty(found)

    def _dedup(self) -> None:
        found = dedup.dedup(self._workshop.folder / "dedup")
        self.samples["dedup"] = found
        self.figures += figures.of_dedup(found)


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9, help="of each case")
    parser.add_argument(
        "--only",
        nargs="+",
        default=None,
        metavar="SECTION",
        help="some of: index torch vllm empty tar file twenty dedup",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("/var/tmp/glowplug-bench"),
        help="where what it needs is made and kept",
    )
    parser.add_argument(
        "--latency-ms",
        nargs="+",
        type=float,
        default=LATENCIES_MS,
        metavar="MS",
        help="of the distant store",
    )
    parser.add_argument(
        "--without-peers",
        action="store_true",
        help="beside native ext4 only, where comparing with others takes minutes (torch, empty)",
    )
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()

    workshop = Workshop(options.work)
    bench = Bench(workshop, options.runs, options.latency_ms, with_peers=not options.without_peers)
    machine = report.machine()
    started_s = time.monotonic()
    try:
        for name, section in bench.sections.items():
            if options.only is None or name in options.only:
                section()
    finally:
        workshop.close()
    told = {name: summary(found) if _is_samples(found) else found for name, found in bench.samples.items()}
    result = {
        "machine": machine,
        "runs": options.runs,
        "took_s": round(time.monotonic() - started_s),
        "figures": [figure._asdict() | {"is_kept": figure.is_kept} for figure in bench.figures],
        "summary": told,
        "samples": bench.samples,
    }
    report.write(options.output, "image", result, page(machine, options.runs, bench))
    return 0 if all(figure.is_kept for figure in bench.figures) else 1


def page(machine: dict[str, Any], runs: int, bench: Bench) -> list[str]:
    """What people read: the promises, then every case's medians."""
    lines = [f"Images: {machine}, {runs} runs of each case, medians", ""]
    lines += report.table(
        ("promise", "budget", "measured", "kept"), [figure.row() for figure in bench.figures]
    )
    for name, found in bench.samples.items():
        lines += ["", f"**{name}**", ""]
        if not _is_samples(found):
            lines.append(
                ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                if isinstance(found, dict)
                else f"{found:.4g}"
            )
            continue
        lines += _cases(found)
    return lines


def _cases(found: Samples) -> list[str]:
    keys = list(dict.fromkeys(key for samples in found.values() for sample in samples for key in sample))
    told = summary(found)
    rows = [
        (
            case,
            *(
                f"{told[case][key]['p50']:.4g} ({told[case][key]['p0']:.4g}-{told[case][key]['p100']:.4g})"
                if key in told[case]
                else ""
                for key in keys
            ),
        )
        for case in found
    ]
    return report.table(("case", *keys), rows)


def _is_samples(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(value, list) for value in found.values())


if __name__ == "__main__":
    sys.exit(main())
