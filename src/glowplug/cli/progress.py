"""Progress of builds, deploys, captures and installs: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from glowplug.cli.session import Session
from glowplug.observe.waterfall import printable

_COUNT_EVERY_S = 5.0

Report = Callable[[str, float | None], None]
"""Told what happens now and how far it is (0 to 1; None: unknown)."""


@contextmanager
def shown_progress(session: Session, title: str) -> Iterator[Report]:
    """Show what is reported until the block ends. Everything goes to stderr; nothing with ``--quiet``."""
    if session.is_quiet:
        yield lambda text, fraction: None
    elif session.messages.is_terminal:
        with _bar(session, title) as report:
            yield report
    else:
        yield _lines(session)


@contextmanager
def _bar(session: Session, title: str) -> Iterator[Report]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=session.messages, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def report(text: str, fraction: float | None) -> None:
            description = f"{title}: {printable(text)[:60]}" if text else title
            total = None if fraction is None else 1.0
            progress.update(task, description=description, total=total, completed=fraction or 0.0)

        yield report


def _lines(session: Session) -> Report:
    previous, said_s = "", 0.0

    def report(text: str, fraction: float | None) -> None:
        nonlocal previous, said_s
        is_counting = bool(previous) and _without_numbers(text) == _without_numbers(previous)
        if not text or text == previous or (is_counting and monotonic() - said_s < _COUNT_EVERY_S):
            return
        previous, said_s = text, monotonic()
        session.say(printable(text))

    return report


def _without_numbers(text: str) -> str:
    return re.sub(r"[\d.,]+", "", text)
