"""Machines of an engine as a provider of the pools: what the planner orders, the engine is asked for.

Each order is a machine of its pool, and all orders together are what the engine is asked for, again with each
listing; a cluster with an autoscaler adds machines until all fit. A machine that is there and holds what the
pool's machines hold is claimed for one order, and known by its node, which outlives restarts of the engine.
Which order has which machine lies in a file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glowplug.engine.fitting import holds
from glowplug.engine.port import Demand, Engine, Machine, MachineState
from glowplug.engine.record import write_atomically
from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.choose import OfEngine
from glowplug.pool.providers.health import NO_GPU
from glowplug.pool.providers.port import MachineState as Seen
from glowplug.pool.providers.port import Order, RequestRefused, Sighting, Supplier, Verdict
from glowplug.pool.run_settings import EngineEntry
from glowplug.types.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    SystemUnfit,
    Unavailable,
)

log = logging.getLogger(__name__)

_AT_WORK = (MachineState.RUNNING, MachineState.DRAINING)
_PENDING = "pending/"


class _Claim(BaseModel):
    """``node`` is held for an order; None until there is one. It is to hold ``gpus``, ``cpus`` and
    ``memory_bytes``: what the file said when it was ordered.
    """

    model_config = ConfigDict(frozen=True)

    order: str
    fleet: str
    region: str
    machine: str
    purchase: Purchase
    gpu: str
    gpus: int
    cpus: float
    memory_bytes: int
    node: str | None = None


class _Claims(BaseModel):
    version: int = Field(default=1, ge=1, le=1)
    claims: list[_Claim] = []


class EngineProvider:
    """The machines of one entry of ``run.providers``. Safe to use from several threads.

    Raises SystemUnfit for a file of claims that is not ours.
    """

    def __init__(self, name: str, entry: EngineEntry, engine: Engine, file: Path) -> None:
        self.name = name
        self._entry = entry
        self._engine = engine
        self._file = file
        self._lock = threading.Lock()
        self._claims = self._load()

    def request(self, order: Order, timeout_s: float) -> None:
        """Ask for one machine more. Raises RequestRefused when the engine can never have it."""
        with self._lock:
            claim = next((one for one in self._claims if one.order == order.id), None)
            if claim is not None and claim.node is not None:
                return
            if claim is None:
                claim = self._claim_for(order)
                self._save([*self._claims, claim])
            # A claim of before may be one that the engine has not heard of, or never granted.
            try:
                self._ask()
            except ResourceExhausted as error:
                self._save([one for one in self._claims if one is not claim])
                self._ask_again()
                raise RequestRefused(
                    f"{order.pool}: no machine more with {_words(_demand(claim))}: {error.message}",
                    remedy=error.remedy,
                    order=order.id,
                ) from error

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        """Orders that wait for a machine, and machines that are there. One that the engine has lost is not
        listed.
        """
        with self._lock:
            if self._claims:
                self._ask_again()
            by_node = _by_node(self._engine.machines())
            self._assign(by_node)
            ours = [claim for claim in self._claims if claim.fleet == fleet]
            return [self._sighting(claim) for claim in ours if claim.node is None or claim.node in by_node]

    def terminate(self, machine: str, timeout_s: float) -> None:
        """Want one machine less, and have the engine let go of it; the control plane's own stays."""
        with self._lock:
            claim = next((one for one in self._claims if _machine_of(one) == machine), None)
            if claim is not None:
                self._let_go(claim)

    def cancel(self, order: str, timeout_s: float) -> None:
        """Want one machine less."""
        with self._lock:
            claim = next((one for one in self._claims if one.order == order), None)
            if claim is not None:
                self._let_go(claim)

    def inspect(self, machine: str, address: str, gpu: str, gpus: int, timeout_s: float) -> Verdict:
        """Fit is one whose agent has joined and is kept: the engine has started it, and control hears it.

        Raises Unavailable while the engine says nothing, or not that the machine is at work.
        """
        with self._lock:
            found = _by_node(self._engine.machines()).get(address)
        if found is None:
            raise Unavailable(
                f"The engine {self._engine.name} does not list {address} as at work.",
                remedy="`glowplug cluster status` tells why; it is looked at again.",
                node=address,
            )
        return Verdict(True) if _is_usable(found) else Verdict(False, found.why or found.state.value)

    # -- what is wanted --------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._engine.ask([_demand(claim) for claim in self._claims])

    def _ask_again(self) -> None:
        """For what was granted once. What is beyond the engine by now is lost, and not listed any more."""
        try:
            self._ask()
        except ResourceExhausted as error:
            log.warning("the engine %s no longer has what was ordered: %s", self._engine.name, error)

    def _let_go(self, claim: _Claim) -> None:
        """Asked for less first: were the machine let go first, the engine would look for another."""
        kept = [one for one in self._claims if one is not claim]
        before = self._claims
        self._claims = kept
        try:
            self._ask_again()
            if claim.node is not None:
                self._release(claim.node)
        except BaseException:
            self._claims = before  # the planner tells us again
            raise
        self._save(kept)

    def _release(self, node: str) -> None:
        for machine in self._engine.machines():
            if machine.node == node and machine.state is not MachineState.GONE:
                with suppress(NotFound, Conflict):
                    self._engine.release(machine.id)

    def _assign(self, by_node: dict[str, Machine]) -> None:
        """Machines that are free, to orders that wait, in their order."""
        taken = {claim.node for claim in self._claims}
        free = [machine for node, machine in sorted(by_node.items()) if node not in taken]
        claims = list(self._claims)
        for place, claim in enumerate(claims):
            if claim.node is not None:
                continue
            demand = _demand(claim)
            fits = next((one for one in free if _is_usable(one) and holds(one, demand)), None)
            if fits is not None:
                free.remove(fits)
                claims[place] = claim.model_copy(update={"node": fits.node})
        if claims != self._claims:
            self._save(claims)

    def _claim_for(self, order: Order) -> _Claim:
        """With what the machines of its pool are to hold; the file may say something else later."""
        machine = order.pool.machine
        shape = self._entry.machines.get(machine)
        if shape is None:
            raise InvalidInput(
                f"The engine of {self.name} is not told what a machine {machine!r} has.",
                remedy=f"Say so under run.providers.{self.name}.machines.",
            )
        return _Claim(
            order=order.id,
            fleet=order.fleet,
            region=order.pool.region,
            machine=machine,
            purchase=order.pool.purchase,
            gpu=order.gpu,
            gpus=0 if order.gpu == NO_GPU else order.gpus,
            cpus=shape.cpus,
            memory_bytes=shape.memory_bytes,
        )

    def _sighting(self, claim: _Claim) -> Sighting:
        pool = PoolId(self.name, claim.region, claim.machine, claim.purchase)
        state = Seen.PENDING if claim.node is None else Seen.UP
        return Sighting(_machine_of(claim), claim.order, pool, state, address=claim.node or "")

    # -- claims ----------------------------------------------------------------------------------------------

    def _load(self) -> list[_Claim]:
        if not self._file.exists():
            return []
        try:
            return _Claims.model_validate_json(self._file.read_bytes()).claims
        except (OSError, ValidationError) as problem:
            raise SystemUnfit(
                f"The claims of the engine's machines in {self._file} cannot be used: {problem}.",
                remedy="Remove the file when no planner runs: `glowplug cluster status` lists the machines.",
                file=str(self._file),
            ) from problem

    def _save(self, claims: list[_Claim]) -> None:
        try:
            write_atomically(self._file, _Claims(claims=claims).model_dump_json())
        except OSError as problem:
            raise SystemUnfit(
                f"The claims of the engine's machines cannot be written to {self._file}: {problem}.",
                remedy="Check the disk and who may write there.",
                file=str(self._file),
            ) from problem
        self._claims = claims


