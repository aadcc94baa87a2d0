"""Bringing a database to our schema: what is missing is made, what is old pruned, what is newer refused."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, func, insert, inspect, select

from glowplug.control import schema
from glowplug.types.errors import SystemUnfit

_KEPT_COLD_STARTS = 100_000
_KEPT_USAGE_S = 100 * 86_400.0
_KEPT_WRITES_S = 86_400.0
"""A write is repeated within seconds, or never."""
_OPENING_LOCK = 0x676C6F77
"""Of several control planes that open an empty PostgreSQL at once, one makes the tables ("glow")."""


def create_or_check(connection: Connection, now: ColumnElement[float]) -> None:
    """Inside one transaction; ``now`` is the database's clock. Raises SystemUnfit for a newer schema."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_OPENING_LOCK)))
    if inspect(connection).has_table(schema.schema_version.name):
        found = connection.execute(select(func.max(schema.schema_version.c.version))).scalar() or 0
        if found > schema.SCHEMA_VERSION:
            raise SystemUnfit(
                f"The database was written by a newer Glowplug (schema {found}, ours is "
                f"{schema.SCHEMA_VERSION}).",
                remedy="Upgrade Glowplug, or use another state directory.",
            )
        if found == schema.SCHEMA_VERSION:
            _prune(connection, now)
            return
    schema.metadata.create_all(connection)
    if connection.execute(select(schema.leadership.c.id)).first() is None:
        nobody = {"id": 1, "term": 0, "holder": "", "address": "", "expires_at": 0.0}
        connection.execute(insert(schema.leadership).values(**nobody))
    connection.execute(insert(schema.schema_version).values(version=schema.SCHEMA_VERSION))


def _prune(connection: Connection, now: ColumnElement[float]) -> None:
    connection.execute(delete(schema.writes).where(schema.writes.c.written_at < now - _KEPT_WRITES_S))
    newest_span = connection.execute(select(func.max(schema.usage.c.starts_at))).scalar()
    if newest_span is not None:
        oldest = newest_span - _KEPT_USAGE_S
        connection.execute(delete(schema.usage).where(schema.usage.c.starts_at < oldest))
    table = schema.cold_starts
    newest = select(table.c.started_at).order_by(table.c.started_at.desc()).offset(_KEPT_COLD_STARTS).limit(1)
    cutoff = connection.execute(newest).scalar()
    if cutoff is not None:
        connection.execute(delete(table).where(table.c.started_at <= cutoff))
