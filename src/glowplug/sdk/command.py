"""An app from a bare command, for ``glowplug run -- COMMAND``: no file, and as few flags as possible.

What is not said is read from the command itself: the virtual environment from where its program lies, and
all that the recipe for its engine knows (:mod:`glowplug.sdk.recipe_choice`), or else the port from its
``--port``. Each guess can be overruled.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from glowplug.sdk import validation
from glowplug.sdk.app import App
from glowplug.sdk.image import Image
from glowplug.sdk.options import DEFAULT_PORT, ReplicaOptions
from glowplug.sdk.recipe import Recipe, is_port, is_python, value_of
from glowplug.sdk.recipe_choice import AUTO, choose_recipe
from glowplug.sdk.snapshot import Request, Snapshot
from glowplug.types.errors import InvalidInput
from glowplug.types.ids import RESERVED_NAMES, name_from_identifier

DEFAULT_SERVER_NAME = "server"
_SYSTEM_FOLDERS = ("/usr/", "/bin/", "/sbin/")
_MAX_NAME_CHARACTERS = 48


def server_from_command(
    command: Sequence[str],
    *,
    app_name: str | None = None,
    name: str = DEFAULT_SERVER_NAME,
    port: int | None = None,
    ready: str | Request | None = None,
    image: Image | None = None,
    env: Mapping[str, str] | None = None,
    snapshot: bool | Snapshot = True,
    recipe: str | Recipe | None = AUTO,
    **options: Unpack[ReplicaOptions],
) -> App:
    """An app with the one server that ``command`` starts. Raises InvalidInput.

    Without ``image`` the command runs in the node's own Python (that of the virtual environment its program
    lies in, or the system's) and in the current folder. Relative paths start at the current folder.
    """
    arguments = validation.command(command, "the command")
    app_name = app_name or guess_name(arguments)
    chosen = choose_recipe(arguments, recipe)
    if image is None:
        arguments[0], image = _locate(arguments[0])
        image = in_current_folder(image)
    app = App(app_name, folder=Path())
    keywords: dict[str, Any] = {
        **options,
        "name": name,
        "image": image,
        "snapshot": snapshot,
        "env": env or {},
        "recipe": chosen,
    }
    # Left out unless said, so that the recipe's own come in.
    if port is not None or chosen is None:
        keywords["port"] = guess_port(arguments) if port is None else port
    if ready is not None:
        keywords["ready"] = ready

    def run_command() -> list[str]:
        return arguments

    app.server(**keywords)(run_command)
    return app


def in_current_folder(image: Image) -> Image:
    """``image`` with the current folder shown in it, read-only, at its own path, and started in."""
    here = str(Path.cwd())
    return image if here == "/" else image.add_local_dir(here, here).workdir(here)


def guess_port(command: Sequence[str]) -> int:
    """The port a command says it listens on: ``--port N``, ``--port=N``, ``-p N``, a last bare number."""
    said = [value_of(command[1:], flag) for flag in ("-p", "--port")]
    last = command[-1] if len(command) > 1 else None
    found = next((value for value in reversed(said) if value is not None), last)
    return int(found) if is_port(found) else DEFAULT_PORT


def guess_name(command: Sequence[str]) -> str:
    """A name for the app: the module for ``python -m MODULE``, the file for ``python FILE``, the program."""
    words = list(command)
    subject = Path(words[0]).name
    if is_python(subject) and len(words) > 1:
        if words[1] == "-m" and len(words) > 2:
            subject = words[2]
        elif not words[1].startswith("-"):
            subject = Path(words[1]).stem
    name = name_from_identifier(subject)[:_MAX_NAME_CHARACTERS].strip("-")
    return f"{name}-app" if name in RESERVED_NAMES else name or "app"


def _locate(program: str) -> tuple[str, Image]:
    """The program as the container will find it, and the image that holds it."""
    found = shutil.which(program)
    path = Path(found).absolute() if found else None
    if path is not None:
        venv = path.parent.parent
        if path.parent.name == "bin" and (venv / "pyvenv.cfg").is_file():
            return (str(path) if "/" in program else program), Image.host_python(venv)
        if str(path).startswith(_SYSTEM_FOLDERS):
            return program, Image.host_python()
    if program in ("python", "python3"):
        # Debian has no `python`, and a version manager's lies outside the system: its own is `python3`.
        return "python3", Image.host_python()
    where = f"lies in {path.parent}, which containers do not see" if path else "is not installed here"
    raise InvalidInput(
        f"{program!r} {where}.",
        remedy="Name a program below /usr or in a virtual environment's bin folder, or choose an image.",
    )
