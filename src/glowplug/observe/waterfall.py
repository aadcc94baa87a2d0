"""One cold start as a picture in the terminal: which stage took which seconds, and after which other.

It shows what the record says and nothing else: seconds that no stage accounts for get a line of their own,
and a fallback or an error is spelled out below the bars. Text from outside (reasons, errors) is printed
without control characters, so that a server's last words cannot drive the terminal.
"""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.replica import Stage, StartPath

UNACCOUNTED = "unaccounted"
_MINIMUM_WIDTH = 40
_LABEL_COLUMNS = 13  # "first_answer" and a space
_NUMBER_COLUMNS = 17  # " 1234.56 s  100 %"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_PATH_STYLES = {
    StartPath.COLD: "dodger_blue2",
    StartPath.CPU_SNAPSHOT: "orange1",
    StartPath.GPU_SNAPSHOT: "spring_green3",
    StartPath.PARKED: "medium_orchid",
}
_OUTCOME_STYLES = {Outcome.ANSWERED: "green", Outcome.FAILED: "bold red", Outcome.ABANDONED: "yellow"}


def waterfall(record: ColdStartRecord, width: int = 60) -> RenderableType:
    """Bars of ``record``'s stages, one below the other, in ``width`` columns in all (at least 40)."""
    spans = _spans(record)
    scale_s = max(_seconds(record.total_s), spans[-1][2] if spans else 0.0)
    bar_columns = max(width, _MINIMUM_WIDTH) - _LABEL_COLUMNS - _NUMBER_COLUMNS
    table = Table.grid(padding=0)
    table.add_column(width=_LABEL_COLUMNS, no_wrap=True)
    table.add_column(width=bar_columns, no_wrap=True)
    table.add_column(width=_NUMBER_COLUMNS, no_wrap=True, justify="right")
    for name, start_s, end_s in spans:
        style = "bright_black" if name == UNACCOUNTED else _PATH_STYLES[record.path]
        table.add_row(
            Text(name),
            Text(_bar(start_s, end_s, scale_s, bar_columns), style=style),
            Text(_numbers(end_s - start_s, scale_s)),
        )
    return Group(_headline(record), table, *_notes(record))


def _spans(record: ColdStartRecord) -> list[tuple[str, float, float]]:
    """``(name, start_s, end_s)`` of each stage, one after the other, then what no stage accounts for."""
    spans = []
    elapsed_s = 0.0
    for stage in Stage:
        if stage in record.stages_s:
            end_s = elapsed_s + _seconds(record.stages_s[stage])
            spans.append((stage.value, elapsed_s, end_s))
            elapsed_s = end_s
    missing_s = _seconds(record.total_s) - elapsed_s
    # Below a hundredth of the whole it is scheduling noise, and would only be a distraction.
    if missing_s > 0.01 * _seconds(record.total_s):
        spans.append((UNACCOUNTED, elapsed_s, elapsed_s + missing_s))
    return spans


def _seconds(value: float) -> float:
    """A duration fit for drawing: what is not a positive number of seconds has no length."""
    return value if math.isfinite(value) and value > 0 else 0.0


def _bar(start_s: float, end_s: float, scale_s: float, columns: int) -> str:
    if scale_s <= 0:
        return ""
    first = min(int(start_s / scale_s * columns), columns - 1)
    # Lengths in eighths of a column; what took any time at all stays visible.
    eighths = round((end_s - start_s) / scale_s * columns * 8)
    eighths = min(max(eighths, 1 if end_s > start_s else 0), (columns - first) * 8)
    whole, rest = divmod(eighths, 8)
    return " " * first + _EIGHTHS[8] * whole + (_EIGHTHS[rest] if rest else "")


def _numbers(seconds: float, scale_s: float) -> str:
    percent = 100.0 * seconds / scale_s if scale_s > 0 else 0.0
    return f"{seconds:.2f} s {percent:4.0f} %"


def _headline(record: ColdStartRecord) -> Text:
    return Text.assemble(
        (printable(f"{record.app}/{record.server}"), "bold"),
        "  ",
        (record.path.value, f"bold {_PATH_STYLES[record.path]}"),
        "  ",
        (f"{record.total_s:.2f} s", "bold"),
        "  ",
        (record.outcome.value, _OUTCOME_STYLES[record.outcome]),
    )


def _notes(record: ColdStartRecord) -> list[Text]:
    facts = [f"replica {record.replica_id}"]
    if record.snapshot_id:
        facts.append(f"snapshot {record.snapshot_id}")
    if record.mounted_as:
        facts.append(f"image mounted {record.mounted_as}")
    facts += [f"{words} from {tier}" for tier, words in read_by_tier(record).items()]
    notes = [Text(printable(" · ".join(facts)), style="bright_black")]
    if record.fallback_reason:
        notes.append(Text(printable(f"why cold: {record.fallback_reason}"), style="yellow"))
    if record.error:
        notes.append(Text(printable(f"error: {record.error}"), style="red"))
    return notes


def read_by_tier(record: ColdStartRecord) -> dict[str, str]:
    """What each tier gave, in words: ``21.30 MB in 57 chunks``."""
    words = {}
    for tier, count in record.bytes_by_tier.items():
        chunks = record.chunks_by_tier.get(tier, 0)
        if count:
            words[tier] = format_bytes(count) + (f" in {chunks} chunks" if chunks else "")
    return words


def format_bytes(count: int) -> str:
    """A count of bytes for people, in decimal units: ``1.96 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def printable(text: str) -> str:
    """``text`` in which every control character (also line ends) is a visible replacement."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
