"""What every command needs to know: where Glowplug is, how to identify oneself, how to speak to the user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console

from glowplug.cli.client import ApiClient
from glowplug.engine.record import Role, is_supervised, read_record
from glowplug.types.errors import Unavailable
from glowplug.types.paths import StateDir

_UNLIMITED_COLUMNS = 10_000


def _answers() -> Console:
    # Off a terminal there is no width to keep to, and a cut or folded id is of no use to a program.
    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED_COLUMNS)


@dataclass
class Session:
    """The global options, and the two streams: answers on ``out``, everything else on ``messages``."""

    state: StateDir
    url: str | None = None
    token: str | None = None
    is_quiet: bool = False
    wants_json: bool = False
    out: Console = field(default_factory=_answers)
    messages: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    @contextmanager
    def client(self, timeout_s: float | None = None) -> Iterator[ApiClient]:
        """A client of the control API, closed at the end. Raises Unavailable when nothing runs here."""
        with ApiClient(self.find_url(), self.find_token(), **_given(timeout_s=timeout_s)) as client:
            yield client

    def find_url(self) -> str:
        """``--url``, or what the living supervisor of the state directory wrote down."""
        if self.url:
            return self.url.rstrip("/")
        record = read_record(self.state) if is_supervised(self.state) else None
        if record is None:
            raise Unavailable(
                f"Glowplug is not running (state directory {self.state.root}).",
                remedy="Start it with `glowplug up`, or say where it is with --url or GLOWPLUG_URL.",
            )
        if record.role is Role.NODE:
            raise Unavailable(
                "This machine is a node of a cluster; its control plane is elsewhere.",
                remedy=f"Say where with --url and --token; {self.state.identity.membership} has its address.",
            )
        return record.url

    def find_token(self) -> str | None:
        """``--token``, or the state directory's own for the control plane found through it.

        An address given by hand gets no token that was not given by hand, too: it may be anybody's.
        """
        if self.token or self.url:
            return self.token
        try:
            return self.state.token.read_text().strip() or None
        except OSError:
            return None  # on loopback none is needed; elsewhere the server asks for it, with a remedy

    def say(self, message: str, style: str = "") -> None:
        """Tell the user something that is not the answer itself; silent with ``--quiet``."""
        if not self.is_quiet:
            self.messages.print(message, style=style, markup=False, soft_wrap=True)


def _given(**options: float | None) -> dict[str, float]:
    return {name: value for name, value in options.items() if value is not None}
