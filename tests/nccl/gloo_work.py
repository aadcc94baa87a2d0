"""What the ranks of ``gloo_ranks.py`` do: groups, every kind of collective, and a look at themselves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from glowplug import nccl
from glowplug.nccl.member import Member
from glowplug.nccl.words import Request, Step
from glowplug.types.errors import GlowplugError

RANKS = 4
TIMEOUT = timedelta(seconds=60)
QUICK = nccl.Deadlines(hold_s=20, release_s=20, rebuild_s=20, verify_s=20, open_s=20)


def join(rank: int, deadlines: nccl.Deadlines = QUICK) -> list[Any]:
    """A world, and three sub-groups, of which each rank is in two; one has an order of its own."""
    nccl.enable(deadlines)
    return make_groups(rank)


def make_groups(rank: int) -> list[Any]:
    """The world and the sub-groups: those of this rank."""
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=TIMEOUT)
    made = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    made.append(dist.new_group([1, 3, 0, 2], group_desc="all again", sort_ranks=False))
    return [group for group in made if isinstance(group, dist.ProcessGroup)]


def compute(rank: int, groups: list[Any]) -> dict[str, Any]:
    """Every kind of collective that programs use, over the world and over sub-groups."""
    pair, everybody = groups
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    gathered = [torch.empty(2) for _ in range(RANKS)]
    dist.all_gather(gathered, torch.tensor([float(rank), 0.5]))
    within = torch.tensor([float(rank)])
    dist.all_reduce(within, op=dist.ReduceOp.MAX, group=pair)
    told = torch.tensor([float(rank)])
    dist.broadcast(told, src=3, group=everybody)
    later = torch.ones(3)
    dist.all_reduce(later, group=pair, async_op=True).wait()
    mine = torch.empty(1)
    dist.reduce_scatter(mine, [torch.tensor([float(rank + n)]) for n in range(RANKS)])
    objects: list[Any] = [None] * RANKS
    dist.all_gather_object(objects, {"rank": rank}, group=everybody)
    if rank % 2 == 0:
        dist.send(torch.tensor([float(rank)]), rank + 1)
        received = -1.0
    else:
        message = torch.empty(1)
        dist.recv(message, rank - 1)
        received = message.item()
    dist.barrier(group=everybody)
    by_name = functional.all_reduce(torch.tensor([1.0]), "sum", pair).tolist()
    by_name += functional.all_gather_single(torch.tensor([float(rank)]), 0, everybody).tolist()
    return {
        "sum": total.item(),
        "gathered": [one.tolist() for one in gathered],
        "pair": within.item(),
        "told": told.item(),
        "later": later.tolist(),
        "scattered": mine.item(),
        "objects": objects,
        "received": received,
        "by_name": by_name,
        "place": [dist.get_rank(pair), dist.get_world_size(pair), dist.get_group_rank(everybody, rank)],
    }


def connections() -> int:
    """How many TCP connections of this process are established, not counting those it only listens with."""
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            found += fields[3] == "01" and fields[9] in inodes
    return found


def told(work: Callable[[], object]) -> str:
    """The code of the error that it raises, or ``fine``."""
    try:
        work()
    except GlowplugError as error:
        return error.code
    except RuntimeError as error:  # Gloo's own, when a peer is gone before anybody tells
        return f"gloo: {str(error)[:80]}"
    return "fine"


def strike(step: str, how: Callable[[], object]) -> None:
    """Do something when this rank is asked for a step, before it is done."""
    do = Member._do

    def struck(self: Member, request: Request) -> dict[str, Any]:
        if request.step is Step(step):
            how()
        return do(self, request)

    Member._do = struck  # type: ignore[method-assign]
