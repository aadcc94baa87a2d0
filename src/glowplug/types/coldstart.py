"""The record of one cold start: where every second between "needed" and "answered" went."""

from __future__ import annotations

from enum import StrEnum

from glowplug.types.replica import Message, Stage, StartPath

RECORD_VERSION = 1


class Outcome(StrEnum):
    """How it ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    ABANDONED = "abandoned"


class ColdStartRecord(Message):
    """Opened when a replica is needed, closed at its first answer to a caller.

    ``total_s`` is measured by the router, from the moment the request was held to the first byte of the
    answer; ``stages_s`` says where it went (they add up to ``total_s`` within scheduling noise).
    ``bytes_by_tier``: what was read of the image and the snapshot, by where it was found, and
    ``chunks_by_tier`` in how many chunks: the hits of each tier. ``mounted_as``: how the image was mounted
    (``graduated``, ``lazy``, ``folder`` ..).
    """

    version: int = RECORD_VERSION
    id: str
    app: str
    server: str
    deployment_id: str
    replica_id: str
    node: str
    path: StartPath
    outcome: Outcome
    started_at: float
    total_s: float
    stages_s: dict[Stage, float] = {}
    bytes_by_tier: dict[str, int] = {}
    chunks_by_tier: dict[str, int] = {}
    mounted_as: str | None = None
    snapshot_id: str | None = None
    fallback_reason: str | None = None
    error: str | None = None
