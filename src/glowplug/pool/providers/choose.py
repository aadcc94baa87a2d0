"""From a pool file's ``run.providers`` to who gives machines of each cloud, and who checks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glowplug.pool.plan_file import PlanFile
from glowplug.pool.providers.health import ShellInspector
from glowplug.pool.providers.hosted import HostedInspector, HostedProvider
from glowplug.pool.providers.namespaces import NamespaceHosts
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

    Raises InvalidInput when a cloud has none, when machines cost money and there is no spend limit, or when
    machines are to become nodes that are on paper, or are nodes anyway; what ``of_engine`` raises.
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
    on_paper = [
        cloud
        for cloud, entry in file.run.providers.items()
        if isinstance(entry, SimulatedEntry) and entry.network is None
    ]
    if file.run.join is not None and on_paper:
        raise InvalidInput(
            f"Machines of {', '.join(on_paper)} exist on paper only: they cannot become nodes.",
            remedy="Give the provider a `network`, or leave run.join out.",
        )
    by_themselves = [cloud for cloud, entry in file.run.providers.items() if isinstance(entry, EngineEntry)]
    if file.run.join is not None and by_themselves:
        raise InvalidInput(
            f"Machines of {', '.join(by_themselves)} are the engine's: they join by themselves.",
            remedy="Leave run.join out, or plan the other machines by a file of their own.",
        )
    through_sky = [entry.cloud for entry in file.run.providers.values() if isinstance(entry, SkyPilotEntry)]
    if len(set(through_sky)) < len(through_sky):
        raise InvalidInput(
            "Two of run.providers are the same cloud of SkyPilot.",
            remedy="Give all its pools one `cloud`: each would send the other's machines back.",
        )
    if len(by_themselves) > 1:
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
        if entry.network is None:
            return Supplier(paper, SimulatedInspector(paper))
        hosts = NamespaceHosts(folder / f"m-{cloud}", entry.network)
        inspector = HostedInspector(paper, hosts)
        return Supplier(HostedProvider(paper, hosts), inspector, hosts.shell_of, {"simulated": "yes"})
    if isinstance(entry, OwnEntry):
        own = OwnProvider(cloud, entry, folder / f"own-{cloud}.json")
        return Supplier(own, ShellInspector(own.shell_of), own.shell_of)
    sky = SkyPilotProvider(cloud, entry, folder / f"skypilot-{cloud}.json")
    return Supplier(sky, ShellInspector(sky.shell_of), sky.shell_of)
