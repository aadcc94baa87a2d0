"""How durations look to people."""

from __future__ import annotations


def format_seconds(seconds: float) -> str:
    """A duration with as many digits as matter: ``43 ms``, ``1.39 s``, ``98.4 s``, ``3 min 10 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
