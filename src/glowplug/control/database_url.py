"""Which database: ``GLOWPLUG_DATABASE_URL``, or SQLite in the state directory. Loads no driver."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

from glowplug.types.errors import InvalidInput
from glowplug.types.paths import DATABASE_URL_VARIABLE


def database_url(database: Path) -> str:
    """Where to keep state, as SQLAlchemy names it; ``database`` is the file of SQLite."""
    url = os.environ.get(DATABASE_URL_VARIABLE, "")
    if not url:
        return f"sqlite:///{database}"
    for plain in ("postgres://", "postgresql://"):
        if url.startswith(plain):
            return f"postgresql+psycopg://{url.removeprefix(plain)}"
    return url


def check_shown_url(url: str) -> str:
    """``url`` if it may stand in a command line, which everybody can read. Raises InvalidInput."""
    parts: SplitResult | None = None
    has_password = False
    with suppress(ValueError):
        parts = urlsplit(url)
        has_password = parts.password is not None or "password" in parse_qs(parts.query)
    if parts is None or parts.scheme not in ("postgres", "postgresql"):
        raise InvalidInput(
            "The database must be named like postgresql://USER@HOST:PORT/NAME.",
            remedy="Leave --database out to keep state in the state directory.",
        )
    if has_password:
        raise InvalidInput(
            "A password in a command line can be read by everybody on this machine.",
            remedy="Leave it out of --database; put it into PGPASSWORD or a PGPASSFILE, or the whole URL "
            f"into {DATABASE_URL_VARIABLE}.",
        )
    return url
