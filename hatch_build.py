"""Compiles ``native/`` when Glowplug is installed or packed: libraries for ctypes, and a small program.

Needs compilers of C and C++20 (``CC``, ``CXX``; else gcc, g++). Each goes beside its Python module, so that
an editable install finds it where any other install does.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-static-libstdc++"]
LIBRARY_FLAGS = ["-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-Bsymbolic", "-pthread"]
C_FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden"]
# BLAKE3 has the same code for several instruction sets, and chooses when it runs.
BLAKE3 = ["blake3.c", "blake3_dispatch.c", "blake3_portable.c"]
BLAKE3_OF_MACHINE = {
    "x86_64": [f"blake3_{kind}_x86-64_unix.S" for kind in ("sse2", "sse41", "avx2", "avx512")],
    "aarch64": ["blake3_neon.c"],
}
# What is made, of what, how beyond FLAGS, and whether it hashes.
MADE = {
    "src/glowplug/chunks/_chunk_run.so": ("native/chunk_run.cpp", LIBRARY_FLAGS, True),
    "src/glowplug/image/lazy/_fuse_pump.so": ("native/fuse_pump.cpp", LIBRARY_FLAGS, True),
    "src/glowplug/runtime/_keep_tiles.so": ("native/keep_tiles.cpp", LIBRARY_FLAGS, False),
    "src/glowplug/runtime/_merge_pages": ("native/merge_pages.cpp", [], False),
}


class NativeBuildHook(BuildHookInterface):
    """Called by hatchling before it packs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the package is for this platform, whatever its Python."""
        with tempfile.TemporaryDirectory() as folder:
            hashing = self._compile_blake3(Path(folder))
            for made, (source, flags, is_hashing) in MADE.items():
                fresh = Path(self.root, f"{made}.new")
                inputs = [Path(self.root, source), *(hashing if is_hashing else [])]
                _run("CXX", "g++", [*FLAGS, *flags, "-o", fresh, *inputs], source)
                fresh.replace(Path(self.root, made))  # whoever has the old one loaded keeps it
                build_data["artifacts"].append(made)
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"

    def _compile_blake3(self, folder: Path) -> list[Path]:
        """The object files."""
        objects = []
        for name in [*BLAKE3, *BLAKE3_OF_MACHINE.get(platform.machine(), [])]:
            source = Path("native", "blake3", name)
            objects.append(folder / f"{name}.o")
            _run("CC", "gcc", [*C_FLAGS, "-c", "-o", objects[-1], Path(self.root, source)], str(source))
        return objects


def _run(variable: str, otherwise: str, arguments: Sequence[str | Path], source: str) -> None:
    compiler = shlex.split(os.environ.get(variable, otherwise))
    try:
        subprocess.run([*compiler, *arguments], check=True)
    except FileNotFoundError:
        raise SystemExit(
            f"{compiler[0]} is not installed: Glowplug needs compilers of C and C++ to be built "
            "(apt-get install g++, or set CC and CXX)."
        ) from None
    except subprocess.CalledProcessError as failure:
        raise SystemExit(f"{source} does not compile with {compiler[0]}; see above.") from failure
