"""The part of a pool file that ``glowplug pool run`` adds: how the loop behaves, and who gives machines."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from glowplug.types.cluster import LabelName, LabelValue

Span = Annotated[float, Field(gt=0, le=2_592_000, allow_inf_nan=False)]
_LARGEST_NETWORK, _SMALLEST_NETWORK = 16, 29
Chance = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatedEntry(_Part):
    """Machines that exist on paper only: for trying a pool file, and for tests. Nothing is rented.

    With ``network`` each machine that is up is a network namespace of this one, with an address of it: what
    runs there is real (docs/pools.md).
    """

    kind: Literal["simulated"]
    seed: int = 0
    lead_time_s: Span = 60.0
    lead_time_spread: float = Field(default=0.3, ge=0, le=3)
    grant_probability: Chance = 1.0
    interruptions_per_h: float = Field(default=0.0, ge=0, le=1e6)
    capacity: int = Field(default=1_000_000, ge=0)
    unfit_probability: Chance = 0.0
    network: IPv4Network | None = None

    @field_validator("network")
    @classmethod
    def _has_room(cls, network: IPv4Network | None) -> IPv4Network | None:
        if network is not None and not (_SMALLEST_NETWORK >= network.prefixlen >= _LARGEST_NETWORK):
            raise ValueError(f"a network is a /{_LARGEST_NETWORK} to a /{_SMALLEST_NETWORK}")
        return network


class OwnMachine(_Part):
    """One machine of one's own: where it is, and which pool (``region``, ``machine``) it is of."""

    host: Name
    region: Name
    machine: Name
    user: str = "root"
    port: int = Field(default=22, ge=1, le=65_535)
    is_local: bool = False
    """This machine: commands are run without SSH."""


class OwnEntry(_Part):
    """Machines that the user lists, reached by SSH with the user's own keys and known hosts."""

    kind: Literal["own"]
    machines: tuple[OwnMachine, ...] = Field(min_length=1, max_length=10_000)
    ssh_key: Path | None = None
    known_hosts: Path | None = None


class SkyPilotEntry(_Part):
    """Clouds through SkyPilot's API server. ``cloud`` is SkyPilot's name for it (gcp, aws, lambda, ..)."""

    kind: Literal["skypilot"]
    cloud: Name
    disk_gb: int | None = Field(default=None, ge=10, le=65_536)
    image: str | None = None
    setup: str = Field(default="", max_length=100_000)
    """Shell that SkyPilot runs on a machine, once it is up: installs Glowplug, for one."""


class JoinSettings(_Part):
    """How a machine that was found fit becomes a node, the same for every provider (docs/pools.md)."""

    control: Annotated[str, Field(pattern=r"^(https?://)?[A-Za-z0-9._:\[\]-]+$", max_length=300)]
    """HOST:PORT or URL at which machines reach the control plane."""
    boot: str = Field(default="", max_length=100_000)
    """Shell that runs on the machine before it joins, as the user that is logged in."""
    labels: Annotated[dict[LabelName, LabelValue], Field(max_length=12)] = {}
    options: tuple[Annotated[str, Field(max_length=300)], ...] = Field(default=(), max_length=40)
    """More arguments of `glowplug cluster join`."""
    join_s: float = Field(default=300.0, gt=0, le=3_600)
    """Boot, joining and being listed as ready take so long at most."""
    leave_s: float = Field(default=60.0, gt=0, le=3_600)


class EngineMachine(_Part):
    """What one machine of a pool has to hold at least, besides its GPUs."""

    cpus: float = Field(default=0.0, ge=0, le=100_000, allow_inf_nan=False)
    memory_bytes: int = Field(default=0, ge=0, le=1 << 50)


class EngineEntry(_Part):
    """Machines of the engine that the cluster stands on (``glowplug cluster up --engine``), which adds them.

    ``machines``: by the ``machine`` of the pools.
    """

    kind: Literal["engine"]
    machines: dict[Name, EngineMachine] = Field(min_length=1, max_length=1_000)


ProviderEntry = Annotated[
    SimulatedEntry | OwnEntry | SkyPilotEntry | EngineEntry, Field(discriminator="kind")
]


class RunSettings(_Part):
    """How the rolling loop behaves. ``fleet`` names its machines: all that carry this tag are its own."""

    fleet: str = Field(default="glowplug", pattern=r"^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$")
    every_s: float = Field(default=15.0, ge=1, le=600)
    solve_s: float = Field(default=5.0, gt=0, le=300)
    """Seconds that each of the two solvers may take."""
    release_after_s: float = Field(default=120.0, ge=0, le=86_400)
    """A machine is drained when every plan for so long wanted it gone."""
    drain_s: float = Field(default=600.0, ge=0, le=86_400)
    """Its work has so long to end before it is given back."""
    give_up_s: Span = 3_600.0
    """A request that was neither granted nor refused for so long is cancelled."""
    lost_after_s: Span = 60.0
    """A machine that its provider does not list for so long is lost."""
    plan_stands_s: float = Field(default=900.0, ge=0, le=86_400)
    """How long the last plan is followed when the solver fails."""
    buffer_share: float = Field(default=0.2, ge=0, le=10)
    """Then: what is needed now, so large a share more, and at least one slot."""
    recalibrate_s: float = Field(default=600.0, ge=0, le=86_400)
    """Forecasts are calibrated anew so often; in between their baselines move on."""
    watch_nodes: bool = False
    """Ask the control plane which machines (by their address, as its nodes are named) have replicas."""
    join: JoinSettings | None = None
    """Make each machine a node of the control plane before it is ready; implies ``watch_nodes``."""
    health_check: bool = True
    bad_for_s: Span = 604_800.0
    """Hardware that was found unfit is not taken for so long."""
    call_s: float = Field(default=60.0, gt=0, le=3_600)
    """A call to a provider is given up after so long."""
    providers: dict[Name, ProviderEntry] = {}
    """By the ``cloud`` of the pools."""

    @property
    def watches_nodes(self) -> bool:
        """Whether the control plane is asked what machines do."""
        return self.watch_nodes or self.join is not None

    @property
    def sooner_s(self) -> float:
        """When a provider has answered or a machine was checked, the next step comes after so long."""
        return self.every_s / 5
