"""``explain``: why a replica is on its node."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from glowplug.cli import completion
from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.control.messages import NodeScore

_PARTS = ("heat", "cached", "machine", "memory", "packing", "spread", "starts")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(explain)


def explain(
    context: typer.Context,
    replica: Annotated[
        str, typer.Argument(help="A replica's id; it may be over.", autocompletion=completion.replicas)
    ],
    as_json: JsonOption = False,
) -> None:
    """Show how every node scored when a replica was placed (docs/cluster.md says what counts)."""
    session = session_of(context)
    with session.client() as client:
        view = client.placement(replica)
    if as_json:
        print_json(session, view)
        return
    columns = ["NODE", "SCORE", *(part.upper() for part in _PARTS), "WHY NOT"]
    print_table(session, columns, [_row(score, view.node) for score in view.scores], "No node.")


def _row(score: NodeScore, chosen: str) -> Row:
    style = "bold green" if score.node == chosen else ""
    parts = [f"{score.parts[part]:g}" if part in score.parts else "" for part in _PARTS]
    total = f"{score.total:g}" if score.parts else ""
    return [Text(score.node, style), total, *parts, score.refusal or score.why_not or ""]
