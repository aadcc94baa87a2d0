"""The creation log of one rank: every group that PyTorch makes, in order, and all of them away and back.

``torch.distributed`` makes its groups in one function, ``_new_process_group_helper``, for the world and for
sub-groups. It is wrapped: what it returns to the program is a :class:`~glowplug.nccl.handle.Handle`,
which takes the place of PyTorch's group in PyTorch's tables, too.
"""

from __future__ import annotations

import functools
import inspect
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroup, TCPStore
from torch.distributed import distributed_c10d as c10d

from glowplug.nccl import support
from glowplug.nccl.gate import Gate
from glowplug.nccl.handle import Handle, recipe_of
from glowplug.nccl.member import LOOPBACK
from glowplug.types.errors import Conflict, ReplicaFailed, SystemUnfit

_HELPER = "_new_process_group_helper"
_ARGUMENTS = frozenset(
    {"global_ranks_in_group", "store", "backend_options", "timeout", "device_id", "group_size", "backend"}
)
_NEEDED = ("_world", "_register_process_group", "_unregister_process_group", "ProcessGroupGloo")
_LOOK_S = 0.005

Function = Callable[[], object]
OnWorld = Callable[[Handle, Any], object]
"""What is done when the world has been made: its handle, and its store."""


class TorchGroups:
    """Implements :class:`~glowplug.nccl.member.Groups` for ``torch.distributed``."""

    def __init__(self, gate: Gate, on_world: OnWorld) -> None:
        self.before_release: list[Function] = []
        self.after_rebuild: list[Function] = []
        self._gate = gate
        self._on_world = on_world
        self._log: list[Handle] = []
        self._store: Any = None
        self._opened: Any = None
        self._making = threading.RLock()
        self._generation = 0

    def install(self) -> None:
        """From here on every group is logged.

        Raises Conflict if there are groups, SystemUnfit for a PyTorch that makes its groups in another way.
        """
        if torch.distributed.is_initialized():
            raise Conflict(
                "Process groups exist already.",
                remedy="Call glowplug.nccl.enable() before init_process_group().",
            )
        original = getattr(c10d, _HELPER, None)
        known = set(inspect.signature(original).parameters) if original is not None else set()
        missing = sorted(_ARGUMENTS - known) + [name for name in _NEEDED if not hasattr(c10d, name)]
        if original is None or missing:
            raise SystemUnfit(
                f"PyTorch {torch.__version__} makes process groups in a way that is not known here.",
                remedy="Tested is 2.13; leave glowplug.nccl out, or use that.",
                missing=missing,
            )
        setattr(c10d, _HELPER, functools.partial(self._create, original, inspect.signature(original)))

    def groups(self) -> list[Handle]:
        """Those that were not destroyed, in the order of their creation."""
        with self._making:
            known = c10d._world.pg_map
            self._log = [handle for handle in self._log if handle in known]
            return list(self._log)

    def names(self) -> tuple[str, ...]:
        """Of those."""
        return tuple(handle.recipe.name for handle in self.groups())

    # -- the port --------------------------------------------------------------------------------------------

    def census(self, deadline_s: float) -> dict[str, Any]:
        """Which groups there are, how many collectives were begun in each. Raises Conflict, SystemUnfit."""
        groups = self.groups()
        support.refuse(self._unsupported(groups), torch.distributed.get_rank())
        ends_s = time.monotonic() + deadline_s
        for handle in groups:
            while not handle.in_flight.is_over():
                if time.monotonic() >= ends_s:
                    raise Conflict(
                        f"A collective or message of the group {handle.recipe.name!r} is in flight.",
                        remedy="Let ranks wait for work outside of collectives, and wait for messages sent.",
                        group=handle.recipe.name,
                        is_busy=True,
                    )
                time.sleep(_LOOK_S)
        return {
            handle.recipe.name: {"begun": handle.in_flight.begun, "ranks": handle.recipe.ranks}
            for handle in groups
        }

    def release(self, deadline_s: float) -> None:
        """What the program registered, then every group; no store of theirs stays open."""
        ends_s = time.monotonic() + deadline_s
        self._run(self.before_release)
        for handle in self.groups():
            handle.release(_left_s(ends_s))
            c10d._world.pg_map[handle] = (c10d._world.pg_map[handle][0], None)
        self._store = None

    def rebuild(self, port: int, generation: int, deadline_s: float) -> None:
        """In the order of the log."""
        self._generation, ends_s = generation, time.monotonic() + deadline_s
        limit = timedelta(seconds=deadline_s)
        self._store, self._opened = self._opened, None  # rank 0 has it open already
        if self._store is None:
            self._store = TCPStore(LOOPBACK, port, is_master=False, timeout=limit, wait_for_workers=False)
        for handle in self.groups():
            store = handle.rebuild(self._store, _left_s(ends_s))
            c10d._world.pg_map[handle] = (c10d._world.pg_map[handle][0], store)

    def verify(self, deadline_s: float) -> None:
        """Every group, then what the program registered."""
        ends_s = time.monotonic() + deadline_s
        for handle in self.groups():
            handle.verify(self._generation, _left_s(ends_s))
        self._run(self.after_rebuild)

    def settled(self) -> None:
        """The program's own time limits hold again."""
        for handle in self.groups():
            handle.settled()
        if self._store is not None:
            self._store.set_timeout(self.groups()[0].recipe.timeout)

    def open_rendezvous(self, deadline_s: float) -> int:
        """A store that only loopback reaches, for rank 0: its port. Raises ReplicaFailed."""
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            port = int(listener.getsockname()[1])
            try:
                self._opened = TCPStore(
                    LOOPBACK,
                    port,
                    is_master=True,
                    timeout=timedelta(seconds=deadline_s),
                    wait_for_workers=False,
                    master_listen_fd=listener.detach(),
                )
            except RuntimeError as error:
                raise ReplicaFailed(
                    f"Rank 0 could not open a store on loopback: {error}", remedy="Start the server again."
                ) from error
        return port

    # -- the log ---------------------------------------------------------------------------------------------

    def _create(
        self, original: Callable[..., Any], signature: inspect.Signature, *args: Any, **kwargs: Any
    ) -> Any:
        """Instead of PyTorch's helper, which returns a group and its store."""
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        said = bound.arguments
        is_world = not said["global_ranks_in_group"]
        with self._gate.passing(), self._making:
            if not is_world:  # the store may be another since the caller looked it up
                said["store"] = c10d._world.pg_map[c10d._get_default_group()][1]
            made, store = original(*bound.args, **bound.kwargs)
            if type(made) is not ProcessGroup:  # not a member, known by its tag, or another library's
                return made, store
            ranks = list(said["global_ranks_in_group"]) or list(range(made.size()))
            recipe = recipe_of(made, ranks, said["timeout"], said["backend_options"], said["device_id"])
            handle = Handle(recipe, made, self._gate)
            _take_its_place(handle, made)
            if is_world:
                self._log.clear()
            self._log.append(handle)
        if is_world:
            self._on_world(handle, said["store"])
        return handle, store

    def _unsupported(self, groups: Sequence[Handle]) -> list[str]:
        backends = {name for handle in groups for name in handle.recipe.backends.values()}
        found = support.unsupported_here(backends, os.environ)
        found += [f"groups split from {one.recipe.name!r}" for one in groups if one.has_others]
        strangers = [name for one, name in c10d._world.pg_names.items() if not isinstance(one, Handle)]
        found += [f"the group {name!r}, which another library made" for name in strangers]
        symmetric = sys.modules.get("torch.distributed._symmetric_memory")
        if getattr(symmetric, "_group_name_to_store", None):
            found.append("symmetric memory, whose addresses a rebuild changes")
        return found

    def _run(self, functions: Sequence[Function]) -> None:
        """All ranks do so at the same time, so they may use collectives: their own thread passes the gate."""
        pass_through: AbstractContextManager[None] = self._gate.exempted() if functions else nullcontext()
        with pass_through:
            for function in functions:
                function()


def _left_s(ends_s: float) -> float:
    return max(ends_s - time.monotonic(), _LOOK_S)


def _take_its_place(handle: Handle, made: Any) -> None:
    """In PyTorch's tables, which are keyed by the group, and in its C++ registry, which is by name."""
    world = c10d._world
    tables = (world.pg_map, world.pg_names, world.pg_backend_config, world.pg_to_tag)
    for table in tables:
        if made in table:
            table[handle] = table.pop(made)
    for groups in world.tags_to_pg.values():
        groups[:] = [handle if group is made else group for group in groups]
    name = world.pg_names[handle]
    c10d._unregister_process_group(name)
    c10d._register_process_group(name, handle)
