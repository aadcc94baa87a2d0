"""``python -m glowplug.control``: the control plane as a process. Normally started by the supervisor."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import uvloop

from glowplug.control.http_server import inherit_listener, open_listener
from glowplug.control.own_node import OwnNode
from glowplug.control.server import serve
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM. Returns the exit code: 0 after a clean end, 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="glowplug.control", description=__doc__)
    parser.add_argument("--state", type=Path, default=None, help="state directory (default: GLOWPLUG_STATE)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on; 0 chooses a free one")
    parser.add_argument(
        "--fd", type=int, default=None, help="inherited listening socket, instead of host:port"
    )
    parser.add_argument(
        "--node", nargs=2, metavar=("NAME", "HOST:PORT"), help="be a node, too: with this gateway"
    )
    parser.add_argument(
        "--no-agent", action="store_true", help="this machine is no node: others join, and do all the work"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    # httpx tells every call it makes: with a watch and health checks that is noise.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    state = StateDir(options.state.absolute()) if options.state else StateDir.from_environment()
    try:
        state.create()
        if options.fd is not None:
            listener = inherit_listener(options.fd)
        else:
            listener = open_listener(options.host, options.port)
        own = OwnNode.parse(*options.node) if options.node else None
        is_clean = uvloop.run(serve(state, listener, own=own, has_agent=not options.no_agent))
    except GlowplugError as error:
        logging.getLogger("glowplug.control").critical("%s", error)
        return 1
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
