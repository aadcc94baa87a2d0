"""``pool run|status|explain``: the planner as a process, and what it knows and did."""

from __future__ import annotations

import logging
import secrets
import signal
import sys
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.pools import commands, pool_extra, print_plan
from glowplug.cli.session import Session
from glowplug.cli.text import format_age
from glowplug.cli.transport import open_transport
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, Unavailable

if TYPE_CHECKING:
    from glowplug.engine.port import Engine
    from glowplug.pool.planner.ledger import LedgerView

_METRICS_S = 5.0
_STYLES = {"ready": "green", "draining": "yellow", "returning": "red"}


@commands.command()
def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Pools, demand, limits and providers.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="End after so many steps; without it run until told to end.")
    ] = None,
) -> None:
    """Keep machines ready: plan every few seconds, ask for machines and give them back, within the budget."""
    session = session_of(context)
    with pool_extra():
        from glowplug.cli.pool_nodes import Nodes
        from glowplug.engine.engine_provider import engine_supplier
        from glowplug.pool.plan_file import read_plan_file
        from glowplug.pool.planner.inputs import FileInputs
        from glowplug.pool.planner.ledger import Ledger
        from glowplug.pool.planner.live import LiveDemand
        from glowplug.pool.planner.loop import PlannerLoop
        from glowplug.pool.providers.choose import suppliers
    plan_file, clock, folder = read_plan_file(file), SystemClock(), session.state.pools
    if plan_file.now is not None:
        raise InvalidInput(
            f"{file} plans for one moment, {plan_file.now:%Y-%m-%d %H:%M}.",
            remedy="Leave `now` out: a running planner plans for the clock's.",
        )
    _log_to_stderr()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Ledger.lead(folder, plan_file.run.fleet, secrets.token_hex(4)) as ledger:
        live = LiveDemand(plan_file, partial(read_metrics, session), clock.wall, folder)
        threading.Thread(target=live.run, args=(ended,), name="demand", daemon=True).start()
        inputs = FileInputs(plan_file, file.parent, live)
        loop = PlannerLoop(
            plan_file,
            folder,
            ledger,
            suppliers(plan_file, folder, clock.wall, engine_supplier(folder, partial(_engine, session))),
            inputs,
            clock,
            workforce=Nodes(session) if plan_file.run.watches_nodes else None,
        )
        loop.run(ended, steps)


def _engine(session: Session) -> Engine:
    """The one beside the control plane of this state directory. Raises NotFound."""
    from glowplug.engine.control_api import ControlApi
    from glowplug.engine.engine_beside import EngineBeside
    from glowplug.engine.record import is_supervised, read_record

    record = read_record(session.state) if is_supervised(session.state) else None
    if record is None or record.engine is None:
        raise NotFound(
            f"No engine runs beside a control plane on {session.state.root}.",
            remedy="`glowplug cluster up --engine ..` starts one; kind `own` is for machines joined by hand.",
        )
    return EngineBeside(
        record.engine, session.state, ControlApi(record.url, session.find_token()), SystemClock()
    )


def read_metrics(session: Session) -> str:
    """The control plane's, as text. Raises Unavailable."""
    url, token = session.find_url(), session.find_token()
    try:
        with open_transport(url, token, _METRICS_S) as transport:
            return transport.request("GET", "/metrics").decode(errors="replace")
    except GlowplugError as problem:
        raise Unavailable(
            f"The control plane does not tell its metrics: {problem.message}", remedy=problem.remedy
        ) from problem


