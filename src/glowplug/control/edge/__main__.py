"""``python -m glowplug.control.edge``: a node's router as a process. Normally started by the supervisor."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import uvloop

from glowplug.control.edge.run import serve_router
from glowplug.control.http_server import inherit_listener, open_listener
from glowplug.identity.membership import read_membership
from glowplug.types.errors import GlowplugError, NotFound
from glowplug.types.paths import StateDir


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM. Returns the exit code: 0 after a clean end, 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m glowplug.control.edge", description=__doc__)
    parser.add_argument("--state", type=Path, default=StateDir.from_environment().root)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on; 0 chooses a free one")
    parser.add_argument("--fd", type=int, help="inherited listening socket, instead of host:port")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    state = StateDir(options.state.absolute())
    try:
        record = read_membership(state.identity)
        if record is None:
            raise NotFound(
                "This machine is of no cluster, so there is nothing to route to.",
                remedy="Join one: `glowplug cluster join`.",
            )
        if options.fd is not None:
            listener = inherit_listener(options.fd)
        else:
            listener = open_listener(options.host, options.port)
        uvloop.run(serve_router(state, record, listener))
    except GlowplugError as error:
        logging.getLogger("glowplug.control.edge").critical("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
