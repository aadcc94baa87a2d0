"""What kopf remembers of an App's object, in its annotations.

What was handled last is there as a digest and no copy: specifications can be larger than annotations may be.
How often something was tried, and when it is due again, counts for one process and one specification only: an
operator that has just started, and an object that was corrected, need not wait for anybody's next attempt.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import kopf

from glowplug.engine.kubernetes.names import FINALIZER, GROUP, REDEPLOY_ANNOTATION

STORED_BELOW = f"operator.{GROUP}"
_LIFE, _OF = "life", "of"


class DigestStorage(kopf.AnnotationsDiffBaseStorage):
    """What was handled last, as a digest of all that a deployment depends on."""

    def __init__(self) -> None:
        super().__init__(prefix=STORED_BELOW, key="handled")

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        """Another digest is a change."""
        return cast("kopf.BodyEssence", {"spec": {"digest": _digest(body)}})

    def is_handled(self, body: Mapping[str, Any]) -> bool:
        """Whether all is done that this object asks for, as far as an operator has to do with it."""
        metadata = body["metadata"]
        if metadata.get("deletionTimestamp"):
            return FINALIZER not in (metadata.get("finalizers") or [])
        told = kopf.Body(cast("Any", body))
        return self.fetch(body=told) == self.build(body=told)

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """As it was stored, or None: also where somebody else wrote it."""
        return cast("kopf.BodyEssence | None", _sound(lambda: super(DigestStorage, self).fetch(body=body)))


class AttemptStorage(kopf.AnnotationsProgressStorage):
    """Attempts of this process at this specification; others are taken for none."""

    def __init__(self) -> None:
        super().__init__(prefix=STORED_BELOW)
        self._life = secrets.token_hex(8)

    def fetch(self, *, key: kopf.HandlerId, body: kopf.Body) -> kopf.ProgressRecord | None:
        """As it was stored, or None."""
        found = _sound(lambda: super(AttemptStorage, self).fetch(key=key, body=body))
        if found is None or (found.pop(_LIFE, None), found.pop(_OF, None)) != (self._life, _digest(body)):
            return None
        return cast("kopf.ProgressRecord", found)

    def store(
        self, *, key: kopf.HandlerId, record: kopf.ProgressRecord, body: kopf.Body, patch: kopf.Patch
    ) -> None:
        """With whose it is."""
        marked = cast("kopf.ProgressRecord", {**record, _LIFE: self._life, _OF: _digest(body)})
        super().store(key=key, record=marked, body=body, patch=patch)


def _sound(fetch: Callable[[], Any]) -> dict[str, Any] | None:
    """What an annotation holds, which anybody who may write the object may have written."""
    try:
        found = fetch()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _digest(body: Mapping[str, Any]) -> str:
    annotations = body.get("metadata", {}).get("annotations") or {}
    handled = {"spec": dict(body.get("spec") or {}), "redeploy": annotations.get(REDEPLOY_ANNOTATION)}
    return hashlib.sha256(json.dumps(handled, sort_keys=True).encode()).hexdigest()
