"""Processes are told from later ones of the same number, and only those are ended."""

from __future__ import annotations

import os
import subprocess
import time

from glowplug.kernel.processes import is_running, kill_process, pid_start_ticks, process_tree

SLEEP = ["sleep", "1000"]


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    started = pid_start_ticks(os.getpid())
    assert is_running(os.getpid(), started)
    assert not is_running(os.getpid(), (started or 0) + 1)
    assert not is_running(None, 1)


def test_only_the_very_process_is_killed() -> None:
    with subprocess.Popen(SLEEP) as process:
        started = pid_start_ticks(process.pid)
        assert started is not None
        assert kill_process(process.pid, started + 1, timeout_s=1)
        assert is_running(process.pid, started)
        assert kill_process(process.pid, started, timeout_s=60)
        assert process.wait(60) == -9
        assert kill_process(process.pid, started, timeout_s=0)


def test_a_tree_holds_descendants_parents_first_and_nobody_else() -> None:
    nested = ["sh", "-c", "sh -c 'sleep 1000; :'; :"]
    with subprocess.Popen(SLEEP) as other, subprocess.Popen(nested) as shell:
        try:
            deadline = time.monotonic() + 60
            while len(tree := process_tree([shell.pid])) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(tree) == 3
            assert tree[0] == shell.pid
            assert process_tree([tree[1], tree[2]]) == tree[1:]
            assert other.pid not in tree
        finally:
            for pid in process_tree([shell.pid, other.pid]):
                os.kill(pid, 9)
    assert process_tree([shell.pid]) == []
