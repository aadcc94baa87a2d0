"""The process of the chart's DaemonSet."""

from __future__ import annotations

import logging
import os
import sys

from glowplug.engine.kubernetes.machine import run_machine
from glowplug.types.errors import GlowplugError


def main() -> int:
    """Returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return run_machine(os.environ)
    except GlowplugError as error:
        logging.getLogger("glowplug.engine.kubernetes").critical("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
