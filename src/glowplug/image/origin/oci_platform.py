"""Which of the images behind one name runs on this machine: operating system, architecture, variant."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from glowplug.types.errors import InvalidInput

# What the kernel calls a machine -> what images call it.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
}
# A variant that is what the architecture means anyway.
_IMPLIED = {"arm64": "v8", "amd64": "v1"}
_PART = re.compile(r"[a-z0-9_.-]{1,40}")


@dataclass(frozen=True, slots=True)
class Platform:
    """As in ``linux/arm64/v8``; the variant may be empty."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def here(cls) -> Platform:
        """This machine's."""
        machine = platform.machine()
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``os/architecture[/variant]``. Raises InvalidInput."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidInput(
                f"{text[:100]!r} is not a platform.",
                remedy="Write for example linux/amd64 or linux/arm64/v8.",
            )
        return cls(*parts)

    def suitability(self, offered: Platform) -> int | None:
        """How well an image for ``offered`` suits this machine: greater is better, None: not at all."""
        if (offered.os, offered.architecture) != (self.os, self.architecture):
            return None
        implied = _IMPLIED.get(self.architecture, "")
        mine, theirs = self.variant or implied, offered.variant or implied
        if mine == theirs:
            return 1000
        if self.architecture == "arm" and mine[:1] == "v" and theirs[:1] in ("v", ""):
            return _arm_level(theirs) if _arm_level(theirs) <= _arm_level(mine) else None
        return None

    def __str__(self) -> str:
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os}/{self.architecture}{variant}"


def _arm_level(variant: str) -> int:
    return int(variant[1:]) if variant[1:].isascii() and variant[1:].isdigit() and len(variant) < 4 else 0
