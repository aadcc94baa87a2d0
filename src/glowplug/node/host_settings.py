"""Settings of the host's kernel that the agent changes for a while: put back, even if it is killed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CHOSEN = re.compile(r"\[([^]]+)\]")


def read_setting(file: Path) -> str:
    """The value in one of the kernel's files; of a choice (``always [madvise] never``) the one that holds.

    Raises OSError.
    """
    text = file.read_text().strip()
    chosen = _CHOSEN.search(text)
    return chosen[1] if chosen else text


class HostSettings:
    """Settings that belong together. ``record`` holds the host's own while they are changed.

    Not for several threads. A file of the kernel's that cannot be read or written raises OSError.
    """

    def __init__(self, record: Path) -> None:
        self._record = record

    def change(self, wanted: Mapping[Path, str]) -> None:
        """Give these files these values, in this order, once the host's own are written down."""
        settings = {str(file): {"own": read_setting(file), "ours": ours} for file, ours in wanted.items()}
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps({"boot_id": _BOOT_ID.read_text(), "settings": settings}))
        temporary.rename(self._record)
        for file, value in wanted.items():
            file.write_text(value)

    def put_back(self) -> None:
        """Give the host its own settings again, if we or a killed predecessor changed them.

        None if it has been started anew since; never one that somebody else has changed meanwhile.
        """
        try:
            told = json.loads(self._record.read_text())
            settings = [
                (Path(file), str(values["own"]), str(values["ours"]))
                for file, values in told["settings"].items()
            ]
            is_of_this_boot = told["boot_id"] == _BOOT_ID.read_text()
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError):  # not ours: we write it whole
            self._record.unlink()
            return
        for file, own, ours in settings if is_of_this_boot else []:
            if read_setting(file) == ours:
                file.write_text(own)
        self._record.unlink()
