"""How often a snapshot worked, kept beside it in a small file of its own.

The manifest never changes once written; this does, after every restore. It is replaced atomically and dies
with its generation: a snapshot captured anew starts with a clean record. A status that cannot be read counts
as quarantined, because it may have said so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glowplug.snapshot.canonical import canonical_json, parse_json
from glowplug.snapshot.durable import read_limited, write_durably
from glowplug.snapshot.manifest import STATUS_NAME

QUARANTINE_AFTER_FAILURES = 3
"""Consecutive failures after which a snapshot is not tried again."""

USERS_KEPT = 8

_MAX_STATUS_BYTES = 64 << 10
_MAX_REASON_CHARACTERS = 2000


class RestoreStatus(BaseModel):
    """Counters and the verdict. ``restores`` counts those that worked; ``reason`` is the last failure's.

    ``used_by`` names servers (``app/server``) that were restored from it here, the latest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    restores: int = Field(default=0, ge=0)
    failures: int = Field(default=0, ge=0)
    consecutive_failures: int = Field(default=0, ge=0)
    is_quarantined: bool = False
    reason: str | None = None
    used_by: list[str] = Field(default=[], max_length=USERS_KEPT)

    def after_success(self, server: str) -> RestoreStatus:
        """The record with one more good restore, of ``server`` if named. It does not lift a quarantine."""
        users = [server, *(user for user in self.used_by if user != server)] if server else self.used_by
        return self.model_copy(
            update={
                "restores": self.restores + 1,
                "consecutive_failures": 0,
                "reason": self.reason if self.is_quarantined else None,
                "used_by": users[:USERS_KEPT],
            }
        )

    def after_failure(self, reason: str) -> RestoreStatus:
        """The record with one more failure; the third in a row quarantines."""
        in_a_row = self.consecutive_failures + 1
        return self.model_copy(
            update={
                "failures": self.failures + 1,
                "consecutive_failures": in_a_row,
                "is_quarantined": self.is_quarantined or in_a_row >= QUARANTINE_AFTER_FAILURES,
                "reason": reason[:_MAX_REASON_CHARACTERS],
            }
        )

    def quarantined(self, reason: str) -> RestoreStatus:
        """The record with the verdict that this snapshot is not to be restored."""
        return self.model_copy(update={"is_quarantined": True, "reason": reason[:_MAX_REASON_CHARACTERS]})

    def save(self, directory: Path) -> None:
        """Replace the record in ``directory``. Raises OSError."""
        write_durably(directory / STATUS_NAME, canonical_json(self.model_dump()) + b"\n")

    @classmethod
    def load(cls, directory: Path) -> RestoreStatus:
        """The record in ``directory``: clean if there is none yet, quarantined if it cannot be read."""
        try:
            return cls.model_validate(parse_json(read_limited(directory / STATUS_NAME, _MAX_STATUS_BYTES)))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            return cls(is_quarantined=True, reason=f"{STATUS_NAME} cannot be read: {_summary(error)}")


def _summary(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"{error.error_count()} fields are wrong"
    return str(error)[:200]
