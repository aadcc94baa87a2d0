"""An App as it lies in the API server: what its user wants of it, and what we have said about it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from glowplug.engine.kubernetes.conditions import DEPLOYED, PROGRESSING, found
from glowplug.engine.kubernetes.names import APPS
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.engine.kubernetes.objects import AppObject, AppStatusObject
from glowplug.observe.waterfall import printable
from glowplug.types.errors import Conflict, InvalidInput, NotFound
from glowplug.types.ids import check_name
from glowplug.types.spec import AppSpec

_SHOWN_CHARACTERS = 200


@dataclass
class FoundApp:
    """One App of the API server. ``status`` is what was said of it last."""

    name: str
    namespace: str
    generation: int
    resource_version: str | None
    deleted_at: str | None
    spec: Object
    status: AppStatusObject

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> FoundApp:
        """Whatever is in its status that we have not written is left out."""
        metadata = body["metadata"]
        try:
            status = AppStatusObject.model_validate(dict(body.get("status") or {}))
        except ValidationError:
            status = AppStatusObject()  # by hand, or by an older version: it is written anew
        return cls(
            name=metadata["name"],
            namespace=metadata.get("namespace", "default"),
            generation=int(metadata.get("generation", 1)),
            resource_version=metadata.get("resourceVersion"),
            deleted_at=metadata.get("deletionTimestamp"),
            spec=dict(body.get("spec") or {}),
            status=status,
        )

    @property
    def is_settled(self) -> bool:
        """Its last generation was deployed, and nobody has asked for anything since."""
        progress = found(PROGRESSING, self.status.conditions)
        is_deployed = progress is not None and progress.reason == DEPLOYED
        return is_deployed and self.status.observed_generation == self.generation and not self.deleted_at

    def wanted(self) -> tuple[AppObject, AppSpec]:
        """What it says. Raises InvalidInput, also for what its schema let pass."""
        check_name(self.name, "App")
        try:
            written = AppObject.model_validate(self.spec)
            return written, written.app(self.name)
        except ValidationError as error:
            raise malformed(error) from error


def malformed(error: ValidationError) -> InvalidInput:
    """What is wrong with an object's spec, and where: the first thing only."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = printable(".".join(["spec", *(str(part)[:_SHOWN_CHARACTERS] for part in problem["loc"])]))
    return InvalidInput(
        f"{where}: {problem['msg'][:_SHOWN_CHARACTERS]}.", remedy="Correct it and apply it again."
    )


def write_status(
    api: ObjectApi, app: FoundApp, status: AppStatusObject, *, is_bystander: bool = False
) -> None:
    """Say this of the App, unless it was said already, or it is gone.

    A bystander says nothing of an object that has changed since it was looked at: somebody else knows better.
    """
    if status == app.status:
        return
    body: Object = {"status": status.patch()}
    if is_bystander and app.resource_version is not None:
        body["metadata"] = {"resourceVersion": app.resource_version}
    with suppress(NotFound, *([Conflict] if is_bystander else [])):
        api.patch(APPS, app.name, body, app.namespace, subresource="status")
    app.status = status
