"""Ray's own programs as we start them: the head of a cluster that is ours, and a machine that joins one.

``python -m glowplug.engine.ray.head --state DIR`` becomes ``ray start --head --block``: a child of the
supervisor, which ends with it and is started again. No ``ray stop`` is needed, which ends every Ray of a
machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from glowplug.engine.ray.settings import RaySettings
from glowplug.types.errors import GlowplugError, InvalidInput, SystemUnfit
from glowplug.types.paths import StateDir

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
# Nothing of ours is in Ray's object store.
_OBJECT_STORE_BYTES = 100 * 1000 * 1000


def head_command(address: str) -> list[str]:
    """``ray start --head`` at HOST:PORT."""
    host, port = split_address(address)
    return [
        *_RAY, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false",
        f"--node-ip-address={host}", f"--port={port}", f"--object-store-memory={_OBJECT_STORE_BYTES}",
    ]  # fmt: skip


def join_command(address: str, advertise: str | None, *, blocks: bool) -> list[str]:
    """``ray start --address`` on another machine."""
    split_address(address)
    own = [f"--node-ip-address={advertise}"] if advertise else []
    return [
        *_RAY, "start", f"--address={address}", "--disable-usage-stats", *own,
        f"--object-store-memory={_OBJECT_STORE_BYTES}", *(["--block"] if blocks else []),
    ]  # fmt: skip


def check_installed() -> None:
    """Raises SystemUnfit unless Ray is."""
    if importlib.util.find_spec("ray") is None:
        raise SystemUnfit(
            "Ray is not installed here.", remedy="Install it with Glowplug: pip install 'glowplug[ray]'."
        )


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT of Ray's head. Raises InvalidInput."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
        is_usable = bool(host) and port is not None and not (parts.path or parts.query or parts.username)
    except ValueError:
        is_usable = False
    if not is_usable or host is None or port is None:
        raise InvalidInput(
            f"{address!r} is not the address of a Ray cluster.",
            remedy="Write HOST:PORT, such as 10.0.0.1:6379; a ray:// address is of another kind.",
        )
    return host, port


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Become Ray's head; ends the process when that fails."""
    parser = argparse.ArgumentParser(prog="glowplug.engine.ray.head", description=__doc__)
    parser.add_argument("--state", required=True, help="the state directory of the control plane")
    state = StateDir(Path(parser.parse_args(arguments).state))
    try:
        check_installed()
        settings = RaySettings.load(state)
        command = head_command(settings.address)
    except GlowplugError as error:
        sys.exit(str(error))
    settings.prepare(os.environ, state)
    os.execv(command[0], command)  # noqa: S606 - what it becomes is spelled out above


if __name__ == "__main__":
    main()
