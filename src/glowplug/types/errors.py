"""One small hierarchy of errors, sorted by what the *caller* can do about them.

Every error says what happened (the message), why or where (``details``: ids, stage, file) and what to do
next (``remedy``). The same object crosses process boundaries as JSON (:meth:`GlowplugError.to_dict`), so a
failure deep in the node agent reaches the terminal with its words intact. Standard library only: this
module is also imported inside users' containers.
"""

from __future__ import annotations

from typing import Any, ClassVar


class GlowplugError(Exception):
    """Base of all our errors. ``code`` names the class on the wire, ``http_status`` how HTTP shows it."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, remedy: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: ``{code, message, remedy, details}``."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy, "details": self.details}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> GlowplugError:
        """Rebuild the error another process sent. An unknown code becomes a plain GlowplugError."""
        kind = _BY_CODE.get(str(data.get("code")), GlowplugError)
        details = data.get("details")
        safe = {str(k): v for k, v in details.items()} if isinstance(details, dict) else {}
        for reserved in ("message", "remedy", "self"):
            safe.pop(reserved, None)
        return kind(str(data.get("message", "unknown error")), remedy=str(data.get("remedy", "")), **safe)


class InvalidInput(GlowplugError):
    """What the caller sent cannot be used (app file, spec, request). Change it and send it again."""

    code = "invalid_input"
    http_status = 400


class Unauthorized(GlowplugError):
    """No token, or a wrong one."""

    code = "unauthorized"
    http_status = 401


class NotFound(GlowplugError):
    """The named app, server, replica, snapshot or image does not exist (any more)."""

    code = "not_found"
    http_status = 404


class Conflict(GlowplugError):
    """Somebody else is doing the same thing right now, or the thing is in use."""

    code = "conflict"
    http_status = 409


class Overloaded(GlowplugError):
    """The bounded queue is full: wait ``details['retry_after_s']`` seconds and send it again."""

    code = "overloaded"
    http_status = 429


class ReplicaFailed(GlowplugError):
    """The user's own server failed (exited, never got ready, out of memory). Its log tells why."""

    code = "replica_failed"
    http_status = 502


class Unavailable(GlowplugError):
    """A part of Glowplug (agent, control plane) cannot be reached, or no capacity is free."""

    code = "unavailable"
    http_status = 503


class StartInterrupted(Unavailable):
    """A part of Glowplug ended while a replica started: no fault of its server, which is started again."""

    code = "start_interrupted"


class NotLeader(Unavailable):
    """Another control plane leads, or none can tell: ``details['leader']`` says whom to ask, if known."""

    code = "not_leader"


class DeadlineExceeded(GlowplugError):
    """A wait ran out; ``details['stage']`` names where it stuck."""

    code = "deadline_exceeded"
    http_status = 504


class ResourceExhausted(GlowplugError):
    """Disk or memory is full; nothing was lost, make room and try again."""

    code = "resource_exhausted"
    http_status = 507


class SystemUnfit(GlowplugError):
    """The machine lacks something we need; ``glowplug doctor`` says what and how to get it."""

    code = "system_unfit"
    http_status = 500


class RuntimeFailed(GlowplugError):
    """A command of the container runtime failed; ``details`` hold the command, exit code and last words."""

    code = "runtime_failed"
    http_status = 500


class GpuFailed(GlowplugError):
    """The GPU's driver refused or broke a call; ``details`` hold the call, the process and its state."""

    code = "gpu_failed"
    http_status = 500


class SnapshotInvalid(GlowplugError):
    """A snapshot is missing pieces, corrupt, or answered wrongly. The caller falls back to a cold start."""

    code = "snapshot_invalid"
    http_status = 500


class KeyMissing(GlowplugError):
    """A snapshot is sealed with a key that this node was not given. Nothing is wrong with it."""

    code = "key_missing"
    http_status = 409


_BY_CODE: dict[str, type[GlowplugError]] = {
    kind.code: kind
    for kind in (
        GlowplugError, InvalidInput, Unauthorized, NotFound, Conflict, Overloaded, ReplicaFailed, Unavailable,
        StartInterrupted, NotLeader, DeadlineExceeded, ResourceExhausted, SystemUnfit, RuntimeFailed,
        GpuFailed, SnapshotInvalid, KeyMissing,
    )
}  # fmt: skip
