"""What became of requests for machines: an append-only log, one JSON object a line.

Every record is on disk before :meth:`SupplyLog.append` returns. A line that a crash tore is left behind,
counted, and disturbs nothing after it.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from pydantic import Field, ValidationError

from glowplug.pool.identity import PoolId, Purchase
from glowplug.types.errors import ResourceExhausted, SystemUnfit
from glowplug.types.replica import Message

LOG_VERSION = 1


class Happened(StrEnum):
    """The life of one machine: asked -> granted -> (interrupted | given_back), or asked -> failed; or
    asked -> given_back, if we withdrew the request ourselves.
    """

    ASKED = "asked"
    GRANTED = "granted"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    GIVEN_BACK = "given_back"


class SupplyRecord(Message):
    """One event of one machine. ``request`` is the same in all of its events; ``at_s`` is Unix time."""

    version: int = Field(default=LOG_VERSION, ge=1)
    at_s: float = Field(allow_inf_nan=False)
    request: str = Field(min_length=1, max_length=200)
    happened: Happened
    cloud: str
    region: str
    machine: str
    purchase: Purchase
    gpu: str
    reason: str = Field(default="", max_length=2_000)

    @property
    def pool(self) -> PoolId:
        """Which pool it was asked of."""
        return PoolId(self.cloud, self.region, self.machine, self.purchase)


class SupplyLog:
    """The log in one file. Safe for several processes: a record is one write at the end of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.torn_lines = 0
        """Lines that :meth:`read` found to be no record, the last time."""

    def append(self, record: SupplyRecord) -> None:
        """Write the record down. Raises ResourceExhausted, SystemUnfit; the log is as it was, or has a torn
        line.
        """
        line = record.model_dump_json().encode() + b"\n"
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if self._is_torn(descriptor):
                    line = b"\n" + line
                written = os.write(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as problem:
            raise SystemUnfit(
                f"The supply log {self._path} cannot be written: {problem}.",
                remedy="Check the disk and who may write there.",
                file=str(self._path),
            ) from problem
        if written != len(line):
            raise ResourceExhausted(
                f"The disk of the supply log {self._path} is full.", remedy="Make room.", file=str(self._path)
            )

    def read(self) -> list[SupplyRecord]:
        """All records, in the order in which they were written; none when there is no file. Raises
        SystemUnfit.
        """
        self.torn_lines = 0
        records = []
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise SystemUnfit(
                f"The supply log {self._path} cannot be read: {problem}.",
                remedy="Check the disk and who may read there.",
                file=str(self._path),
            ) from problem
        for line in filter(None, lines):
            try:
                records.append(SupplyRecord.model_validate_json(line))
            except ValidationError:
                self.torn_lines += 1
        return records

    @staticmethod
    def _is_torn(descriptor: int) -> bool:
        size = os.fstat(descriptor).st_size
        return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
