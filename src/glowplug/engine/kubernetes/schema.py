"""A pydantic model as a structural schema, which is what the API server takes for custom resources.

Structural (apiextensions v1, compatible with 1.20: no CEL) means: a type at every place, no references, no
alternatives that hold types. What cannot be said so is an error here, and never left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_KEPT = frozenset(
    {
        "type", "description", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems",
        "maxItems", "required",
    }
)  # fmt: skip
_LEFT_OUT = frozenset({"title", "default"})
"""Defaults are ours to fill in: written into objects, they would stay after we changed them."""


def structural_schema(model: type[BaseModel]) -> Schema:
    """Raises ValueError for what the API server could not check."""
    schema = model.model_json_schema(by_alias=True)
    return _Converter(schema.pop("$defs", {})).convert(schema)


class _Converter:
    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def convert(self, node: Schema) -> Schema:
        """One place of a JSON Schema, and everything below it."""
        node = self._resolved(node)
        if "anyOf" in node:
            return self._optional(node)
        if "discriminator" in node:
            return self._union(node)
        if not node.keys() - _LEFT_OUT - {"description"}:
            return {"x-kubernetes-preserve-unknown-fields": True, "nullable": True}
        made: Schema = {}
        for key, value in node.items():
            made.update(self._converted(key, value))
        if made.get("type") == "integer":
            made["format"] = "int64"
        return made

    def _converted(self, key: str, value: Any) -> Schema:
        match key, value:
            case (_, _) if key in _KEPT:
                return {key: value}
            case (_, _) if key in _LEFT_OUT:
                return {}
            case "const", _:
                return {"enum": [value]}
            case (("exclusiveMinimum" | "exclusiveMaximum"), _):
                return {key: True, key.removeprefix("exclusive").lower(): value}
            case "properties", dict():
                return {"properties": {name: self.convert(one) for name, one in value.items()}}
            case "items", dict():
                return {"items": self.convert(value)}
            case "additionalProperties", dict():
                return {"additionalProperties": self.convert(value)}
            case "additionalProperties", False:
                return {}  # pruned, or refused by strict validation: a structural schema cannot say it
            case "minProperties" | "maxProperties", _:
                return {key: value}
        raise ValueError(f"a structural schema has no {key!r}")

    def _resolved(self, node: Schema) -> Schema:
        if "$ref" not in node:
            return node
        target = self._definitions[node["$ref"].removeprefix("#/$defs/")]
        return {**self._resolved(target), **{key: value for key, value in node.items() if key != "$ref"}}

    def _optional(self, node: Schema) -> Schema:
        """``X | None``: the only alternative of types that there is a word for."""
        others = [one for one in node["anyOf"] if one != {"type": "null"}]
        if len(others) != 1 or len(others) == len(node["anyOf"]):
            raise ValueError(f"a structural schema has no alternatives: {node['anyOf']}")
        around = {key: value for key, value in node.items() if key != "anyOf"}
        return {**self.convert({**self._resolved(others[0]), **around}), "nullable": True}

    def _union(self, node: Schema) -> Schema:
        """All fields of all variants in one place; which of them belong together is said by ``oneOf``."""
        tag: str = node["discriminator"]["propertyName"]
        variants = {
            name: self.convert(self._definitions[reference.removeprefix("#/$defs/")])
            for name, reference in node["discriminator"]["mapping"].items()
        }
        properties: Schema = {tag: {"type": "string", "enum": list(variants)}}
        for variant in variants.values():
            for name, schema in variant["properties"].items():
                if name != tag:
                    properties[name] = _loosest(name, properties.get(name), schema)
        return {
            "type": "object",
            "properties": properties,
            "required": [tag],
            "oneOf": [_branch(tag, name, variant, properties) for name, variant in variants.items()],
        }


def _branch(tag: str, name: str, variant: Schema, properties: Schema) -> Schema:
    branch: Schema = {"properties": {tag: {"enum": [name]}}, "required": [tag, *variant.get("required", [])]}
    foreign = [field for field in properties if field not in variant["properties"]]
    if foreign:
        branch["not"] = {"anyOf": [{"required": [field]} for field in foreign]}
    return branch


def _loosest(name: str, known: Schema | None, other: Schema) -> Schema:
    if known is None:
        return other
    if {**known, "nullable": None} != {**other, "nullable": None}:
        raise ValueError(f"the variants do not agree about {name!r}: {known} and {other}")
    return known if known.get("nullable") else other
