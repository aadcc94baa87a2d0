"""What must survive a restart of the control plane: deployments, their secrets, cold-start records.

A deployment is written once and never changed; only which one is active moves, in one transaction, and the
database itself refuses two. Methods are safe to call at the same time, from several processes too: who loses
a race gets Conflict and has changed nothing. What happens when the database is away: ``database.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, func, insert, select, update

from glowplug.control import member_rows, schema
from glowplug.control.database import Database
from glowplug.control.member_rows import Member, StoredToken
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import NotFound, SystemUnfit
from glowplug.types.ids import new_deployment_id
from glowplug.types.spec import AppSpec
from glowplug.types.usage import SPAN_S, UsageSpan


@dataclass(frozen=True)
class Deployment:
    """One immutable version of an app. ``images`` maps servers to image ids."""

    id: str
    app: str
    version: int
    spec: AppSpec
    spec_digest: str
    images: dict[str, str]
    created_at: float
    active: bool


class Store:
    """The tables, as typed calls, which wait a bounded while for a database that is away.

    Each raises Unavailable when it stays away, and what writes raises NotLeader once another one leads.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def close(self) -> None:
        """Let go of the database."""
        await self._database.close()

    # -- deployments -----------------------------------------------------------------------------------------

    async def add_deployment(
        self, spec: AppSpec, images: dict[str, str], secrets: dict[str, str], created_at: float
    ) -> Deployment:
        """Write the next version of the app and make it the active one. Raises Conflict."""
        return await self._database.write(lambda c: _add_deployment(c, spec, images, secrets, created_at))

    async def deployments(self, app: str | None = None) -> list[Deployment]:
        """All versions, newest first."""
        table = schema.deployments
        query = select(table).order_by(table.c.created_at.desc(), table.c.version.desc())
        if app is not None:
            query = query.where(table.c.app == app)
        return await self._database.read(lambda c: [_deployment(row) for row in c.execute(query).mappings()])

    async def active_deployments(self) -> list[Deployment]:
        """The active version of every deployed app."""
        return [deployment for deployment in await self.deployments() if deployment.active]

    async def secrets(self, deployment_id: str) -> dict[str, str]:
        """The secret values given with this deployment."""
        table = schema.secrets
        query = select(table.c.name, table.c.value).where(table.c.deployment_id == deployment_id)
        return await self._database.read(lambda c: {row.name: row.value for row in c.execute(query)})

    async def activate(self, app: str, version: int | None) -> Deployment:
        """Make ``version`` (None: the one before the active one) the active one. Raises NotFound."""
        return await self._database.write(lambda c: _activate(c, app, version))

    async def deactivate(self, app: str) -> None:
        """No version of the app is active any more. Raises NotFound when none was."""
        table = schema.deployments

        def work(connection: Connection) -> None:
            changed = connection.execute(
                update(table).where(table.c.app == app, table.c.active).values(active=False)
            )
            if not changed.rowcount:
                raise NotFound(f"No app {app!r} is deployed.", remedy="See glowplug status.", app=app)

        await self._database.write(work)

    # -- cold starts -----------------------------------------------------------------------------------------

    async def add_cold_start(self, record: ColdStartRecord) -> None:
        """Keep a closed record; given twice, it is kept once."""
        row = {
            "id": record.id,
            "app": record.app,
            "server": record.server,
            "started_at": record.started_at,
            "record": record.model_dump(mode="json"),
        }
        await self._database.write_repeatable(lambda c: _add_cold_start(c, row))

    async def cold_starts(
        self, *, app: str | None, server: str | None, since: float | None, limit: int
    ) -> list[ColdStartRecord]:
        """Records, newest first; ``since`` is Unix time."""
        table = schema.cold_starts
        query = select(table.c.record).order_by(table.c.started_at.desc()).limit(limit)
        for column, value in ((table.c.app, app), (table.c.server, server)):
            if value is not None:
                query = query.where(column == value)
        if since is not None:
            query = query.where(table.c.started_at >= since)
        return await self._database.read(
            lambda c: [ColdStartRecord.model_validate(row.record) for row in c.execute(query)]
        )

    # -- usage -----------------------------------------------------------------------------------------------

    async def add_usage(self, batch: str, spans: list[UsageSpan]) -> None:
        """Add these seconds to what is known of the same spans: all of them, or none, and each batch once."""
        await self._database.write_repeatable(lambda c: self._add_batch(c, batch, spans))

    async def usage(self, *, app: str | None, since: float | None) -> list[UsageSpan]:
        """Spans, oldest first; of those that reach beyond ``since`` (Unix time)."""
        table = schema.usage
        query = select(table).order_by(table.c.starts_at, table.c.app, table.c.server)
        if app is not None:
            query = query.where(table.c.app == app)
        if since is not None:
            query = query.where(table.c.starts_at > since - SPAN_S)
        return await self._database.read(
            lambda c: [UsageSpan.model_validate(dict(row)) for row in c.execute(query).mappings()]
        )

    # -- members of the cluster ------------------------------------------------------------------------------

    async def members(self) -> list[Member]:
        """The machines that joined."""
        return await self._database.read(member_rows.members)

    async def admit_member(self, member: Member) -> Member:
        """Write it down; as it is then. Raises Conflict when another machine has the name."""
        return await self._database.write(lambda c: member_rows.admit(c, member))

    async def set_member_draining(self, name: str, is_draining: bool) -> None:
        """Raises NotFound."""
        await self._database.write(lambda c: member_rows.set_draining(c, name, is_draining))

    async def remove_member(self, name: str) -> None:
        """Raises NotFound."""
        await self._database.write(lambda c: member_rows.remove(c, name))

    async def add_join_token(self, token: StoredToken) -> None:
        """Keep a new token, hashed."""
        await self._database.write(lambda c: member_rows.add_token(c, token))

    async def keep_authority(self, pem: str) -> str:
        """Keep the cluster's authority unless there is one; the one that is kept. Raises Conflict."""
        return await self._database.write(lambda c: member_rows.keep_authority(c, pem))

    async def join_tokens(self) -> list[StoredToken]:
        """Those that were not revoked; some may be over."""
        return await self._database.read(member_rows.tokens)

    async def revoke_join_token(self, token_id: str) -> None:
        """Raises NotFound."""
        await self._database.write(lambda c: member_rows.revoke(c, token_id))

    def _add_batch(self, connection: Connection, batch: str, spans: list[UsageSpan]) -> None:
        table = schema.writes
        if connection.execute(select(table.c.key).where(table.c.key == batch)).first() is None:
            _add_spans(connection, spans)
            connection.execute(insert(table).values(key=batch, written_at=self._database.now(connection)))


