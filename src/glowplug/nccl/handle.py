"""A process group whose communicators can be taken away and put back while the program keeps the object.

PyTorch's own ``ProcessGroup`` never lets go of a backend that was registered with it (``setBackend`` keeps
the first of its type), and a ``ProcessGroupGloo`` closes its connections only when it is destroyed. So the
program gets a subclass, which PyTorch supports, in front of a group of PyTorch's own: that one is dropped and
made anew. Every method that PyTorch's class has is passed on, counted, and stopped at the gate.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroup, Work
from torch.distributed import distributed_c10d as c10d

from glowplug.nccl import support
from glowplug.nccl.gate import Gate
from glowplug.types.errors import Conflict, ReplicaFailed

_POINT_TO_POINT = frozenset({"send", "recv", "recv_anysource"})
_MAKES_GROUPS = frozenset({"split_group", "merge_remote_group"})


@dataclass(frozen=True)
class Recipe:
    """How a group was made: an entry of the creation log. ``ranks`` are global, in the group's order."""

    name: str
    description: str
    ranks: list[int]
    group_rank: int
    timeout: timedelta
    backends: dict[str, str]
    """Backend by device type, sorted: all ranks make them in one order."""
    options: Any = None
    device: Any = None


@dataclass
class _InFlight:
    """What was begun, and its work as long as somebody has the object: keeping it would keep its tensors."""

    begun: int = 0
    works: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, work: Any, *, is_message: bool) -> None:
        with self.lock:
            self.begun += not is_message
            self.works.add(work)

    def is_over(self) -> bool:
        """Messages are over when somebody has waited for them: PyTorch does not say it otherwise."""
        with self.lock:
            return all(work.is_completed() for work in self.works)


class Handle(ProcessGroup):  # type: ignore[misc]
    """What the program has. ``group`` is PyTorch's own group behind it, None while it is released."""

    def __init__(self, recipe: Recipe, group: Any, gate: Gate) -> None:
        super().__init__(recipe.group_rank, len(recipe.ranks))
        self.recipe = recipe
        self.group: Any = group
        self.in_flight = _InFlight()
        self.has_others = False
        """Whether other groups were made out of this one, which nobody knows how to make again."""
        self._gate = gate
        self._kept: dict[str, Any] = {}

    # -- what is known without a group -----------------------------------------------------------------------

    def rank(self) -> int:
        """This process's rank in the group."""
        return self.recipe.group_rank

    def size(self) -> int:
        """How many ranks are in the group."""
        return len(self.recipe.ranks)

    def name(self) -> str:
        """PyTorch's word for the group's default backend."""
        return str(_default(self.recipe))

    @property
    def group_name(self) -> str:
        """Unique in the job."""
        return self.recipe.name

    @property
    def group_desc(self) -> str:
        """For people."""
        return self.recipe.description

    @property
    def bound_device_id(self) -> Any:
        """The one device of this process, if the program bound it."""
        return self.recipe.device

    def getBackendName(self) -> str:  # noqa: N802 - C++ asks for it by this name
        """As :meth:`name`."""
        return self.name()

    def getGroupName(self) -> str:  # noqa: N802 - C++ asks for it by this name
        """As :attr:`group_name`."""
        return self.recipe.name

    def getGroupDesc(self) -> str:  # noqa: N802 - as above
        """As :attr:`group_desc`."""
        return self.recipe.description

    def shutdown(self) -> None:
        """End its communicators, if it has any: a program may leave while they are released."""
        if self.group is not None:
            self.group.shutdown()

    def abort(self) -> None:
        """As :meth:`shutdown`, without waiting."""
        if self.group is not None:
            self.group.abort()

    # -- away and back ---------------------------------------------------------------------------------------

    def release(self, deadline_s: float) -> None:
        """Let the communicators go; those of NCCL keep their topology where it suspends them. Collective."""
        if self.group is None:
            return
        for name, backend in _backends(self.group).items():
            self._flush(name, deadline_s)
            if name != support.NCCL:
                continue
            if support.suspends(backend, nccl_version()):
                backend.suspend()
                self._kept[name] = backend
            else:
                backend.shutdown()
        self.group = None  # the last reference: connections and threads of Gloo end here

    def rebuild(self, store: Any, deadline_s: float) -> Any:
        """Make the communicators anew, or resume those that were kept. Returns the store of this group alone.

        Collective over the group's ranks; each gives up after the deadline.
        """
        recipe = self.recipe
        prefix = PrefixStore(f"{recipe.name}/", store)
        group = ProcessGroup(prefix, recipe.group_rank, len(recipe.ranks))
        group._set_default_backend(_type(_default(recipe)))
        if recipe.device is not None:
            group.bound_device_id = recipe.device
        made: dict[str, Any] = {}
        for device, backend in recipe.backends.items():
            if backend not in made:
                own = PrefixStore(f"{device}/", prefix)
                made[backend] = self._resumed(backend) or _make(backend, own, recipe, deadline_s)
            group._register_backend(torch.device(device), _type(backend), made[backend])
        group._set_group_name(recipe.name)
        group._set_group_desc(recipe.description)
        self.group = group
        return prefix

    def verify(self, generation: int, deadline_s: float) -> None:
        """All members are there, and mean this group by it. Raises ReplicaFailed. Collective."""
        recipe = self.recipe
        mark = zlib.crc32(recipe.name.encode())
        expected = [[rank, mark, generation] for rank in recipe.ranks]
        for backend in dict.fromkeys(recipe.backends.values()):
            device = next(kind for kind, name in recipe.backends.items() if name == backend)
            mine = torch.tensor(expected[recipe.group_rank], dtype=torch.int64, device=device)
            found = [torch.empty_like(mine) for _ in recipe.ranks]
            self.group.allgather([found], [mine]).wait(timedelta(seconds=deadline_s))
            heard = [one.tolist() for one in found]
            if heard != expected:
                raise ReplicaFailed(
                    f"The group {recipe.name!r} was rebuilt wrongly: its ranks are {heard}, not {expected}.",
                    remedy="Start the server again.",
                    group=recipe.name,
                )

    def settled(self) -> None:
        """From here on the program's own time limit holds, not the rebuild's."""
        for backend in _backends(self.group).values():
            backend._set_default_timeout(self.recipe.timeout)

    def _flush(self, backend: str, deadline_s: float) -> None:
        """Wait for work whose object nobody has any more: a barrier of Gloo ends after all before it."""
        options = c10d.BarrierOptions()
        options.timeout, options.device = timedelta(seconds=deadline_s), torch.device("cpu")
        if backend == support.NCCL:
            torch.cuda.synchronize()
            options.device = torch.device("cuda", torch.cuda.current_device())
        self.group.barrier(options).wait()
        if backend == support.NCCL:
            torch.cuda.synchronize()  # its barrier is work on a stream, too

    def _resumed(self, backend: str) -> Any:
        kept = self._kept.pop(backend, None)
        if kept is not None:
            kept.resume()
        return kept


