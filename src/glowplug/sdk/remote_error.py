"""What user code raised inside a replica, as its caller sees it."""

from __future__ import annotations

from typing import Any, ClassVar

from glowplug.types.errors import GlowplugError


class RemoteError(GlowplugError):
    """The called code raised. ``remote_type`` names its exception, ``remote_traceback`` says where."""

    code: ClassVar[str] = "remote_error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, remedy: str = "", **details: Any) -> None:
        super().__init__(message, remedy=remedy, **details)
        self.remote_type = str(details.get("type", "Exception"))
        self.remote_traceback = str(details.get("traceback", ""))
        if self.remote_traceback:
            self.add_note(f"Traceback in the replica:\n{self.remote_traceback}")
