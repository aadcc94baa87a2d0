"""Answers and errors on the terminal: tables for people, the API's JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glowplug.cli.session import Session
from glowplug.observe.waterfall import printable
from glowplug.types.errors import GlowplugError

_MAX_DETAIL_LINES = 30

Row = Sequence[str | Text]
"""One row of a table: text from outside, or text that is styled."""


def print_json(session: Session, value: Any) -> None:
    """Write models (or plain data) to stdout in the API's own JSON, indented, never wrapped or coloured."""
    session.out.file.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def print_table(session: Session, columns: Sequence[str], rows: Iterable[Row], empty: str) -> None:
    """A table without frames; ``empty`` says what no rows mean. Cells are text from outside: no markup."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    count = 0
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
        count += 1
    if count:
        session.out.print(table)
    else:
        session.say(empty)


def print_error(messages: Console, error: GlowplugError) -> None:
    """What happened, the details, what to do: in red, without markup, without control characters."""
    messages.print(Text.assemble(("Error: ", "bold red"), (printable(error.message), "red")), soft_wrap=True)
    for line in _detail_lines(error.details):
        messages.print(Text("  " + printable(line), style="bright_black"), soft_wrap=True)
    if error.remedy:
        messages.print(Text.assemble(("Remedy: ", "bold"), printable(error.remedy)), soft_wrap=True)


def print_json_error(messages: Console, error: GlowplugError) -> None:
    """The error as the API would send it, on one line."""
    messages.file.write(json.dumps(error.to_dict(), ensure_ascii=False, default=str) + "\n")


def _detail_lines(details: dict[str, Any]) -> list[str]:
    """Short details on one line; logs and tracebacks, which have lines of their own, below."""
    short, long = [], []
    for name, value in details.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value) and len(value) > 1:
            long += value
        elif isinstance(value, str) and "\n" in value:
            long += value.splitlines()
        elif value not in (None, "", [], {}):
            short.append(f"{name}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
    return ([", ".join(short)] if short else []) + [f"| {line}" for line in long[-_MAX_DETAIL_LINES:]]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
