"""Files that users write: YAML, checked field by field. Whatever is in them, the worst is InvalidInput."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from glowplug.types.errors import InvalidInput

MAX_FILE_BYTES = 10_000_000
_SHOWN_PROBLEMS = 20

_Model = TypeVar("_Model", bound=BaseModel)


def read_yaml(path: Path, model: type[_Model], *, what: str, page: str, example: str) -> _Model:
    """Read and check it. ``what`` names such a file, ``page`` lists its fields, ``example`` shows whole ones.

    Raises InvalidInput that names every field that is wrong.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise _unusable(path, f"it is larger than {MAX_FILE_BYTES} bytes", what, example)
        found: Any = yaml.safe_load(data)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        raise _unusable(path, str(problem), what, example) from problem
    if not isinstance(found, dict):
        raise _unusable(path, "it is no mapping of names to values", what, example)
    try:
        return model.model_validate(found)
    except ValidationError as problem:
        wrong = [
            f"{'.'.join(str(part) for part in error['loc']) or 'file'}: {error['msg']}"
            for error in problem.errors(include_url=False, include_input=False)
        ]
        raise InvalidInput(
            f"{path} is wrong in {len(wrong)} place{'s' if len(wrong) > 1 else ''}.",
            remedy=f"{page} lists every field; {example} has whole files.",
            file=str(path),
            fields=wrong[:_SHOWN_PROBLEMS],
        ) from problem


def _unusable(path: Path, why: str, what: str, example: str) -> InvalidInput:
    return InvalidInput(
        f"{path} cannot be read as a {what}: {why}.",
        remedy=f"Write YAML as in {example}.",
        file=str(path),
    )
