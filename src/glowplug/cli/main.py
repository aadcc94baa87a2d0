"""The ``glowplug`` command: global options, the commands, and one place where errors become words.

Exit codes: 0, 1 for an error (explained on stderr), 2 for wrong usage, 130 after Ctrl-C; ``exec`` and
``shell`` pass on the code of what they ran.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from glowplug.cli import (
    cluster,
    cluster_engine,  # noqa: F401 - adds its commands to those of clusters
    cluster_operator,  # noqa: F401 - adds its command to those of the cluster
    coldstarts,
    costs,
    deploy,
    doctor,
    explain,
    gpus,
    image_tasks,  # noqa: F401 - adds its commands to those of images
    images,
    lifecycle,
    pool_fleet,  # noqa: F401 - adds its commands to those of pools
    pool_simulate,  # noqa: F401 - adds its command to those of pools
    pool_story,  # noqa: F401 - adds its command to those of pools
    pools,
    recipes,
    replicas,
    run,
    snapshots,
    terminal,
    zone_cache,
)
from glowplug.cli.output import print_error, print_json_error
from glowplug.cli.session import Session
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

INTERRUPTED_EXIT_CODE = 130


class ExplainingGroup(TyperGroup):
    """The root group: turns our errors and Ctrl-C, from whichever command, into words and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except GlowplugError as error:
            session = ctx.obj if isinstance(ctx.obj, Session) else Session(StateDir.from_environment())
            if session.wants_json:
                print_json_error(session.messages, error)
            else:
                print_error(session.messages, error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from interrupt


app = typer.Typer(
    name="glowplug",
    cls=ExplainingGroup,
    help="Serverless inference on machines you control: scales to zero, cold-starts in seconds.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"glowplug {installed_version('glowplug')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", envvar="GLOWPLUG_STATE", help="State directory (default: /var/lib/glowplug)."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", envvar="GLOWPLUG_URL", help="Control plane (found through the state directory)."
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="GLOWPLUG_TOKEN",
            help="API token (found through the state directory).",
            show_envvar=True,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no remarks: answers and errors only.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serverless inference on machines you control: scales to zero, cold-starts in seconds."""
    where = StateDir(state.absolute()) if state else StateDir.from_environment()
    context.obj = Session(where, url=url, token=token, is_quiet=quiet)


lifecycle.register(app)
deploy.register(app)
run.register(app)
recipes.register(app)
replicas.register(app)
terminal.register(app)
explain.register(app)
coldstarts.register(app)
costs.register(app)
app.add_typer(snapshots.commands, name="snapshot")
app.add_typer(images.commands, name="image")
app.add_typer(cluster.commands, name="cluster")
app.add_typer(pools.commands, name="pool")
app.add_typer(zone_cache.commands, name="zone-cache")
app.add_typer(gpus.commands, name="gpu")
doctor.register(app)


def main() -> None:
    """What the installed ``glowplug`` script calls."""
    app()
