"""Names and ids: what users may call things, and how we name what we make."""

from __future__ import annotations

import re
import secrets

from glowplug.types.errors import InvalidInput

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$"
RESERVED_NAMES = frozenset({"api", "metrics", "healthz", "docs", "openapi.json", "redoc"})
_NAME = re.compile(NAME_PATTERN)


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can be part of a URL, a path and a host name; raise InvalidInput otherwise."""
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise InvalidInput(
            f"{what} name {name[:80]!r} is not allowed.",
            remedy="Use 1 to 48 lower-case letters, digits and hyphens, starting and ending with a letter "
            f"or digit, other than {', '.join(sorted(RESERVED_NAMES))}.",
        )
    return name


def name_from_identifier(identifier: str) -> str:
    """A class or function's default name: ``MyEmbedder`` -> ``my-embedder``, ``a_b`` -> ``a-b``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", identifier)
    return re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-")


def new_replica_id(app: str, server: str) -> str:
    """A fresh id that sorts by server and says whose it is: ``chat-vllm-3f9a1c``."""
    return f"{app[:20].strip('-')}-{server[:20].strip('-')}-{secrets.token_hex(3)}"


def new_deployment_id(app: str, version: int) -> str:
    """The id of one immutable version of an app: ``chat-v3``."""
    return f"{app}-v{version}"