def engine_supplier(folder: Path, engine: Callable[[], Engine]) -> OfEngine:
    """Makes the supplier of an entry of kind ``engine``; ``engine`` is the one of this state directory."""

    def supplier(name: str, entry: EngineEntry) -> Supplier:
        provider = EngineProvider(name, entry, engine(), folder / f"engine-{name}.json")
        return Supplier(provider, provider)

    return supplier


def _by_node(machines: Sequence[Machine]) -> dict[str, Machine]:
    """Those that are at work; a node whose machine started the engine's program again is there twice."""
    return {machine.node: machine for machine in machines if machine.state in _AT_WORK}


def _is_usable(machine: Machine) -> bool:
    return machine.state is MachineState.RUNNING


def _demand(claim: _Claim) -> Demand:
    gpu_chip = claim.gpu if claim.gpus else None
    return Demand(1, claim.cpus, claim.memory_bytes, claim.gpus, gpu_chip)


def _machine_of(claim: _Claim) -> str:
    """One node that is claimed again is another machine: names are unique for ever."""
    return f"{claim.node}/{claim.order}" if claim.node else f"{_PENDING}{claim.order}"


def _words(demand: Demand) -> str:
    gpus = f", {demand.gpus} {demand.gpu_chip}" if demand.gpus else ""
    return f"{demand.cpus:g} processors, {demand.memory_bytes / (1 << 30):.3g} GiB{gpus}"
