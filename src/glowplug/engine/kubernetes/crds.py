"""The three custom resource definitions: App, Replica, Pool."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from glowplug.engine.kubernetes.names import GROUP, VERSION
from glowplug.engine.kubernetes.objects import (
    AppObject,
    AppStatusObject,
    PoolObject,
    PoolStatusObject,
    ReplicaObject,
    ReplicaStatusObject,
)
from glowplug.engine.kubernetes.schema import structural_schema
from glowplug.types.ids import NAME_PATTERN

Column = tuple[str, str, str]
"""What it is called, its type, where it is."""

_READY = '.status.conditions[?(@.type=="Ready")]'
_APP_COLUMNS: list[Column] = [
    ("Version", "integer", ".status.version"),
    ("Ready", "string", f"{_READY}.status"),
    ("Reason", "string", f"{_READY}.reason"),
    ("Replicas", "string", ".status.replicas"),
    ("Age", "date", ".metadata.creationTimestamp"),
]
# Those of `glowplug ps`; the first of them, the replica's id, is the object's name.
_REPLICA_COLUMNS: list[Column] = [
    ("Server", "string", ".spec.server"),
    ("Runtime", "string", ".spec.runtime"),
    ("State", "string", ".status.state"),
    ("Path", "string", ".status.path"),
    ("Age", "date", ".spec.createdAt"),
    ("Start", "string", ".status.start"),
    ("Memory", "string", ".status.memory"),
    ("Share", "string", ".status.share"),
    ("Device", "string", ".status.device"),
    ("Node", "string", ".spec.node"),
    ("Error", "string", ".status.error"),
]
_POOL_COLUMNS: list[Column] = [
    ("Wanted", "integer", ".status.wanted"),
    ("Running", "integer", ".status.running"),
    ("Pending", "integer", ".status.pending"),
    ("Max", "integer", ".spec.maxMachines"),
    ("Age", "date", ".metadata.creationTimestamp"),
]


def definitions() -> dict[str, dict[str, Any]]:
    """By plural."""
    return {
        "apps": _definition(
            "App", "apps", ["gpapp"], AppObject, AppStatusObject, _APP_COLUMNS, name_pattern=NAME_PATTERN
        ),
        "replicas": _definition(
            "Replica", "replicas", ["gprep"], ReplicaObject, ReplicaStatusObject, _REPLICA_COLUMNS
        ),
        "pools": _definition("Pool", "pools", ["gppool"], PoolObject, PoolStatusObject, _POOL_COLUMNS),
    }


def _definition(
    kind: str,
    plural: str,
    short_names: list[str],
    spec: type[BaseModel],
    status: type[BaseModel],
    columns: list[Column],
    *,
    name_pattern: str | None = None,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"type": "object"}
    if name_pattern is not None:
        metadata["properties"] = {"name": {"type": "string", "pattern": name_pattern}}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind_of, "jsonPath": path} for name, kind_of, path in columns
        ],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": metadata,
                    "spec": structural_schema(spec),
                    "status": structural_schema(status),
                },
            }
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short_names,
                "categories": ["glowplug"],
            },
            "versions": [version],
        },
    }
