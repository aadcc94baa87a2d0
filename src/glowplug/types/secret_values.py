"""What a server may be given as secrets: environment variables, together small enough for a new process."""

from __future__ import annotations

from collections.abc import Mapping

from glowplug.types.errors import InvalidInput

_MAX_CHARACTERS = 64 << 10
MAX_SECRETS_BYTES = 512 << 10
"""With what a specification may hold they fit into what the kernel gives a new process (execve(2))."""


def check_secrets(secrets: Mapping[str, str]) -> None:
    """Raises InvalidInput for what cannot be a process's environment. A value is never repeated."""
    total_bytes = 0
    for name, value in secrets.items():
        is_variable = name and "=" not in name and "\0" not in name + value
        if not is_variable or len(value) > _MAX_CHARACTERS:
            raise InvalidInput(
                f"Secret {name[:64]!r} cannot be an environment variable.",
                remedy="Use a name without '=' and a value of at most 64 KiB without NUL.",
            )
        total_bytes += len(name.encode()) + len(value.encode()) + 2
    if total_bytes > MAX_SECRETS_BYTES:
        raise InvalidInput(
            f"The secrets of one server have {total_bytes >> 10} KiB, of at most {MAX_SECRETS_BYTES >> 10}.",
            remedy="Keep large ones in a volume.",
        )
