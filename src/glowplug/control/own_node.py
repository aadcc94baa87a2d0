"""The control plane's own machine as a node of whoever leads.

Control reaches the agent beside it through a Unix socket, and needs no more as long as it leads. Where it may
be succeeded, its machine has a gateway, too: it writes itself down among the members, and makes its gateway's
certificate, as all control planes of a database are of one authority. So a successor follows this machine's
agent as it does any other's, and routers on nodes reach its replicas.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from dataclasses import dataclass

from glowplug.control.cluster_keys import ClusterKeys
from glowplug.control.database import Database
from glowplug.control.member_rows import Member
from glowplug.control.store import Store
from glowplug.identity.files import replace_file
from glowplug.identity.roles import check_node_name
from glowplug.types.clock import Clock
from glowplug.types.cluster import CertificateAnswer, MembershipRecord
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import IdentityDir


@dataclass(frozen=True)
class OwnNode:
    """What it is called, and where the others reach its gateway."""

    name: str
    host: str
    port: int

    @classmethod
    def parse(cls, name: str, address: str) -> OwnNode:
        """Of ``HOST:PORT``. Raises InvalidInput."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise InvalidInput(f"{address!r} is no address of a gateway.", remedy="Write HOST:PORT.")
        return cls(check_node_name(name), host.strip("[]"), int(port))


async def become_node(
    own: OwnNode, files: IdentityDir, database_url: str, *, control_url: str, clock: Clock
) -> None:
    """Write this machine down as a member, and its gateway's certificate to the disk.

    It leads nothing yet, and changes no row but its own. Raises Conflict when another machine has the name,
    Unavailable, SystemUnfit.
    """
    store = Store(await asyncio.to_thread(Database, database_url))
    try:
        request = await asyncio.to_thread(_signing_request, files, own.name)
        answer, key = await ClusterKeys(files, store, clock).issue(own.name, request)
        version = importlib.metadata.version("glowplug")
        await store.admit_member(Member(own.name, own.host, own.port, key, version, {}, clock.wall()))
    finally:
        await store.close()
    await asyncio.to_thread(_keep, own, files, answer, control_url)


def _signing_request(files: IdentityDir, name: str) -> str:
    # Here, as it takes a tenth of a second that a machine which is alone never needs.
    from glowplug.identity.membership import renewal_request

    return renewal_request(files, name).signing_request


def _keep(own: OwnNode, files: IdentityDir, answer: CertificateAnswer, control_url: str) -> None:
    record = MembershipRecord(
        name=own.name,
        control_url=control_url,
        listen_host=own.host,
        listen_port=own.port,
        advertise_host=own.host,
    )
    replace_file(files.membership, record.model_dump_json(indent=1))
    replace_file(files.authority_certificate, answer.authority)
    replace_file(files.node_certificate, answer.certificate)
