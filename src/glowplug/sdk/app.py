"""The app: what a user deploys. It collects servers, classes and functions, and describes them as data.

Decorating checks only what is the same everywhere, because an app file is imported twice: where it is
deployed and, for classes and functions, inside the container. :meth:`App.to_spec` is the moment that reads
folders, files and the environment, and it promises a specification the control plane accepts, or an
InvalidInput that names the file, the server and the remedy.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Unpack

from glowplug.sdk import lifecycle, options, validation
from glowplug.sdk.code import code_spec
from glowplug.sdk.options import DEFAULT_PORT, CodeOptions, ServerOptions
from glowplug.sdk.recipe_choice import AUTO, Applied, apply_recipe, choose_recipe
from glowplug.sdk.remote import DEFAULT_URL, URL_VARIABLE, Address, RemoteFunction
from glowplug.sdk.snapshot import Request
from glowplug.types.errors import InvalidInput
from glowplug.types.ids import check_name, name_from_identifier

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

CODE_MOUNT = "/app"
FUNCTION_METHOD = "call"
READY_PATH = "/.glowplug/ready"
MAX_SERVERS = 256
_MIN_RUNNER_PYTHON = (3, 11)


@dataclass(frozen=True)
class Server:
    """A server of an app, as its name in the app file says it: ``vllm.url`` is where to reach it."""

    app: str
    name: str
    command: Callable[[], object]

    @property
    def url(self) -> str:
        """Its address on the router of ``GLOWPLUG_URL`` (default: this machine)."""
        return f"{(os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip('/')}/{self.app}/{self.name}"


@dataclass(frozen=True)
class _Definition:
    """One decorated thing. ``file`` is where it is written, if in a file at all."""

    name: str
    kind: Literal["server", "cls", "function"]
    target: Any
    file: Path | None
    options: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.file.name if self.file else 'interactive session'}, {self.kind} {self.name!r}"


class App:
    """A named set of servers, classes and functions: the unit of deployment, versioning and rollback.

    ``folder`` is where relative paths start: by default the folder of the file that makes the app.
    """

    def __init__(self, name: str, *, folder: str | os.PathLike[str] | None = None) -> None:
        if not isinstance(name, str):
            raise InvalidInput(f"App name {name!r} is not a string.", remedy='Write gp.App("my-app").')
        self.name = check_name(name, "App")
        caller_file = sys._getframe(1).f_globals.get("__file__")
        self._folder = Path(folder or (Path(caller_file).parent if caller_file else Path())).absolute()
        self._definitions: dict[str, _Definition] = {}

    def server(
        self, misplaced: None = None, /, **keywords: Unpack[ServerOptions]
    ) -> Callable[[Callable[[], object]], Server]:
        """Decorate a function that returns the command of a server (a list, or one shell line)."""
        self._check(misplaced, keywords, ServerOptions, "server")

        def register(function: Callable[[], object]) -> Server:
            if not inspect.isfunction(function):
                raise InvalidInput(
                    f"@app.server cannot decorate {function!r}.",
                    remedy="Put it above a function that returns the command.",
                )
            definition = self._add("server", function, keywords)
            return Server(self.name, definition.name, function)

        return register

    def cls(self, misplaced: None = None, /, **keywords: Unpack[CodeOptions]) -> Callable[[C], C]:
        """Decorate a class whose ``@gp.method()`` methods callers may call. The class stays as it is."""
        self._check(misplaced, keywords, CodeOptions, "cls")

        def register(cls: C) -> C:
            _check_class(cls)
            definition = self._add("cls", cls, keywords)
            setattr(cls, lifecycle.ADDRESS_ATTRIBUTE, Address(self.name, definition.name))
            return cls

        return register

    def function(
        self, misplaced: None = None, /, **keywords: Unpack[CodeOptions]
    ) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]:
        """Decorate a function callers may call; from Python with ``.remote(...)`` and ``.map(...)``."""
        self._check(misplaced, keywords, CodeOptions, "function")

        def register(function: Callable[P, R]) -> RemoteFunction[P, R]:
            if not inspect.isfunction(function):
                raise InvalidInput(
                    f"@app.function cannot decorate {function!r}.", remedy="Put it above a plain function."
                )
            signature = lifecycle.callable_signature(function, skip_self=False)
            definition = self._add("function", function, keywords)
            return RemoteFunction(function, Address(self.name, definition.name, FUNCTION_METHOD), signature)

        return register

    def recipes(self) -> dict[str, Applied]:
        """Per server whose engine is known, the recipe it gets and what that fills in."""
        servers = [definition for definition in self._definitions.values() if definition.kind == "server"]
        applied = {d.name: _with_recipe(_command(d.target), d.options)[1] for d in servers}
        return {name: recipe for name, recipe in applied.items() if recipe is not None}

    def to_spec(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The app as a JSON-ready ``AppSpec``, and the values of its secrets. Raises InvalidInput."""
        if not 1 <= len(self._definitions) <= MAX_SERVERS:
            raise InvalidInput(
                f"App {self.name!r} has {len(self._definitions)} servers.",
                remedy=f"Define 1 to {MAX_SERVERS} with @app.server, @app.cls or @app.function.",
                app=self.name,
            )
        servers: list[dict[str, Any]] = []
        secrets: dict[str, str] = {}
        for definition in self._definitions.values():
            try:
                spec, values = self._describe(definition)
                options.merge_secrets(secrets, values)
            except InvalidInput as error:
                raise InvalidInput(
                    f"{definition.where}: {error.message}",
                    remedy=error.remedy,
                    **{**error.details, "app": self.name, "server": definition.name},
                ) from error
            servers.append(spec)
        return {"version": 1, "name": self.name, "servers": servers}, secrets

    def __repr__(self) -> str:
        return f"App({self.name!r}: {', '.join(self._definitions) or 'empty'})"

    def _check(self, misplaced: object, keywords: Mapping[str, Any], known: type, kind: str) -> None:
        if misplaced is not None:
            raise InvalidInput(f"@app.{kind} needs parentheses.", remedy=f"Write @app.{kind}(...).")
        options.check_keywords(keywords, known, f"@app.{kind}")

    def _add(self, kind: Literal["server", "cls", "function"], target: Any, keywords: Any) -> _Definition:
        given = keywords.get("name", name_from_identifier(target.__name__))
        name = check_name(validation.text(given, "name"), kind.capitalize())
        if name in self._definitions:
            raise InvalidInput(
                f"App {self.name!r} has two servers named {name!r}.",
                remedy='Rename one of them, or give it another name with name="...".',
                app=self.name,
            )
        definition = _Definition(name, kind, target, _file_of(target), dict(keywords))
        self._definitions[name] = definition
        return definition

    def _describe(self, definition: _Definition) -> tuple[dict[str, Any], dict[str, str]]:
        if definition.kind == "server":
            command = _command(definition.target)
            keywords, _applied = _with_recipe(command, definition.options)
            spec, secrets = options.describe(keywords, self._folder)
            return {"version": 1, "name": definition.name, **spec, "command": command}, secrets
        spec, secrets = options.describe(definition.options, self._folder)
        spec = {"version": 1, "name": definition.name, **spec}
        _check_runner_fits(spec)
        if definition.file is None or "." in definition.target.__qualname__:
            raise InvalidInput(
                "The runner imports it from a file, and cannot find it there.",
                remedy="Define it at the top level of a .py file.",
            )
        target = definition.target.__name__
        command = ["python3", "-m", "glowplug.sdk.runner", "--module", f"{CODE_MOUNT}/{definition.file.name}"]
        command += ["--target", target, "--kind", definition.kind, "--port", str(DEFAULT_PORT)]
        spec |= {
            "command": command,
            "ready": Request("GET", READY_PATH).to_spec(),
            "code": code_spec(definition.file, target, definition.kind),
        }
        return spec, secrets


