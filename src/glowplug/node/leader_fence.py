"""Obeying the newest leader only: the agent remembers the largest term it has seen, and refuses smaller ones.

A control plane that stood still while another took over may have an order half sent. Terms are compared after
a call's body has been read, with nothing awaited between that and the order's effect: once the new leader has
been told what replicas there are, no order of the old one adds to them.

Calls that bear no term are made by hand on this machine, through a socket that only root can open.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import HTTPConnection

from glowplug.snapshot.durable import read_limited, write_durably
from glowplug.types.errors import InvalidInput, NotLeader
from glowplug.types.leader import MAX_TERM, TERM_HEADER

_MAX_FILE_BYTES = 4096
_LOG = logging.getLogger(__name__)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    term: Annotated[int, Field(ge=0, le=MAX_TERM)] = 0


class LeaderFence:
    """The largest term seen, kept in ``file``. Lives on the agent's event loop.

    A term that cannot be written down holds until the agent ends, with a log line and a metric.
    """

    def __init__(self, file: Path, registry: CollectorRegistry) -> None:
        self._file = file
        self._refused = Counter(
            "glowplug_orders_refused", "Calls of control planes that lead no more.", registry=registry
        )
        self._unsaved = Counter(
            "glowplug_leader_term_unsaved", "Terms that could not be written down.", registry=registry
        )
        self._term = _read(file)
        newest = Gauge("glowplug_leader_term", "The newest term seen.", registry=registry)
        newest.set_function(lambda: self._term)

    async def check_call(self, connection: HTTPConnection) -> None:
        """A dependency of every route. Raises NotLeader, InvalidInput."""
        given = connection.headers.get(TERM_HEADER)
        if given is not None:
            self.check(_parse(given))

    def check(self, term: int) -> None:
        """Raises NotLeader for a term smaller than one seen before; remembers a larger one."""
        if term < self._term:
            self._refused.inc()
            raise NotLeader(
                f"This node obeys the leader of term {self._term}; term {term} is over.",
                remedy="A control plane that was succeeded ends by itself. If there is no other, remove "
                f"{self._file.name} from the node's state directory and restart its agent.",
                term=self._term,
            )
        if term > self._term:
            _LOG.info("obeying the leader of term %d", term)
            self._term = term
            self._save()

    def _save(self) -> None:
        try:
            write_durably(self._file, _File(term=self._term).model_dump_json().encode())
        except OSError as error:
            self._unsaved.inc()
            _LOG.error("term %d holds until this agent ends: %s", self._term, error)


def _parse(text: str) -> int:
    # isdecimal alone would take other scripts' digits, int() underscores and white space.
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and int(text) <= MAX_TERM):
        raise InvalidInput(f"{text[:40]!r} is no term.", remedy=f"Leave {TERM_HEADER} out to call by hand.")
    return int(text)


def _read(file: Path) -> int:
    try:
        return _File.model_validate_json(read_limited(file, _MAX_FILE_BYTES)).term
    except FileNotFoundError:
        return 0
    except (OSError, ValidationError) as error:
        _LOG.error("%s cannot be read, the next leader is obeyed: %s", file, error)
        return 0