@commands.command()
def status(
    context: typer.Context,
    events: Annotated[int, typer.Option(min=0, help="The newest events, so many.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show the machines that the planner holds and asked for, what they cost, and what happened last."""
    session = session_of(context)
    with pool_extra():
        from glowplug.pool.planner.ledger import LedgerView
    view = LedgerView.read(session.state.pools, events)
    now_s = SystemClock().wall()
    if as_json:
        print_json(session, _as_json(view, now_s))
        return
    _print_summary(session, view, now_s)
    _print_machines(session, view, now_s)
    if view.events:
        session.out.print()
        told: list[Row] = [
            [f"{format_age(now_s - event.at_s)} ago", event.kind.value, event.subject, event.words]
            for event in view.events
        ]
        print_table(session, ["WHEN", "EVENT", "OF", "WHAT"], told, "")


@commands.command()
def explain(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show the last plan of the running planner: what limits it, and what one more GPU is worth."""
    session = session_of(context)
    with pool_extra():
        from glowplug.pool.planner.ledger import LedgerView
        from glowplug.pool.report import PlanReport
    view = LedgerView.read(session.state.pools, 0)
    if not view.report:
        raise NotFound(
            "The planner has made no plan yet.",
            remedy="`glowplug pool status` says what happened instead; the last events name the reason.",
        )
    report = PlanReport.model_validate_json(view.report)
    if as_json:
        print_json(session, report)
    else:
        print_plan(session, report, explain=True)


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # httpx tells every call it makes.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _print_summary(session: Session, view: LedgerView, now_s: float) -> None:
    state = view.state
    who = "A planner runs" if view.is_led else "No planner runs; machines stay as they are"
    when = (
        "no step yet"
        if state.stepped_at_s is None
        else f"last step {format_age(now_s - state.stepped_at_s)} ago"
    )
    session.out.print(
        f"Fleet {state.fleet}: {len(state.machines)} machines for {state.rented_usd_per_h:.2f} USD/h, "
        f"{len(state.orders)} asked for; {state.spend_usd_per_h:.2f} USD/h if all of them come.\n"
        f"{who}; {when}.",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for cloud, since_s in state.silent_since_s.items():
        session.say(f"{cloud} does not answer since {format_age(now_s - since_s)}.", "yellow")
    for pool in state.limited_since_s:
        session.say(f"{pool} is held back by the spend limit.", "yellow")
    for bad in state.bad.values():
        until = datetime.fromtimestamp(bad.until_s, UTC)
        session.say(f"{bad.hardware} is not taken until {until:%Y-%m-%d %H:%M} UTC: {bad.why}.", "yellow")


def _print_machines(session: Session, view: LedgerView, now_s: float) -> None:
    rows: list[Row] = [
        [
            held.machine, str(held.pool), f"{held.gpus} x {held.gpu}", f"{held.usd_per_h:.2f}",
            Text(held.standing.value, _STYLES.get(held.standing.value, "")), format_age(now_s - held.since_s),
            held.address, held.node, held.why,
        ]
        for held in sorted(view.state.machines.values(), key=lambda held: (held.pool, held.machine))
    ]  # fmt: skip
    rows += [
        [
            order.id, str(order.pool), f"{order.gpus} x {order.gpu}", f"{order.usd_per_h:.2f}",
            "asked for" if order.is_awaited else "cancelled", format_age(now_s - order.asked_at_s),
            "", "", "",
        ]
        for order in view.state.orders.values()
    ]  # fmt: skip
    session.out.print()
    columns = ["MACHINE", "POOL", "GPUS", "USD/H", "STATE", "SINCE", "ADDRESS", "NODE", "WHY"]
    print_table(session, columns, rows, "No machine, and none asked for.")
    if view.state.scarcity:
        session.out.print()
        worth: list[Row] = [
            [f"{price.gpu} x{price.gpus}", f"{price.gpu_usd_per_h:.2f}", f"{price.slot_usd_per_h:.2f}"]
            for price in view.state.scarcity
        ]
        print_table(session, ["SCARCITY", "GPU USD/H", "SLOT USD/H"], worth, "")


def _as_json(view: LedgerView, now_s: float) -> dict[str, Any]:
    state = view.state
    return {
        "version": 1,
        "fleet": state.fleet,
        "is_running": view.is_led,
        "stepped_ago_s": None if state.stepped_at_s is None else now_s - state.stepped_at_s,
        "rented_usd_per_h": state.rented_usd_per_h,
        "spend_usd_per_h": state.spend_usd_per_h,
        "machines": [
            {
                "machine": held.machine, "pool": str(held.pool), "gpu": held.gpu, "gpus": held.gpus,
                "usd_per_h": held.usd_per_h, "state": held.standing.value, "since_s": held.since_s,
                "address": held.address, "node": held.node, "order": held.order, "why": held.why,
            }
            for held in state.machines.values()
        ],
        "orders": [
            {
                "order": order.id, "pool": str(order.pool), "gpu": order.gpu, "gpus": order.gpus,
                "usd_per_h": order.usd_per_h, "asked_at_s": order.asked_at_s,
                "is_cancelled": not order.is_awaited,
            }
            for order in state.orders.values()
        ],
        "scarcity": [vars(price) for price in state.scarcity],
        "silent_since_s": state.silent_since_s,
        "limited_since_s": state.limited_since_s,
        "bad_hardware": {bad.hardware: bad.why for bad in state.bad.values()},
        "events": [
            {"at_s": event.at_s, "kind": event.kind.value, "subject": event.subject, "words": event.words}
            for event in view.events
        ],
    }  # fmt: skip
