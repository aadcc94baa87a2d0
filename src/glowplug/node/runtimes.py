"""The container runtimes of this node, and which of them a server gets.

gVisor is always there and is what code gets that nobody vouches for. runc with CRIU shares the host's kernel,
so it is used only for servers that name it or are declared trusted; a node may lack it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from glowplug.runtime.port import Runtime
from glowplug.runtime.runc import Runc
from glowplug.runtime.runsc import Runsc
from glowplug.types.errors import SystemUnfit
from glowplug.types.paths import StateDir
from glowplug.types.spec import ServerSpec

logger = logging.getLogger(__name__)


class Runtimes:
    """Runtimes by name, the first of which is the default; and why others are absent."""

    def __init__(
        self, present: Mapping[str, Runtime], absent: Mapping[str, SystemUnfit] | None = None
    ) -> None:
        self._present = dict(present)
        self._absent = dict(absent or {})

    @classmethod
    def find(cls, state: StateDir) -> Runtimes:
        """Those installed here. Raises SystemUnfit when the default is not."""
        present: dict[str, Runtime] = {"runsc": Runsc(state.runsc_root)}
        absent: dict[str, SystemUnfit] = {}
        try:
            runc = Runc(state.runc_root)
            runc.identity()
            present["runc"] = runc
        except SystemUnfit as error:
            logger.info("servers with runtime='runc' cannot run here: %s", error)
            absent["runc"] = error
        return cls(present, absent)

    def open(self) -> None:
        """Make sure that they work, and end what a predecessor left running. Raises SystemUnfit."""
        for runtime in self._present.values():
            runtime.identity()
            runtime.end_commands()

    def choose(self, server: ServerSpec) -> str:
        """The name of the runtime for a new replica of ``server``. Raises SystemUnfit if it is not here.

        ``auto`` takes runc for a trusted server where there is one, and the default otherwise.
        """
        default = next(iter(self._present))
        if server.runtime == "auto":
            return "runc" if server.trusted and "runc" in self._present else default
        self.named(server.runtime)
        return server.runtime

    def named(self, name: str) -> Runtime:
        """Raises SystemUnfit, with what is missing, if this node does not have it."""
        runtime = self._present.get(name)
        if runtime is not None:
            return runtime
        why = self._absent.get(name)
        raise SystemUnfit(
            f"This node has no {name}" + (f": {why.message}" if why else "."),
            remedy=why.remedy if why else "`glowplug doctor` says how to get it.",
            runtime=name,
        )

    def holding(self, name: str | None) -> list[Runtime]:
        """Those that may hold a container: the one of that name, or any when it is not known."""
        return list(self._present.values()) if name is None else [self.named(name)]

    def describe(self) -> str:
        """Names and versions, for people."""
        identities = [runtime.identity() for runtime in self._present.values()]
        return ", ".join(f"{identity.name} {identity.version}" for identity in identities)
