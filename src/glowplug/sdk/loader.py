"""From a path to an :class:`~glowplug.sdk.app.App`, for ``glowplug deploy FILE`` and its relatives.

An app file is the user's own program and is run to be read. Whatever goes wrong in it (a typo, an exception,
no app at all) becomes an InvalidInput that says where and what to do. Loading leaves the process as it was:
the module and its neighbours are unregistered, ``sys.path`` is restored, and prints go to standard error,
so that ``--json`` output stays clean.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType

from glowplug.sdk.app import App
from glowplug.sdk.command import server_from_command
from glowplug.types.errors import GlowplugError, InvalidInput

__all__ = ["load_app", "server_from_command"]

MAX_FILE_BYTES = 16 << 20
_TRACEBACK_FRAMES = 5


def load_app(path: Path, name: str | None = None) -> App:
    """The one App that the file at ``path`` defines, or the one called ``name``. Raises InvalidInput."""
    file = _app_file(path)
    with _import_state_restored(file.parent), contextlib.redirect_stdout(sys.stderr):
        module = _run(file)
    apps = list({id(value): value for value in vars(module).values() if isinstance(value, App)}.values())
    if name is not None:
        return _named(apps, name, file)
    if not apps:
        raise InvalidInput(f"{file} defines no app.", remedy='Add `app = gp.App("my-app")` at its top level.')
    if len(apps) > 1:
        raise InvalidInput(
            f"{file} defines several apps: {', '.join(app.name for app in apps)}.",
            remedy=f"Say which: {file.name}:{apps[0].name}.",
        )
    return apps[0]


def import_file(file: Path, module_name: str) -> ModuleType:
    """Run a Python file as the module ``module_name``, registered as such. Raises what the file raises."""
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{file} is not a Python file.", remedy="Its name must end with .py.")
    module = importlib.util.module_from_spec(spec)
    # Registered first: dataclasses, pickling and `inspect` look a class's module up while it runs.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(module_name, None)
        raise
    return module


def _app_file(path: Path) -> Path:
    try:
        # Of a link, the real file: its folder is what the container gets to see.
        file = path.resolve(strict=True)
        size_bytes = file.stat().st_size
    except (OSError, ValueError, RuntimeError) as error:  # the last: links in a circle
        raise InvalidInput(
            f"The app file {path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            remedy="Check the path; relative paths start at the current folder.",
        ) from error
    if not file.is_file() or file.suffix != ".py":
        raise InvalidInput(f"{path} is not a Python file.", remedy="Name a file that ends with .py.")
    if size_bytes > MAX_FILE_BYTES:
        raise InvalidInput(f"{path} is larger than 16 MiB.", remedy="Name the file that defines the app.")
    return file


def _named(apps: list[App], name: str, file: Path) -> App:
    matches = [app for app in apps if app.name == name]
    if len(matches) != 1:
        known = ", ".join(app.name for app in apps) or "none"
        raise InvalidInput(
            f"{file} defines {len(matches) or 'no'} app{'s' if matches else ''} named {name!r}.",
            remedy=f"Its apps are: {known}. Names must differ.",
        )
    return matches[0]


@contextlib.contextmanager
def _import_state_restored(folder: Path) -> Iterator[None]:
    path, modules, writes_bytecode = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    # Reading an app must not leave files in the user's folder.
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = writes_bytecode
        # Another app may have another `models.py`: what came from this folder must not answer for it.
        added = set(sys.modules) - modules
        neighbours = {name for name in added if "." not in name and _lies_in(folder, sys.modules[name])}
        for name in added:
            if name.partition(".")[0] in neighbours:
                del sys.modules[name]


def _lies_in(folder: Path, module: ModuleType) -> bool:
    """Whether a top-level module or package is ``folder/NAME.py`` or ``folder/NAME/``, not deeper."""
    spec = module.__spec__
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    return any(Path(place).parent == folder for place in places)


def _run(file: Path) -> ModuleType:
    try:
        return import_file(file, f"glowplug_app_{id(file):x}_{file.stem}")
    except GlowplugError as error:
        line = _line_in(file, error.__traceback__)
        raise InvalidInput(
            f"{file.name}{f', line {line}' if line else ''}: {error.message}",
            remedy=error.remedy,
            **{**error.details, "file": str(file), "line": line},
        ) from error
    except SyntaxError as error:
        raise InvalidInput(
            f"{error.filename or file}, line {error.lineno or '?'}: {error.msg}.",
            remedy="Correct the syntax; `python -m py_compile FILE` checks it.",
            file=str(error.filename or file),
            line=error.lineno,
            text=(error.text or "").strip()[:200],
        ) from error
    except (Exception, SystemExit) as error:  # the user's own code may raise anything: it is shown as theirs
        line = _line_in(file, error.__traceback__)
        raise InvalidInput(
            f"{file.name}{f', line {line}' if line else ''} raised {type(error).__name__}: {error}",
            remedy=_import_remedy(error),
            file=str(file),
            line=line,
            traceback="".join(_user_traceback(file, error)),
        ) from error


def _import_remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"The app file is also read here, where {error.name!r} is not installed: import it inside the "
            "methods that need it."
        )
    return "Run the file with Python to reproduce it; an app file must import without side effects."


def _line_in(file: Path, trace: TracebackType | None) -> int | None:
    lines = [line for frame, line in traceback.walk_tb(trace) if frame.f_code.co_filename == str(file)]
    return lines[-1] if lines else None


def _user_traceback(file: Path, error: BaseException) -> list[str]:
    """The traceback's tail from the app file on, without our own and importlib's frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(file):
        trace = trace.tb_next
    return traceback.format_exception(type(error), error, trace, limit=-_TRACEBACK_FRAMES)
