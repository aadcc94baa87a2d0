"""The custom resources as models: what of each a user writes, and what the operator says about it.

The schemas in ``deploy/helm/glowplug/crds`` are made from these (``scripts/make_crds.py``), so the API server
refuses what we would refuse. A specification of an app is that of ``glowplug deploy``, word by word.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from glowplug.types.spec import AppSpec, ServerSpec, Spec

LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"
OBJECT_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"


class Written(Spec):
    """Base of what users write: names in camel case, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Told(BaseModel):
    """Base of what the operator writes."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    def patch(self) -> dict[str, Any]:
        """As a merge patch. An empty word is none, and is taken away.

        Kubernetes 1.20, built with Go 1.19 or newer, takes an empty word for a null (the zero values of Go
        share one address since, and go-openapi/validate compares addresses).
        """
        told = self.model_dump(mode="json", by_alias=True)
        return {name: None if value == "" else _without_empty_words(value) for name, value in told.items()}


def _without_empty_words(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_empty_words(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_empty_words(one) for name, one in value.items() if one != ""}
    return value


class Condition(Told):
    """One condition, as everywhere in Kubernetes. The reason is one word, the message is for people."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""
    last_transition_time: str
    observed_generation: int = 0


class AppObject(Written):
    """An app: its servers, as `glowplug deploy` posts them; what it is called is the object's name.

    secretsFrom names a Secret of the same namespace that holds the values of the secrets its servers ask for.
    """

    servers: list[ServerSpec] = Field(min_length=1, max_length=256)
    secrets_from: str | None = Field(default=None, min_length=1, max_length=253, pattern=OBJECT_NAME)

    def app(self, name: str) -> AppSpec:
        """As the control plane knows it. Raises ValidationError for what only the whole shows."""
        return AppSpec(name=name, servers=self.servers)


class AppStatusObject(Told):
    """What became of an App. deploymentId is the version that was made of the observed generation."""

    observed_generation: int = 0
    deployment_id: str | None = None
    version: int | None = None
    spec_digest: str | None = None
    secret_version: str | None = None
    urls: dict[str, str] = {}
    replicas: str = ""
    conditions: list[Condition] = []


class ReplicaObject(Told):
    """Who a replica is. Made by the operator: changing it changes nothing."""

    server: str
    runtime: str
    node: str = ""
    deployment_id: str
    created_at: str


class ReplicaStatusObject(Told):
    """How a replica is, in the words of `glowplug ps`."""

    state: str
    path: str
    start: str = ""
    memory: str = ""
    share: str = ""
    device: str = ""
    error: str = ""


class MachineObject(Written):
    """What one machine of a pool has."""

    cpus: float = Field(gt=0, le=4096)
    memory_bytes: int = Field(ge=1 << 20)
    gpus: int = Field(default=0, ge=0, le=1024)
    gpu_chip: str | None = Field(default=None, max_length=63, pattern=r"^[A-Za-z0-9-]+$")


class PoolObject(Written):
    """Interchangeable machines that the cluster's autoscaler can add: nodes with these labels.

    For each machine that is wanted there is a claim: a pod that takes one of them, and that nobody else's
    work is put beside. A claim that finds no machine is what makes the autoscaler add one.
    """

    node_selector: dict[str, str] = Field(min_length=1, max_length=16)
    machine: MachineObject
    min_machines: int = Field(default=0, ge=0, le=10_000)
    max_machines: int = Field(default=8, ge=0, le=10_000)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_machines > self.max_machines:
            raise ValueError("minMachines is more than maxMachines")
        return self


class PoolStatusObject(Told):
    """How many machines of a pool are wanted, and there."""

    observed_generation: int = 0
    wanted: int = 0
    running: int = 0
    pending: int = 0
    conditions: list[Condition] = []
