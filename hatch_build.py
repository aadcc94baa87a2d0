"""Compiles ``native/`` when Glowplug is installed or packed: one shared library, called through ctypes.

Needs a C++20 compiler (``CXX``, else g++). The library goes beside its Python module, so that an editable
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

SOURCE = "native/fuse_pump.cpp"
LIBRARY = "src/glowplug/image/lazy/_fuse_pump.so"
FLAGS = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]


class NativeBuildHook(BuildHookInterface):
    """Called by hatchling before it packs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the package is for this platform, whatever its Python."""
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        fresh = Path(self.root, f"{LIBRARY}.new")
        try:
            subprocess.run(
                [*compiler, *FLAGS, "-static-libstdc++", "-o", fresh, Path(self.root, SOURCE)], check=True
            )
        except FileNotFoundError:
            raise SystemExit(
                f"{compiler[0]} is not installed: Glowplug needs a C++ compiler to be built "
                "(apt-get install g++, or set CXX)."
            ) from None
        except subprocess.CalledProcessError as failure:
            raise SystemExit(f"{SOURCE} does not compile with {compiler[0]}; see above.") from failure
        fresh.replace(Path(self.root, LIBRARY))  # whoever has the old one loaded keeps it
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(LIBRARY)
