"""The control plane's tables. A change here raises ``SCHEMA_VERSION`` and comes with a migration."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION = 3
"""2: usage. 3: nodes, join_tokens, authority, leadership, writes.

What there was stays as it is; opening makes what is missing.
"""

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

deployments = Table(
    "deployments",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("app", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_digest", String(64), nullable=False),
    Column("images", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("active", Boolean, nullable=False),
    UniqueConstraint("app", "version", name="one_row_per_version"),
    # The database itself refuses a second active version, whatever our code or a second process does.
    Index(
        "one_active_per_app",
        "app",
        unique=True,
        sqlite_where=text("active"),
        postgresql_where=text("active"),
    ),
)

secrets = Table(
    "secrets",
    metadata,
    Column("deployment_id", String(80), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("value", String, nullable=False),
)

cold_starts = Table(
    "cold_starts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("app", String(64), nullable=False),
    Column("server", String(64), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("record", JSON, nullable=False),
    Index("cold_starts_by_time", "started_at"),
)

usage = Table(
    "usage",
    metadata,
    Column("app", String(64), primary_key=True),
    Column("server", String(64), primary_key=True),
    Column("gpu", String(64), primary_key=True),
    Column("gpus", Integer, primary_key=True),
    Column("starts_at", Float, primary_key=True),
    Column("serving_s", Float, nullable=False),
    Column("starting_s", Float, nullable=False),
    Column("idle_s", Float, nullable=False),
    Column("parked_s", Float, nullable=False),
    Index("usage_by_time", "starts_at"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("port", Integer, nullable=False),
    Column("key", String(64), nullable=False),
    Column("glowplug", String(64), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("joined_at", Float, nullable=False),
    Column("is_draining", Boolean, nullable=False),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("proof_key", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

# One row, once there is a cluster: the key and the certificate of its authority, PEM.
authority = Table(
    "authority",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("pem", String, nullable=False),
    CheckConstraint("id = 1", name="one_authority"),
)

# One row. A term is one leader's; it only grows. Times are Unix time by the database's clock.
leadership = Table(
    "leadership",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("term", BigInteger, nullable=False),
    Column("holder", String(64), nullable=False),
    Column("address", String(300), nullable=False),
    Column("expires_at", Float, nullable=False),
    CheckConstraint("id = 1", name="one_leader"),
)

# Which writes were committed, for whoever lost the answer.
writes = Table(
    "writes",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("written_at", Float, nullable=False),
)
