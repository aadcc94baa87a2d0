"""Machines of one's own: a list in the pool file. Nothing is rented; a machine is claimed, and freed again.

Who holds which machine lies in a file of the state directory: the list itself knows nothing of orders. A
machine that cannot be reached is not listed, as a cloud would not list one that is gone.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.port import MachineState, Order, RequestRefused, Sighting
from glowplug.pool.providers.shell import LocalShell, Shell, SshShell
from glowplug.pool.run_settings import OwnEntry, OwnMachine
from glowplug.types.errors import NotFound, SystemUnfit

_MOST_AT_ONCE = 32
_CONNECT_S = 5.0


class _Claim(BaseModel):
    """``host`` is held for an order. ``was_up``: it could be reached since."""

    host: str
    order: str
    fleet: str
    purchase: Purchase
    was_up: bool = False


class _Claims(BaseModel):
    version: int = Field(default=1, ge=1, le=1)
    claims: list[_Claim] = []


class OwnProvider:
    """The machines of one entry of ``run.providers``. Safe to use from several threads.

    Raises SystemUnfit for a file of claims that is not ours.
    """

    def __init__(self, name: str, entry: OwnEntry, file: Path) -> None:
        self.name = name
        self._entry = entry
        self._file = file
        self._hosts = {machine.host: machine for machine in entry.machines}
        self._lock = threading.Lock()
        self._claims = self._load()

    # -- the port --------------------------------------------------------------------------------------------

    def request(self, order: Order, timeout_s: float) -> None:
        """Claim a free machine of the pool; raises RequestRefused when there is none."""
        with self._lock:
            if any(claim.order == order.id for claim in self._claims):
                return
            taken = {claim.host for claim in self._claims}
            alike = [
                machine
                for machine in self._entry.machines
                if (machine.region, machine.machine) == (order.pool.region, order.pool.machine)
            ]
            free = [
                machine for machine in alike if machine.host not in taken and machine.host not in order.avoid
            ]
            if not free:
                bad = sum(machine.host in order.avoid for machine in alike)
                raise RequestRefused(
                    f"{order.pool}: of {len(alike)} machines none is free ({bad} were found unfit).",
                    remedy="List more machines, or lower the pool's quota.",
                    order=order.id,
                )
            claim = _Claim(host=free[0].host, order=order.id, fleet=order.fleet, purchase=order.pool.purchase)
            self._save([*self._claims, claim])

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        """What is claimed and can be reached, or has not been reached yet."""
        with self._lock:
            claims = [claim for claim in self._claims if claim.fleet == fleet and claim.host in self._hosts]
        if not claims:
            return []
        with ThreadPoolExecutor(min(len(claims), _MOST_AT_ONCE)) as threads:
            reached = list(threads.map(lambda claim: self._reaches(claim.host, timeout_s / 2), claims))
        newly = {
            claim.order for claim, is_up in zip(claims, reached, strict=True) if is_up and not claim.was_up
        }
        if newly:
            self._note_up(newly)
        return [
            self._sighting(claim, MachineState.UP if is_up else MachineState.STARTING)
            for claim, is_up in zip(claims, reached, strict=True)
            if is_up or not claim.was_up
        ]

    def terminate(self, machine: str, timeout_s: float) -> None:
        """Free it; the machine itself is left alone."""
        self._drop(lambda claim: _machine_of(claim) == machine)

    def cancel(self, order: str, timeout_s: float) -> None:
        """Free whatever was claimed for the order."""
        self._drop(lambda claim: claim.order == order)

    # -- machines --------------------------------------------------------------------------------------------

    def shell_of(self, _machine: str, address: str) -> Shell:
        """Commands on a machine of the list. Raises NotFound for one that is not in it any more."""
        machine = self._hosts.get(address)
        if machine is None:
            raise NotFound(
                f"{address} is not in the list of {self.name} any more.",
                remedy="Stop what runs there by hand: `glowplug down`.",
                host=address,
            )
        if machine.is_local:
            return LocalShell()
        return SshShell(
            machine.host, machine.user, machine.port, self._entry.ssh_key, self._entry.known_hosts
        )

    def _reaches(self, host: str, timeout_s: float) -> bool:
        machine: OwnMachine = self._hosts[host]
        if machine.is_local:
            return True
        try:
            with socket.create_connection((machine.host, machine.port), min(timeout_s, _CONNECT_S)):
                return True
        except OSError:
            return False

    def _sighting(self, claim: _Claim, state: MachineState) -> Sighting:
        machine = self._hosts[claim.host]
        pool = PoolId(self.name, machine.region, machine.machine, claim.purchase)
        return Sighting(_machine_of(claim), claim.order, pool, state, address=claim.host, hardware=claim.host)

    # -- claims ----------------------------------------------------------------------------------------------

    def _note_up(self, orders: set[str]) -> None:
        with self._lock:
            self._save(
                [
                    claim.model_copy(update={"was_up": True}) if claim.order in orders else claim
                    for claim in self._claims
                ]
            )

    def _drop(self, is_meant: Callable[[_Claim], bool]) -> None:
        with self._lock:
            kept = [claim for claim in self._claims if not is_meant(claim)]
            if len(kept) < len(self._claims):
                self._save(kept)

    def _load(self) -> list[_Claim]:
        if not self._file.exists():
            return []
        try:
            return _Claims.model_validate_json(self._file.read_bytes()).claims
        except (OSError, ValidationError) as problem:
            raise SystemUnfit(
                f"The claims of one's own machines in {self._file} cannot be used: {problem}.",
                remedy="Remove the file when no planner runs: nothing is rented by it.",
                file=str(self._file),
            ) from problem

    def _save(self, claims: list[_Claim]) -> None:
        fresh = self._file.with_name(f".{self._file.name}.new")
        try:
            with fresh.open("w") as file:
                file.write(_Claims(claims=claims).model_dump_json())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
        except OSError as problem:
            raise SystemUnfit(
                f"The claims of one's own machines cannot be written to {self._file}: {problem}.",
                remedy="Check the disk and who may write there.",
                file=str(self._file),
            ) from problem
        self._claims = claims


def _machine_of(claim: _Claim) -> str:
    """One host that is claimed again is another machine: names are unique for ever."""
    return f"{claim.host}/{claim.order}"
