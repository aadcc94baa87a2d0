"""``python -m glowplug.image.lazy --state DIR``: become the blob daemon's holder of this state directory."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from glowplug.image.lazy.launch import holder_command, worker_command
from glowplug.types.paths import StateDir


def main() -> None:
    """Replace this process by the holder, in the foreground; it ends on SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m glowplug.image.lazy", description=__doc__)
    parser.add_argument("--state", type=Path, default=StateDir.from_environment().root)
    state = StateDir(parser.parse_args().state.absolute())
    command = holder_command(state, worker_command(state))
    os.execv(command[0], command)  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main()
