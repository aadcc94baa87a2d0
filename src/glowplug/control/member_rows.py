"""The rows of a cluster's members and of its join tokens: what the database knows of machines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from glowplug.control import schema
from glowplug.types.errors import Conflict, NotFound


@dataclass(frozen=True)
class Member:
    """A machine that joined. ``key`` is the fingerprint of its public key: by it it is known again."""

    name: str
    host: str
    port: int
    key: str
    glowplug: str
    labels: dict[str, str]
    joined_at: float
    is_draining: bool = False


@dataclass(frozen=True)
class StoredToken:
    """A join token as it is kept: ``proof_key`` is a hash of its secret."""

    id: str
    proof_key: str = field(repr=False)
    created_at: float = 0.0
    expires_at: float = 0.0


def members(connection: Connection) -> list[Member]:
    """All of them, by name."""
    rows = connection.execute(select(schema.nodes).order_by(schema.nodes.c.name)).mappings()
    return [_member(row) for row in rows]


def admit(connection: Connection, member: Member) -> Member:
    """Write it down; one that joined before, with the same key, is updated and stays drained if it was.

    A row without a key is a note about control's own machine, whose name nobody else can have. Raises
    Conflict when another machine has the name.
    """
    table = schema.nodes
    known = connection.execute(select(table).where(table.c.name == member.name)).mappings().first()
    if known is None:
        connection.execute(insert(table).values(**member.__dict__))
        return member
    if known["key"] not in ("", member.key):
        raise Conflict(
            f"Another machine is called {member.name!r} in this cluster.",
            remedy="Join under another --name, or first remove the other one: glowplug cluster remove.",
            node=member.name,
        )
    updated = replace(member, joined_at=known["joined_at"], is_draining=known["is_draining"])
    connection.execute(update(table).where(table.c.name == member.name).values(**updated.__dict__))
    return updated


def set_draining(connection: Connection, name: str, is_draining: bool) -> None:
    """Raises NotFound."""
    table = schema.nodes
    changed = connection.execute(update(table).where(table.c.name == name).values(is_draining=is_draining))
    if not changed.rowcount:
        raise no_such_node(name)


def remove(connection: Connection, name: str) -> None:
    """Raises NotFound."""
    if not connection.execute(delete(schema.nodes).where(schema.nodes.c.name == name)).rowcount:
        raise no_such_node(name)


def add_token(connection: Connection, token: StoredToken) -> None:
    """Keep a new one, and forget those that are over."""
    table = schema.join_tokens
    connection.execute(delete(table).where(table.c.expires_at <= token.created_at))
    connection.execute(insert(table).values(**token.__dict__))


def tokens(connection: Connection) -> list[StoredToken]:
    """All that were not revoked, the newest first; some may be over."""
    table = schema.join_tokens
    rows = connection.execute(select(table).order_by(table.c.created_at.desc(), table.c.id)).mappings()
    return [StoredToken(**row) for row in rows]


def revoke(connection: Connection, token_id: str) -> None:
    """Raises NotFound."""
    table = schema.join_tokens
    if not connection.execute(delete(table).where(table.c.id == token_id)).rowcount:
        raise NotFound(
            f"There is no join token {token_id!r}.", remedy="`glowplug cluster token --list` lists them."
        )


def keep_authority(connection: Connection, pem: str) -> str:
    """Keep this authority (key and certificate) unless there is one; the one that is kept."""
    table = schema.authority
    kept: str | None = connection.execute(select(table.c.pem)).scalar()
    if kept is None:
        connection.execute(insert(table).values(id=1, pem=pem))
    return kept or pem


def no_such_node(name: str) -> NotFound:
    """The error for a name that nobody has."""
    return NotFound(
        f"No node {name!r} is in this cluster.", remedy="`glowplug cluster status` lists them.", node=name
    )


def _member(row: Any) -> Member:
    return Member(**row)
