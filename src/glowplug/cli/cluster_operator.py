"""``cluster operator``: Apps of Kubernetes, kept as their objects say (docs/kubernetes.md)."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from glowplug.cli.cluster import commands
from glowplug.cli.options import session_of
from glowplug.types.clock import SystemClock
from glowplug.types.errors import SystemUnfit


@commands.command()
def operator(
    context: typer.Context,
    namespace: Annotated[
        str | None, typer.Option(help="Where the Apps are (default: the pod's own, or the kubeconfig's).")
    ] = None,
    image: Annotated[
        str, typer.Option(envvar="GLOWPLUG_IMAGE", help="Glowplug's own image: claims on machines run it.")
    ] = "",
    join_secret: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The Secret that is kept filled with a token to join with."),
    ] = None,
    health_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Answer /healthz here, for the kubelet.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Prometheus metrics of the operator.")
    ] = None,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Run none: let all Apps be deleted without one, before it is removed."),
    ] = False,
) -> None:
    """Run the operator of Kubernetes: deploy Apps, and show replicas, for as long as it lives."""
    from glowplug.engine.kubernetes.access import find_access
    from glowplug.engine.kubernetes.api import KubernetesApi

    try:
        from glowplug.engine.kubernetes import operator as kubernetes_operator
    except ModuleNotFoundError as error:
        raise SystemUnfit(
            f"The operator needs {error.name}, which is not installed.",
            remedy="Install Glowplug with its extra `kubernetes`.",
        ) from error
    session = session_of(context)
    access = find_access()
    where = namespace or access.namespace
    if forget:
        with KubernetesApi(access) as api:
            for name in kubernetes_operator.forget_apps(api, where):
                session.say(f"App {name} can be deleted without the operator.")
        return
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = kubernetes_operator.OperatorSettings(
        namespace=where, image=image, join_secret=join_secret, health_port=health_port
    )
    with session.client() as client:
        made = kubernetes_operator.Operator(access, client, SystemClock(), settings)
        if metrics_port is not None:
            from prometheus_client import start_http_server

            start_http_server(metrics_port, registry=made.counters.registry)
        made.run()
