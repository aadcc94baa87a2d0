"""From a pool file's ``run.providers`` to who gives machines of each cloud, and who checks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glowplug.pool.plan_file import PlanFile
from glowplug.pool.providers.health import ShellInspector
from glowplug.pool.providers.own import OwnProvider
from glowplug.pool.providers.port import Supplier
from glowplug.pool.providers.simulated import Market, SimulatedInspector, SimulatedProvider
from glowplug.pool.providers.skypilot import SkyPilotProvider
from glowplug.pool.run_settings import EngineEntry, OwnEntry, SimulatedEntry, SkyPilotEntry
from glowplug.types.errors import InvalidInput

OfEngine = Callable[[str, EngineEntry], Supplier]
"""Makes the supplier of an entry of kind ``engine``."""


def no_engine(cloud: str, _entry: EngineEntry) -> Supplier:
    """Where there is none. Raises InvalidInput."""
    raise InvalidInput(
        f"There is no engine that machines of {cloud} could come from.",
        remedy="A provider of kind `engine` is for `glowplug pool run` beside `glowplug cluster up`.",
    )


def suppliers(
    file: PlanFile, folder: Path, wall: Callable[[], float], of_engine: OfEngine = no_engine
) -> dict[str, Supplier]:
    """One for each of the file's ``run.providers``; what they remember lies in ``folder``. Engines are known
    above this room: ``of_engine`` is given.

    Raises InvalidInput when a cloud has none, or when machines cost money and there is no spend limit; what
    ``of_engine`` raises.
    """
    clouds = sorted({entry.cloud for entry in file.pools})
    missing = [cloud for cloud in clouds if cloud not in file.run.providers]
    if missing:
        raise InvalidInput(
            f"Nobody gives machines of {', '.join(missing)}.",
            remedy="Name a provider for each under run.providers; docs/pools.md lists them.",
        )
    if file.budget_usd_per_h is None and any(entry.price_usd_per_h != 0 for entry in file.pools):
        raise InvalidInput(
            "Machines that cost money are rented within a limit only.",
            remedy="Set budget_usd_per_h: requests and grants together never cost more.",
        )
    through_sky = [entry.cloud for entry in file.run.providers.values() if isinstance(entry, SkyPilotEntry)]
    if len(set(through_sky)) < len(through_sky):
        raise InvalidInput(
            "Two of run.providers are the same cloud of SkyPilot.",
            remedy="Give all its pools one `cloud`: each would send the other's machines back.",
        )
    asked_of_the_engine = [entry for entry in file.run.providers.values() if isinstance(entry, EngineEntry)]
    if len(asked_of_the_engine) > 1:
        raise InvalidInput(
            "Two of run.providers are of kind `engine`.",
            remedy="Give all its pools one `cloud`: what one asks for replaces what the other did.",
        )
    return {cloud: _supplier(cloud, file, folder, wall, of_engine) for cloud in file.run.providers}


def _supplier(
    cloud: str, file: PlanFile, folder: Path, wall: Callable[[], float], of_engine: OfEngine
) -> Supplier:
    entry = file.run.providers[cloud]
    if isinstance(entry, EngineEntry):
        return of_engine(cloud, entry)
    if isinstance(entry, SimulatedEntry):
        market = Market(
            entry.lead_time_s, entry.lead_time_spread, entry.grant_probability, entry.interruptions_per_h,
            entry.capacity, entry.unfit_probability,
        )  # fmt: skip
        paper = SimulatedProvider(
            cloud, wall, market, seed=entry.seed, file=folder / f"simulated-{cloud}.json"
        )
        return Supplier(paper, SimulatedInspector(paper))
    if isinstance(entry, OwnEntry):
        own = OwnProvider(cloud, entry, folder / f"own-{cloud}.json")
        return Supplier(own, ShellInspector(own.shell_of))
    sky = SkyPilotProvider(cloud, entry, folder / f"skypilot-{cloud}.json")
    return Supplier(sky, ShellInspector(sky.shell_of))
