"""What may be asked of a node's images beyond listing them: tasks, their progress, what an index looks like.

Every task runs in a process of its own (``glowplug.image.task``), so that nothing hostile in an archive, a
layer or an index ever runs inside the agent, and so that whoever has enough of it can simply end it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from glowplug.types.replica import ErrorInfo, Message
from glowplug.types.spec import AbsolutePath

ImageName = Annotated[str, Field(min_length=1, max_length=200)]
"""A name given on import, or a digest (64 hex digits, or the first 8 or more)."""


class ImportTask(Message):
    """Make an image of a folder, a tar, ``oci:PATH[:TAG]``, ``docker://REF`` or ``dockerfile:PATH``.

    ``order_by`` names an image whose access traces say what to lay out first. ``clamp_to_s`` is a Unix time
    that no file may be newer than. ``insecure``: the registry is spoken to without TLS.
    """

    op: Literal["import"] = "import"
    source: str = Field(min_length=1, max_length=4096)
    name: ImageName | None = None
    order_by: ImageName | None = None
    clamp_to_s: int | None = None
    exclude: list[str] = []
    insecure: bool = False
    platform: str | None = None
    context_dir: AbsolutePath | None = None
    build_args: dict[str, str] = {}


class PushTask(Message):
    """Bring an image, and what of its content is not there yet, to the region."""

    op: Literal["push"] = "push"
    image: ImageName
    name: ImageName | None = None
    compress: bool = False


class PullTask(Message):
    """Fetch an image's index from the region; ``content``: all its chunks, too."""

    op: Literal["pull"] = "pull"
    image: ImageName
    content: bool = False


class PrefetchTask(Message):
    """Fetch content ahead of use: what traces say, or all of it."""

    op: Literal["prefetch"] = "prefetch"
    image: ImageName
    all: bool = False


class VerifyTask(Message):
    """Hash an image's chunks on this node again, or (None) every chunk; what is wrong is dropped."""

    op: Literal["verify"] = "verify"
    image: ImageName | None = None


class GcTask(Message):
    """Forget chunks: those of no image here, and the least recently used beyond ``budget_bytes``."""

    op: Literal["gc"] = "gc"
    budget_bytes: int | None = Field(default=None, ge=0)
    region: bool = False


class DiffTask(Message):
    """Compare two images, name by name."""

    op: Literal["diff"] = "diff"
    first: ImageName
    second: ImageName
    limit: int = Field(default=1000, ge=1, le=1_000_000)


class MountTask(Message):
    """Mount an image on the node, also (read-only) at ``target`` if that is given."""

    op: Literal["mount"] = "mount"
    image: ImageName
    target: AbsolutePath | None = None


class UnmountTask(Message):
    """Undo :class:`MountTask`, by image or by target."""

    op: Literal["unmount"] = "unmount"
    image: str = Field(min_length=1, max_length=4096)


class RemoveTask(Message):
    """Forget a name; and the index, once no name and no deployment needs it."""

    op: Literal["remove"] = "remove"
    image: ImageName


class ResolveTask(Message):
    """What a registry reference stands for right now: the digest of its manifest."""

    op: Literal["resolve"] = "resolve"
    source: str = Field(min_length=1, max_length=4096)
    insecure: bool = False
    platform: str | None = None


class DescribeTask(Message):
    """What starting a container from an image needs to know: its configuration and its Python."""

    op: Literal["describe"] = "describe"
    image: ImageName


ImageTask = Annotated[
    ImportTask
    | PushTask
    | PullTask
    | PrefetchTask
    | VerifyTask
    | GcTask
    | DiffTask
    | MountTask
    | UnmountTask
    | RemoveTask
    | ResolveTask
    | DescribeTask,
    Field(discriminator="op"),
]


class TaskRequest(Message):
    """The body of ``POST /v1/image-tasks``."""

    task: ImageTask


class TaskEvent(Message):
    """One line of a task's progress; the last one holds ``result`` or ``error``."""

    text: str = ""
    fraction: float | None = None
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None


class IndexView(Message):
    """An image's index that a node holds, and how much of its content is here."""

    digest: str
    names: list[str] = []
    entries: int
    content_bytes: int
    index_bytes: int
    here_bytes: int = 0
    is_complete: bool = False
    mounted: str | None = None
    traces: list[str] = []
    config: dict[str, Any] = {}
