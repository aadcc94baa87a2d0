"""``recipes``: what Glowplug knows about engines, and would fill in for their commands."""

from __future__ import annotations

from typing import Any

import typer

from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.sdk.recipe import Recipe, Variant
from glowplug.sdk.recipe_table import known_recipes

_HOOKS = ("before_snapshot", "after_restore")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("recipes")(list_recipes)


def list_recipes(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the engines whose commands are recognised, and what is filled in for them."""
    session = session_of(context)
    recipes = known_recipes()
    if as_json:
        print_json(session, [recipe_to_json(recipe) for recipe in recipes])
        return
    rows = [
        [recipe.name, ", ".join(recipe.commands), str(recipe.port), recipe.ready, " ".join(recipe.env)]
        for recipe in recipes
    ]
    print_table(session, ["RECIPE", "COMMANDS", "PORT", "READY", "ENVIRONMENT"], rows, "There are none.")


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe, as ``--json`` prints it."""
    return {
        "name": recipe.name,
        "engine": recipe.engine,
        "commands": list(recipe.commands),
        "port": recipe.port,
        "ready": recipe.ready,
        "env": dict(recipe.env),
        "cpus": recipe.cpus,
        "memory_bytes": recipe.memory_bytes,
        "startup_timeout_s": recipe.startup_timeout_s,
        **_calls(recipe),
        "variants": [_variant_to_json(variant) for variant in recipe.variants],
    }


def _variant_to_json(variant: Variant) -> dict[str, Any]:
    hooks = {name: getattr(variant, name) for name in _HOOKS}
    return {
        "flag": variant.flag,
        "values": list(variant.values),
        "env": dict(variant.env),
        **_calls(variant),
        **{name: hook.to_spec() if hook else None for name, hook in hooks.items()},
    }


def _calls(source: Recipe | Variant) -> dict[str, Any]:
    return {
        "warmup": [request.to_spec() for request in source.warmup or ()],
        "canary": [request.to_spec() for request in source.canary or ()],
    }