def _add_deployment(
    connection: Connection, spec: AppSpec, images: dict[str, str], secrets: dict[str, str], created_at: float
) -> Deployment:
    table = schema.deployments
    newest = connection.execute(select(func.max(table.c.version)).where(table.c.app == spec.name)).scalar()
    version = (newest or 0) + 1
    deployment = Deployment(
        id=new_deployment_id(spec.name, version),
        app=spec.name,
        version=version,
        spec=spec,
        spec_digest=spec.digest(),
        images=images,
        created_at=created_at,
        active=True,
    )
    connection.execute(update(table).where(table.c.app == spec.name, table.c.active).values(active=False))
    row = {**deployment.__dict__, "spec": spec.model_dump(mode="json")}
    connection.execute(insert(table).values(**row))
    if secrets:
        rows = [{"deployment_id": deployment.id, "name": n, "value": v} for n, v in secrets.items()]
        connection.execute(insert(schema.secrets), rows)
    return deployment


def _add_cold_start(connection: Connection, row: dict[str, Any]) -> None:
    table = schema.cold_starts
    if connection.execute(select(table.c.id).where(table.c.id == row["id"])).first() is None:
        connection.execute(insert(table).values(**row))


def _add_spans(connection: Connection, spans: list[UsageSpan]) -> None:
    table = schema.usage
    for span in spans:
        row = span.model_dump()
        seconds = {name: row[name] for name in ("serving_s", "starting_s", "idle_s", "parked_s")}
        is_it = [table.c[name] == value for name, value in row.items() if name not in seconds]
        added = {name: table.c[name] + value for name, value in seconds.items()}
        if not connection.execute(update(table).where(*is_it).values(**added)).rowcount:
            connection.execute(insert(table).values(**row))


def _activate(connection: Connection, app: str, version: int | None) -> Deployment:
    table = schema.deployments
    if version is None:
        active = connection.execute(
            select(table.c.version).where(table.c.app == app, table.c.active)
        ).scalar()
        before = select(func.max(table.c.version)).where(table.c.app == app)
        if active is not None:
            before = before.where(table.c.version < active)
        version = connection.execute(before).scalar()
        if version is None:
            raise NotFound(
                f"App {app!r} has no earlier version.",
                remedy="See glowplug status; deploy it, or name a version with --to.",
                app=app,
            )
    row = (
        connection.execute(select(table).where(table.c.app == app, table.c.version == version))
        .mappings()
        .first()
    )
    if row is None:
        raise NotFound(
            f"App {app!r} has no version {version}.", remedy="GET /api/v1/deployments lists them.", app=app
        )
    connection.execute(update(table).where(table.c.app == app, table.c.active).values(active=False))
    connection.execute(update(table).where(table.c.id == row["id"]).values(active=True))
    return _deployment({**row, "active": True})


def _deployment(row: Any) -> Deployment:
    try:
        spec = AppSpec.model_validate(row["spec"])
    except ValidationError as error:
        raise SystemUnfit(
            f"Deployment {row['id']} in the database is not a specification we understand.",
            remedy="Deploy the app again, or restore the database from a copy.",
            cause=str(error),
        ) from error
    return Deployment(
        id=row["id"],
        app=row["app"],
        version=row["version"],
        spec=spec,
        spec_digest=row["spec_digest"],
        images=row["images"],
        created_at=row["created_at"],
        active=row["active"],
    )
