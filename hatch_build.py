"""Compiles ``native/`` when Glowplug is installed or packed: a library for ctypes, and a small program.

Needs a C++20 compiler (``CXX``, else g++). Each goes beside its Python module, so that an editable
install finds it where any other install does.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-static-libstdc++"]
LIBRARY_FLAGS = ["-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
# What is made, of what, and how beyond FLAGS.
MADE = {
    "src/glowplug/image/lazy/_fuse_pump.so": ("native/fuse_pump.cpp", LIBRARY_FLAGS),
    "src/glowplug/runtime/_merge_pages": ("native/merge_pages.cpp", []),
}


class NativeBuildHook(BuildHookInterface):
    """Called by hatchling before it packs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the package is for this platform, whatever its Python."""
        for made, (source, flags) in MADE.items():
            self._compile(source, made, flags)
            build_data["artifacts"].append(made)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def _compile(self, source: str, made: str, flags: list[str]) -> None:
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        fresh = Path(self.root, f"{made}.new")
        try:
            subprocess.run([*compiler, *FLAGS, *flags, "-o", fresh, Path(self.root, source)], check=True)
        except FileNotFoundError:
            raise SystemExit(
                f"{compiler[0]} is not installed: Glowplug needs a C++ compiler to be built "
                "(apt-get install g++, or set CXX)."
            ) from None
        except subprocess.CalledProcessError as failure:
            raise SystemExit(f"{source} does not compile with {compiler[0]}; see above.") from failure
        fresh.replace(Path(self.root, made))  # whoever has the old one loaded keeps it
