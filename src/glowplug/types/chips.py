"""How people call GPUs, and how their drivers do."""

from __future__ import annotations

import re


def is_called(chip: str, name: str) -> bool:
    """Whether people may call this chip so: every word of the name is one of the chip's.

    ``NVIDIA H100 80GB HBM3`` is an ``H100`` and an ``H100-80GB``; ``NVIDIA L40S`` is no ``L4``.
    """
    return set(_words(name)) <= set(_words(chip))


def _words(text: str) -> list[str]:
    return re.split(r"[\s-]+", text.lower())
