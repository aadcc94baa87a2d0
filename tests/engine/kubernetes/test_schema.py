"""The schemas say what the models say, in the words that an API server of Kubernetes takes."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any, Literal

import pytest
from openapi_schema_validator import OAS30Validator
from pydantic import BaseModel, ValidationError
from tests.engine.kubernetes.conftest import app, server

from glowplug.cli.replicas import _COLUMNS as PS_COLUMNS
from glowplug.engine.kubernetes.crds import definitions
from glowplug.engine.kubernetes.objects import AppObject
from glowplug.engine.kubernetes.schema import structural_schema

CRDS = definitions()
SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "make_crds.py"))
FOLDER: Path = SCRIPT["FOLDER"]
_LOGICAL = {"oneOf", "anyOf", "allOf", "not"}
_FORBIDDEN_INSIDE = {"type", "description", "default", "additionalProperties", "nullable"}


def schema_of(plural: str) -> dict[str, Any]:
    found: dict[str, Any] = CRDS[plural]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def spec_validator() -> OAS30Validator:
    return OAS30Validator(schema_of("apps"))


def problems(body: dict[str, Any]) -> list[str]:
    return [error.message for error in spec_validator().iter_errors(body)]


@pytest.mark.parametrize("plural", CRDS)
def test_the_files_are_those_of_the_models(plural: str) -> None:
    file = FOLDER / f"{plural}.yaml"
    assert file.read_text() == SCRIPT["rendered"](CRDS[plural]), "run scripts/make_crds.py"
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CRDS)


def structure_problems(node: dict[str, Any], path: str, *, is_logical: bool = False) -> list[str]:
    """The rules of apiextensions v1 for structural schemas."""
    found = []
    preserves = node.get("x-kubernetes-preserve-unknown-fields")
    if is_logical:
        found += [f"{path}: {word} inside a logical word" for word in _FORBIDDEN_INSIDE & node.keys()]
    elif "type" not in node and not preserves:
        found.append(f"{path}: no type")
    if "$ref" in node or "const" in node:
        found.append(f"{path}: a word of JSON Schema only")
    if "properties" in node and "additionalProperties" in node:
        found.append(f"{path}: properties and additionalProperties")
    for word in ("exclusiveMinimum", "exclusiveMaximum"):
        if word in node and node[word] is not True:
            found.append(f"{path}: {word} is a number")
    for name, child in node.get("properties", {}).items():
        found += structure_problems(child, f"{path}.{name}", is_logical=is_logical)
    for word in ("items", "additionalProperties", "not"):
        if isinstance(node.get(word), dict):
            inside = is_logical or word == "not"
            found += structure_problems(node[word], f"{path}.{word}", is_logical=inside)
    for word in ("oneOf", "anyOf", "allOf"):
        for child in node.get(word, []):
            found += structure_problems(child, f"{path}.{word}", is_logical=True)
    return found


@pytest.mark.parametrize("plural", CRDS)
def test_the_schemas_are_structural(plural: str) -> None:
    assert structure_problems(schema_of(plural), plural) == []
    columns = CRDS[plural]["spec"]["versions"][0]["additionalPrinterColumns"]
    assert all(column["jsonPath"].startswith(".") for column in columns)


def test_the_columns_of_a_replica_are_those_of_ps() -> None:
    columns = CRDS["replicas"]["spec"]["versions"][0]["additionalPrinterColumns"]
    names = [column["name"].upper() for column in columns]
    assert names[:8] == PS_COLUMNS[1:], "the first is the object's name"
    assert names[8:] == ["DEVICE", "NODE", "ERROR"]


GOOD: list[dict[str, Any]] = [
    app(),
    app("a", server(image={"kind": "registry", "ref": "debian:12", "workdir": None}), secretsFrom="keys"),
    app("a", server(image={"kind": "build", "steps": [{"op": "pip", "args": ["torch"]}]})),
    app("a", server(ready={"path": "/ready", "method": "POST", "json_body": {"any": [1, None]}})),
    app("a", server(resources={"cpus": 0.5, "memory_bytes": 1 << 30, "gpu": "H100:2"})),
    app("a", server(snapshot={"canary": [{"path": "/x", "json_body": "text"}], "after_restore": None})),
    app("a", server(code=None, env={"A": "1"}, volumes=[{"host_path": "/a", "mount_path": "/b"}])),
]


@pytest.mark.parametrize("body", GOOD)
def test_what_the_model_takes_the_schema_takes(body: dict[str, Any]) -> None:
    AppObject.model_validate(body["spec"]).app(body["metadata"]["name"])
    assert problems(body) == []


BAD: list[tuple[str, dict[str, Any]]] = [
    ("no servers", {"servers": []}),
    ("nothing", {}),
    ("no image", {"servers": [{"name": "web", "command": ["x"]}]}),
    ("a name", {"servers": [server("Web_1")]}),
    ("text for a number", {"servers": [server(port="eighty")]}),
    ("a port", {"servers": [server(port=70_000)]}),
    ("no command", {"servers": [server(command=[])]}),
    ("zero processors", {"servers": [server(resources={"cpus": 0})]}),
    ("an unknown kind", {"servers": [server(image={"kind": "magic", "path": "/"})]}),
    ("no kind", {"servers": [server(image={"path": "/"})]}),
    ("a field of another kind", {"servers": [server(image={"kind": "directory", "path": "/", "ref": "x"})]}),
    ("what a kind needs", {"servers": [server(image={"kind": "registry"})]}),
    ("a relative path", {"servers": [server(image={"kind": "directory", "path": "srv"})]}),
    ("a runtime", {"servers": [server(runtime="docker")]}),
    ("null where there is none", {"servers": [server(command=None)]}),  # one with a default gets that
    ("env that is no text", {"servers": [server(env={"A": 1})]}),
    ("a Secret's name", {"servers": [server()], "secretsFrom": "Not/A/Name"}),
]


@pytest.mark.parametrize(("what", "spec"), BAD, ids=[what for what, _ in BAD])
def test_what_the_model_refuses_the_schema_refuses(what: str, spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AppObject.model_validate(spec)
    body = {**app(), "spec": spec}
    assert problems(body), what


def test_an_apps_name_is_checked_by_its_schema() -> None:
    body = copy.deepcopy(app())
    body["metadata"]["name"] = "has.dots"
    assert problems(body)


class _Either(BaseModel):
    value: int | str


class _Deep(BaseModel):
    kind: Literal["one"]
    size: float


def test_what_cannot_be_said_is_an_error_and_not_left_out() -> None:
    with pytest.raises(ValueError, match="no alternatives"):
        structural_schema(_Either)
    assert structural_schema(_Deep)["properties"]["kind"]["enum"] == ["one"]
