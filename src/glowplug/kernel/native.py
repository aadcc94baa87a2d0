"""Glowplug's own libraries in C++: plain functions, called through ctypes, which run without the GIL."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Signatures = Mapping[str, tuple[Any, Sequence[Any]]]
"""Of each function its ctypes: of what it returns, and of its arguments."""


def load_library(path: Path, signatures: Signatures) -> ctypes.CDLL:
    """The library that lies there. Raises OSError."""
    try:
        library = ctypes.CDLL(str(path), use_errno=True)
    except OSError as problem:
        raise OSError(
            problem.errno, f"{problem}; install Glowplug again, which compiles it", str(path)
        ) from problem
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
