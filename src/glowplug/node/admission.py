"""What the agent accepts: ids become file names, host names and namespaces, secrets become environment."""

from __future__ import annotations

import re

from glowplug.types.errors import InvalidInput
from glowplug.types.ids import NAME_PATTERN
from glowplug.types.replica import StartReplica
from glowplug.types.secret_values import check_secrets

# A host name label (RFC 1123), the narrowest of what a replica's id is used for.
_REPLICA_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_DEPLOYMENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_APP = re.compile(NAME_PATTERN)


def is_replica_id(text: str) -> bool:
    """Whether ``text`` is safe as a replica's id."""
    return _REPLICA_ID.fullmatch(text) is not None


def check_request(request: StartReplica) -> None:
    """Raises InvalidInput for what cannot be started, whoever asks. A secret's value is never repeated."""
    if not is_replica_id(request.replica_id):
        raise _refused(request.replica_id, "replica id", "1 to 63 letters, digits and inner hyphens")
    if not _APP.fullmatch(request.app):
        raise _refused(request.app, "app name", "1 to 48 lower-case letters, digits and inner hyphens")
    if not _DEPLOYMENT_ID.fullmatch(request.deployment_id):
        raise _refused(request.deployment_id, "deployment id", "1 to 128 letters, digits and . _ -")
    check_secrets(request.secrets)


def _refused(text: str, what: str, allowed: str) -> InvalidInput:
    return InvalidInput(f"{text[:80]!r} is no {what}.", remedy=f"Use {allowed}.")
