"""What a node does with the snapshots of its region by itself, from its environment.

``GLOWPLUG_SHARE_SNAPSHOTS`` is one of

- ``off``: nothing;
- ``pull`` (the default): a server that has no snapshot here is restored from the region's;
- ``push``: also, every new good snapshot is brought to the region.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum

from glowplug.types.errors import InvalidInput

VARIABLE = "GLOWPLUG_SHARE_SNAPSHOTS"


class Sharing(StrEnum):
    """How much is shared. A snapshot is a server's memory: to give it away is never a default."""

    OFF = "off"
    PULL = "pull"
    PUSH = "push"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Sharing:
        """Raises InvalidInput for a value that is none of these."""
        value = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
        if not value:
            return cls.PULL
        try:
            return cls(value)
        except ValueError:
            raise InvalidInput(
                f"{VARIABLE} is {value[:50]!r}.", remedy=f"Unset it, or use one of {', '.join(cls)}."
            ) from None