def recipe_of(group: Any, ranks: list[int], timeout: timedelta, options: Any, device: Any) -> Recipe:
    """The entry of the log for a group that PyTorch has just made."""
    backends = {kind.type: str(group._get_backend(kind).name()) for kind in group._device_types}
    return Recipe(
        name=str(group.group_name),
        description=str(group.group_desc),
        ranks=ranks,
        group_rank=group.rank(),
        timeout=timeout,
        backends=dict(sorted(backends.items())),
        options=options,
        device=device,
    )


def nccl_version() -> tuple[int, ...]:
    """Of the library that is loaded; nothing where PyTorch has none."""
    return tuple(torch.cuda.nccl.version()) if torch.distributed.is_nccl_available() else ()


def _default(recipe: Recipe) -> str:
    """As PyTorch chooses it: NCCL's where the group has one."""
    return support.NCCL if support.NCCL in recipe.backends.values() else support.GLOO


def _type(backend: str) -> Any:
    return c10d.Backend.backend_type_map[backend]


def _backends(group: Any) -> dict[str, Any]:
    found = (group._get_backend(kind) for kind in group._device_types)
    return {str(backend.name()): backend for backend in found}


def _make(backend: str, store: Any, recipe: Recipe, deadline_s: float) -> Any:
    timeout, size = timedelta(seconds=deadline_s), len(recipe.ranks)
    if backend == support.GLOO:
        made = c10d.ProcessGroupGloo(store, recipe.group_rank, size, timeout=timeout)
        made.options.global_ranks_in_group = recipe.ranks
        made.options.group_name = recipe.name
    else:
        options = c10d.ProcessGroupNCCL.Options()
        if recipe.options is not None:
            options.is_high_priority_stream = recipe.options.is_high_priority_stream
            options.config = recipe.options.config
        options._timeout = timeout
        options.global_ranks_in_group = recipe.ranks
        options.group_name = recipe.name
        made = c10d.ProcessGroupNCCL(store, recipe.group_rank, size, options)
    made._set_sequence_number_for_group()
    return made


def _passed_on(name: str) -> Callable[..., Any]:
    is_message, makes_groups = name in _POINT_TO_POINT, name in _MAKES_GROUPS

    def call(self: Handle, *args: Any, **kwargs: Any) -> Any:
        with self._gate.passing():
            if self.group is None:
                raise Conflict(
                    f"The group {self.recipe.name!r} is released.", remedy="Resume before it is used."
                )
            result = getattr(self.group, name)(*args, **kwargs)
            if isinstance(result, Work):
                self.in_flight.add(result, is_message=is_message)
            self.has_others |= makes_groups
        return result

    call.__name__ = name
    call.__doc__ = f"``ProcessGroup.{name}`` of the group behind this one."
    return call


def _passed_on_property(name: str) -> property:
    def read(self: Handle) -> Any:
        with self._gate.passing():
            return getattr(self.group, name)

    def write(self: Handle, value: Any) -> None:
        with self._gate.passing():
            setattr(self.group, name, value)

    return property(read, write, doc=f"``ProcessGroup.{name}`` of the group behind this one.")


def _pass_everything_on() -> None:
    own = set(vars(Handle))
    for name, attribute in vars(ProcessGroup).items():
        if name.startswith("__") or name in own or isinstance(attribute, type | staticmethod):
            continue
        if isinstance(attribute, property):
            setattr(Handle, name, _passed_on_property(name))
        elif callable(attribute):
            setattr(Handle, name, _passed_on(name))


_pass_everything_on()
