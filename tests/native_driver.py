"""Drivers in C++ that look for errors of memory and races in ``native/``, built with sanitizers."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

NATIVE = Path(__file__).parents[1] / "native"
TIMEOUT_S = 400.0


def build(folder: Path, library: str, driver: str, sanitizers: str) -> Path:
    """The program made of two sources and BLAKE3 (which is not looked at)."""
    program = folder / driver
    flags = ["-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    run(["gcc", "-O2", "-c", *_blake3_sources()], folder)
    sources = [NATIVE / f"{library}.cpp", NATIVE / f"{driver}.cpp", *folder.glob("*.o")]
    run(["g++", "-std=c++20", *flags, "-o", program, *sources], folder)
    return program


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What it prints."""
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def _blake3_sources() -> list[Path]:
    """As ``hatch_build.py`` chooses them."""
    folder, machine = NATIVE / "blake3", platform.machine()
    common = [folder / f"blake3{part}.c" for part in ("", "_dispatch", "_portable")]
    if machine == "aarch64":
        return [*common, folder / "blake3_neon.c"]
    return [*common, *folder.glob(f"*_{machine.replace('_', '-')}_unix.S")]