def _check_class(cls: object) -> None:
    if not isinstance(cls, type):
        raise InvalidInput(f"@app.cls cannot decorate {cls!r}.", remedy="Put it above a class.")
    if not lifecycle.methods_of(cls):
        raise InvalidInput(
            f"{cls.__qualname__} has no method to call.",
            remedy="Put @gp.method() above the methods that callers may call.",
        )
    try:
        inspect.signature(cls).bind()
    except TypeError:
        raise InvalidInput(
            f"{cls.__qualname__} cannot be made without arguments.",
            remedy="Give its __init__ defaults, or move the work to a method marked @gp.enter(snap=True).",
        ) from None


def _check_runner_fits(spec: Mapping[str, Any]) -> None:
    image = spec["image"]
    python = tuple(int(part) for part in image.get("python", "3.11").split("."))
    if python < _MIN_RUNNER_PYTHON:
        raise InvalidInput(
            f"Classes and functions need Python 3.11 or newer, not {image['python']}.",
            remedy='Write gp.Image.debian_slim(python="3.11").',
        )
    taken = [folder["remote_path"] for folder in image.get("local_dirs", ())]
    taken += [volume["mount_path"] for volume in spec.get("volumes", ())]
    if any(path == CODE_MOUNT or path.startswith(f"{CODE_MOUNT}/") for path in taken):
        raise InvalidInput(
            f"Something is mounted at {CODE_MOUNT}, where the app's own folder lies.",
            remedy="Choose another path.",
        )


def _with_recipe(command: list[str], given: Mapping[str, Any]) -> tuple[Mapping[str, Any], Applied | None]:
    """The keywords of a server, with what the recipe for its engine fills in, if there is one."""
    recipe = choose_recipe(command, given.get("recipe", AUTO))
    return (given, None) if recipe is None else apply_recipe(recipe, command, given)


def _command(function: Callable[[], object]) -> list[str]:
    try:
        command = function()
    except Exception as error:  # the user's own code may raise anything; it is reported as theirs
        raise InvalidInput(
            f"the function that gives the command raised {type(error).__name__}: {error}.",
            remedy="It is called without arguments, where the app is deployed.",
        ) from error
    if isinstance(command, str):
        return ["/bin/sh", "-c", validation.text(command, "the command")]
    return validation.command(command, "the command")


def _file_of(target: Any) -> Path | None:
    module = sys.modules.get(target.__module__)
    name = getattr(module, "__file__", None)
    return Path(name).absolute() if name else None
