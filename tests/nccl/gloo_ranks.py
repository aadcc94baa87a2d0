"""Four real ranks (PyTorch, Gloo) go through one scenario; run by ``test_gloo.py`` with an engine's Python.

    MASTER_PORT=PORT SECOND_PORT=PORT python gloo_ranks.py SCENARIO [ARGUMENT]

Prints one line of JSON: what each rank returned, by its number, or ``"ended"``. Importing torch takes
seconds, so it is imported once, and the ranks are forked.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from gloo_work import RANKS, TIMEOUT, compute, connections, join, make_groups, strike, told

from glowplug import nccl
from glowplug.nccl import handle, support
from glowplug.types.errors import GlowplugError

LIMIT_S = 120
FORK = multiprocessing.get_context("fork")
MEET = FORK.Barrier(RANKS)
"""Ranks meet here, outside of their communicators."""
OVER = FORK.Event()


def cycles(rank: int, _: str) -> dict[str, Any]:
    """The same results, by the same objects, before and after two preparations."""
    groups = join(rank)
    world = dist.group.WORLD
    seen = [compute(rank, groups)]
    open_before, open_away = connections(), []
    for _cycle in range(2):
        MEET.wait()
        if rank == 0:
            nccl.prepare()
        MEET.wait()
        open_away.append(connections())
        names = [dist.get_rank(), dist.get_world_size(), dist.get_backend(groups[0]), groups[1].group_desc]
        MEET.wait()
        if rank == 0:
            nccl.resume()
        MEET.wait()
        seen.append(compute(rank, groups))
    late = dist.new_group([0, 3])
    if rank in (0, 3):
        one = torch.ones(1)
        dist.all_reduce(one, group=late)
        seen[-1]["late"] = one.item()
    status = nccl.status()
    limits = [
        group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in (world, *groups)
    ]
    known = dist.distributed_c10d._world.pg_map
    is_same = world is dist.group.WORLD and all(group in known for group in groups)
    dist.destroy_process_group()
    return {
        "seen": seen,
        "open": [open_before, open_away],
        "names": names,
        "status": [status.state, status.generation, len(status.groups)],
        "counts": asdict(status.counts) if status.counts else None,
        "limits": limits,
        "is_same": is_same,
    }


def at_work(rank: int, _: str) -> dict[str, Any]:
    """A program that never stops is caught between two collectives, and goes on where it was."""
    groups = join(rank, nccl.Deadlines(hold_s=30))
    results: list[float] = []
    stop_at = 2000

    def work() -> None:
        for number in range(stop_at):
            tensor = torch.tensor([float(number)])
            dist.all_reduce(tensor, group=groups[number % 2])
            results.append(tensor.item())
            time.sleep(0.002)

    thread = threading.Thread(target=work)
    thread.start()
    caught_at = None
    if rank == 0:
        while len(results) < 20:
            time.sleep(0.005)
        nccl.prepare()
        is_still, until_s = False, time.monotonic() + 10
        while not is_still and time.monotonic() < until_s:
            caught_at = len(results)  # the last one may be on its way into the list
            time.sleep(0.3)
            is_still = len(results) == caught_at
        nccl.resume()
    else:
        is_still = True
    thread.join()
    sizes = [2.0, 4.0]
    is_right = results == [number * sizes[number % 2] for number in range(stop_at)]
    was_caught = caught_at is None or caught_at < stop_at
    return {"is_right": is_right, "is_still": is_still, "was_caught": was_caught}


def in_the_middle(rank: int, _: str) -> dict[str, Any]:
    """Ranks that wait for work inside a collective: refused by name, and nothing has changed."""
    groups = join(rank, nccl.Deadlines(hold_s=1))
    said = "fine"
    MEET.wait()
    if rank == 0:
        time.sleep(2.0)
        said = told(nccl.prepare)
    tensor = torch.tensor([float(rank)])
    dist.broadcast(tensor, src=0)  # the others have been in it since
    state = nccl.status().state
    return {"said": said, "state": state, "seen": compute(rank, groups)}


def dies(rank: int, step: str) -> dict[str, Any]:
    """Rank 2 ends in a step: nobody else waits for it."""
    groups = join(rank)
    compute(rank, groups)
    if rank == 2:
        strike(step, lambda: os._exit(9))
    MEET.wait()
    if rank == 2:
        time.sleep(LIMIT_S)
    said = "fine"
    if rank == 0:
        said = told(nccl.prepare)
        if said == "fine":
            said = told(nccl.resume)
        OVER.set()
    is_over = OVER.wait(60)
    return {"said": said, "is_over": is_over, "later": told(lambda: dist.all_reduce(torch.ones(1)))}


def breaks(rank: int, moment: str) -> dict[str, Any]:
    """What the program registered raises on one rank."""
    groups = join(rank)

    @(nccl.before_release if moment == "before_release" else nccl.after_rebuild)
    def broken() -> None:
        dist.all_reduce(torch.ones(1))  # in step with the others: allowed
        if rank == 1:
            raise OSError("no room")

    said = "fine"
    MEET.wait()
    if rank == 0:
        said = told(nccl.prepare)
        if said == "fine":
            said = told(nccl.resume)
    MEET.wait()
    if moment == "after_rebuild":
        return {"said": said, "later": told(lambda: dist.all_reduce(torch.ones(1)))}
    return {"said": said, "seen": compute(rank, groups)}


def refused(rank: int, what: str) -> dict[str, Any]:
    """What cannot be captured is named, and the program goes on."""
    groups = join(rank)
    halves = [[0, 1], [2, 3]]
    if what == "split":
        half = dist.group.WORLD.split_group(halves[rank // 2], TIMEOUT, None, f"half-{rank // 2}", "half")
        assert half.size() == 2
    else:
        os.environ["TORCH_DISTRIBUTED_DEBUG"] = "DETAIL"
    said = ""
    MEET.wait()
    if rank == 0:
        try:
            nccl.prepare()
        except GlowplugError as error:
            said = f"{error.code}: {error.message}"
    MEET.wait()
    return {"said": said, "seen": compute(rank, groups)}


def forgotten(rank: int, _: str) -> dict[str, Any]:
    """Prepared, and then neither captured nor resumed: taken back by themselves."""
    groups = join(rank, nccl.Deadlines(unresumed_s=1.0))
    MEET.wait()
    if rank == 0:
        nccl.prepare()
    MEET.wait()
    seen = compute(rank, groups)  # waits at the gate
    return {"seen": seen, "generation": nccl.status().generation}


def too_late(rank: int, _: str) -> dict[str, Any]:
    """Enabled when there are groups already."""
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    return {"said": told(nccl.enable), "status": told(nccl.status), "prepare": told(nccl.prepare)}


def suspends(rank: int, _: str) -> dict[str, Any]:
    """The path of communicators that are kept, NCCL's; without GPUs those of Gloo stand in for them."""
    groups = join(rank)
    cpu = torch.device("cpu")
    backend, calls = groups[0]._get_backend(cpu), []
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    stand_in = {
        "suspend": lambda self: calls.append("suspend"),
        "resume": lambda self: calls.append("resume"),
    }
    for name, function in stand_in.items():
        setattr(dist.distributed_c10d.ProcessGroupGloo, name, function)
    support.NCCL = support.GLOO
    handle.nccl_version = lambda: support.NCCL_SUSPENDS
    handle.Handle._flush = lambda self, backend, deadline_s: calls.append("flush")  # type: ignore[method-assign]
    MEET.wait()
    if rank == 0:
        nccl.prepare()
    MEET.wait()
    away = list(calls)
    MEET.wait()
    if rank == 0:
        nccl.resume()
    MEET.wait()
    is_kept = groups[0]._get_backend(cpu) is backend
    return {"away": away, "calls": calls[len(away) :], "is_kept": is_kept, "seen": compute(rank, groups)}


