"""Machines on paper with something behind it: while one is up, a namespace of this machine stands for it.

When, and whether, a machine comes and goes is the simulation's; what joins from it, serves on it and dies
with it is real.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from glowplug.pool.providers.health import ShellInspector
from glowplug.pool.providers.namespaces import NamespaceHosts
from glowplug.pool.providers.port import MachineState, Order, Sighting, Verdict
from glowplug.pool.providers.simulated import SimulatedInspector, SimulatedProvider
from glowplug.types.errors import DeadlineExceeded, GlowplugError

_OVER = (MachineState.GONE, MachineState.REFUSED)
_log = logging.getLogger(__name__)


class HostedProvider:
    """``paper`` says what there is, ``hosts`` makes it so. Safe to use as ``paper`` is."""

    def __init__(self, paper: SimulatedProvider, hosts: NamespaceHosts) -> None:
        self.name = paper.name
        self._paper = paper
        self._hosts = hosts
        self._lock = threading.Lock()
        self._listing = threading.Lock()
        self._ending: set[str] = set()

    def request(self, order: Order, timeout_s: float) -> None:
        """As the port says."""
        self._paper.request(order, timeout_s)

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        """As the port says: every one that is up stands, and none that is not; what cannot be ended is tried
        again by the next listing. Raises SystemUnfit, and DeadlineExceeded while another listing takes long.
        """
        with self._one_listing(timeout_s):
            with self._lock:
                found = [self._standing(sighting) for sighting in self._paper.machines(fleet, timeout_s)]
                ending = set(self._ending)
            up = {sighting.machine for sighting in found if sighting.state is MachineState.UP}
            over = {sighting.machine for sighting in found if sighting.state in _OVER}
            for machine in self._hosts.running():
                if machine not in up | ending:
                    # What is not on paper any more ended long ago; what is over without our doing lost its
                    # power.
                    self._end(machine, is_cut=machine in over)
        return found

    def terminate(self, machine: str, timeout_s: float) -> None:
        """As the port says; returns when nothing stands for it any more."""
        with self._lock:
            self._paper.terminate(machine, timeout_s)
            self._ending.add(machine)
        try:
            self._hosts.end(machine)
        finally:
            self._ending.discard(machine)

    def cancel(self, order: str, timeout_s: float) -> None:
        """As the port says; what stood for it ends with the next listing."""
        self._paper.cancel(order, timeout_s)

    @contextmanager
    def _one_listing(self, timeout_s: float) -> Iterator[None]:
        """An older one would end machines that have come up since."""
        if not self._listing.acquire(timeout=timeout_s):
            raise DeadlineExceeded(
                f"Another listing of {self.name} has not ended within {timeout_s:g} s.",
                remedy="It ends machines that are over; the log says which. It is asked again.",
                stage="machines",
            )
        try:
            yield
        finally:
            self._listing.release()

    def _end(self, machine: str, *, is_cut: bool) -> None:
        try:
            self._hosts.end(machine, is_cut=is_cut)
        except (GlowplugError, OSError) as problem:
            _log.warning("%s cannot be ended, and is tried again: %s", machine, problem)

    def _standing(self, sighting: Sighting) -> Sighting:
        if sighting.state is not MachineState.UP:
            return sighting
        return replace(sighting, address=self._hosts.start(sighting.machine))


class HostedInspector:
    """What the simulation says there is to be found, and then the checks of any machine."""

    def __init__(self, paper: SimulatedProvider, hosts: NamespaceHosts) -> None:
        self._paper = SimulatedInspector(paper)
        self._shell = ShellInspector(hosts.shell_of)

    def inspect(self, machine: str, address: str, gpu: str, gpus: int, timeout_s: float) -> Verdict:
        """See :class:`~glowplug.pool.providers.port.Inspector`."""
        verdict = self._paper.inspect(machine, address, gpu, gpus, timeout_s)
        return self._shell.inspect(machine, address, gpu, gpus, timeout_s) if verdict.is_fit else verdict
