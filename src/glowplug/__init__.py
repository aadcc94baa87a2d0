"""Glowplug: model servers that scale to zero and come back in seconds.

App files say ``import glowplug as gp`` and use the names below. Importing this package loads nothing else:
every name is fetched when it is first used, because this module is also imported by each of our processes
and inside users' containers, where start-up time counts and only the standard library exists.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glowplug.sdk.app import App as App
    from glowplug.sdk.app import Server as Server
    from glowplug.sdk.image import Image as Image
    from glowplug.sdk.lifecycle import before_snapshot as before_snapshot
    from glowplug.sdk.lifecycle import enter as enter
    from glowplug.sdk.lifecycle import exit as exit  # noqa: A004 - read as gp.exit, the word users know
    from glowplug.sdk.lifecycle import method as method
    from glowplug.sdk.recipe import Recipe as Recipe
    from glowplug.sdk.recipe import Variant as Variant
    from glowplug.sdk.remote_error import RemoteError as RemoteError
    from glowplug.sdk.secret import Secret as Secret
    from glowplug.sdk.snapshot import Hook as Hook
    from glowplug.sdk.snapshot import Request as Request
    from glowplug.sdk.snapshot import Snapshot as Snapshot
    from glowplug.sdk.volume import Volume as Volume
    from glowplug.types.errors import GlowplugError as GlowplugError

_HOMES = {
    "App": "glowplug.sdk.app",
    "GlowplugError": "glowplug.types.errors",
    "Hook": "glowplug.sdk.snapshot",
    "Image": "glowplug.sdk.image",
    "Recipe": "glowplug.sdk.recipe",
    "RemoteError": "glowplug.sdk.remote_error",
    "Request": "glowplug.sdk.snapshot",
    "Secret": "glowplug.sdk.secret",
    "Server": "glowplug.sdk.app",
    "Snapshot": "glowplug.sdk.snapshot",
    "Variant": "glowplug.sdk.recipe",
    "Volume": "glowplug.sdk.volume",
    "before_snapshot": "glowplug.sdk.lifecycle",
    "enter": "glowplug.sdk.lifecycle",
    "exit": "glowplug.sdk.lifecycle",
    "method": "glowplug.sdk.lifecycle",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'glowplug' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
