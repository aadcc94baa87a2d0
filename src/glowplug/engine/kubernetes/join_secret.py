"""The Secret that agents join with: always a token that is good for another day.

Join tokens end; machines come whenever the autoscaler adds one. So the operator makes a new token in time,
and also when the control plane does not know the one that is there (it was revoked, or the database is
another one).
"""

from __future__ import annotations

import base64
import binascii
import logging

from glowplug.engine.kubernetes.control_port import Control
from glowplug.engine.kubernetes.names import SECRETS
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.identity.tokens import JoinToken
from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput

log = logging.getLogger(__name__)

TOKEN_KEY = "token"  # noqa: S105 - where it is in the Secret
TTL_S = 48 * 3600.0
RENEW_BEFORE_S = 24 * 3600.0


class JoinSecret:
    """Owned by one thread. The Secret is the chart's: it is there, and empty at first."""

    def __init__(self, api: ObjectApi, namespace: str, name: str, control: Control, clock: Clock) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._control = control
        self._clock = clock

    def renew(self) -> None:
        """Put a new token there, unless the one that is there is good for long."""
        current = _token_id(self._api.get(SECRETS, self._name, self._namespace))
        good_until = {one.id: one.expires_at for one in self._control.join_tokens()}
        if good_until.get(current, 0.0) - self._clock.wall() >= RENEW_BEFORE_S:
            return
        made = self._control.new_join_token(TTL_S)
        encoded = base64.b64encode((made.token or "").encode()).decode()
        self._api.patch(SECRETS, self._name, {"data": {TOKEN_KEY: encoded}}, self._namespace)
        log.info("machines join with token %s from now on", made.id)


def _token_id(secret: Object) -> str:
    try:
        return JoinToken.parse(base64.b64decode((secret.get("data") or {}).get(TOKEN_KEY, "")).decode()).id
    except (InvalidInput, UnicodeDecodeError, binascii.Error):
        return ""