def leaves(rank: int, _: str) -> dict[str, Any]:
    """A group is destroyed before, and another world is made afterwards."""
    groups = join(rank)
    dist.destroy_process_group(groups[0])
    MEET.wait()
    if rank == 0:
        nccl.prepare()
        nccl.resume()
    MEET.wait()
    left = len(nccl.status().groups)
    one = torch.ones(1)
    dist.all_reduce(one, group=groups[1])
    MEET.wait()
    dist.destroy_process_group()
    MEET.wait()
    os.environ["MASTER_PORT"] = os.environ["SECOND_PORT"]
    again = make_groups(rank)
    MEET.wait()
    if rank == 0:
        nccl.prepare()
        nccl.resume()
    MEET.wait()
    return {"left": left, "sum": one.item(), "again": compute(rank, again)["sum"]}


SCENARIOS: dict[str, Callable[[int, str], dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (
        cycles,
        at_work,
        in_the_middle,
        dies,
        breaks,
        refused,
        forgotten,
        too_late,
        suspends,
        leaves,
    )
}


def run(rank: int, scenario: str, argument: str, results: Connection) -> None:
    try:
        results.send(SCENARIOS[scenario](rank, argument))
    except BaseException:  # it is the result
        results.send({"raised": traceback.format_exc()})
    results.close()
    os._exit(0)


def main() -> None:
    scenario, argument = sys.argv[1], (sys.argv[2:] or [""])[0]
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    ranks = []
    for rank in range(RANKS):
        receiving, sending = FORK.Pipe(duplex=False)
        process = FORK.Process(target=run, args=(rank, scenario, argument, sending))
        process.start()
        sending.close()
        ranks.append((process, receiving))
    ends = time.monotonic() + LIMIT_S
    said = {}
    for rank, (_, receiving) in enumerate(ranks):
        try:
            is_there = receiving.poll(max(0.0, ends - time.monotonic()))
            said[rank] = receiving.recv() if is_there else "hangs"
        except EOFError:
            said[rank] = "ended"
    for process, _ in ranks:
        process.kill()
        process.join()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
