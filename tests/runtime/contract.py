"""What every runtime adapter must do, whatever program is behind it.

A second adapter gets these tests by subclassing :class:`RuntimeContract` in a test module whose ``sandboxes``
fixture gives out sandboxes of that runtime. Deliberately free of anything that only one program does.
"""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.sandboxes import HOLDER, Sandboxes, ask, eventually, failure, is_alive, running

from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.runtime.network import REPLICA_ADDRESS
from glowplug.runtime.port import SandboxMount
from glowplug.types.errors import GlowplugError, RuntimeFailed


class RuntimeContract:
    """Create, start, end; checkpoint and restore; exec and signals; clean-up."""

    def test_the_identity_names_a_version_and_is_the_same_every_time(self, sandboxes: Sandboxes) -> None:
        identity = sandboxes.runtime.identity()
        assert identity.name
        assert identity.version
        assert identity == sandboxes.runtime.identity()

    def test_nothing_runs_between_create_and_start(self, sandboxes: Sandboxes) -> None:
        sandbox = sandboxes.describe("sh", "-c", "echo started")
        pid = sandboxes.runtime.create(sandbox)
        assert is_alive(pid)
        assert sandbox.log.read_text() == ""
        sandboxes.runtime.start(sandbox)
        eventually(lambda: sandbox.log.read_text() == "started\n")

    def test_the_exit_code_is_the_commands(self, sandboxes: Sandboxes, reaper: Any) -> None:
        _sandbox, pid = sandboxes.run("sh", "-c", "exit 7")
        assert reaper.exit_code(pid) == 7

    def test_stdout_and_stderr_are_appended_to_the_log(self, sandboxes: Sandboxes) -> None:
        sandbox = sandboxes.describe("sh", "-c", "echo out; echo err >&2")
        sandbox.log.write_text("before\n")
        sandboxes.runtime.create(sandbox)
        sandboxes.runtime.start(sandbox)
        eventually(lambda: sorted(sandbox.log.read_text().split()) == ["before", "err", "out"])

    def test_the_log_of_a_running_container_can_be_emptied(self, sandboxes: Sandboxes) -> None:
        sandbox = sandboxes.run_counter()
        sandbox.log.open("w").close()
        ask(sandbox)
        eventually(lambda: "counted" in sandbox.log.read_text())
        assert "\0" not in sandbox.log.read_text()

    def test_the_root_is_writable_inside_and_unchanged_outside(self, sandboxes: Sandboxes) -> None:
        sandbox, _ = sandboxes.run("sh", "-c", "echo x > /written && cat /written")
        eventually(lambda: sandbox.log.read_text() == "x\n")
        assert not (sandboxes.root / "written").exists()

    def test_a_read_only_mount_cannot_be_written_and_a_writable_one_can(
        self, sandboxes: Sandboxes, folder: Path
    ) -> None:
        (folder / "ro").mkdir()
        (folder / "rw").mkdir()
        mounts = (
            SandboxMount(Path("/usr"), "/usr"),
            SandboxMount(folder / "ro", "/ro"),
            SandboxMount(folder / "rw", "/rw", read_only=False),
        )
        script = "echo x > /rw/file; echo x > /ro/file || echo refused"
        sandbox, _ = sandboxes.run("sh", "-c", script, mounts=mounts, host_changes_volumes=True)
        eventually(lambda: "refused" in sandbox.log.read_text())
        assert (folder / "rw/file").read_text() == "x\n"
        assert not (folder / "ro/file").exists()

    def test_memory_survives_and_copies_run_side_by_side(self, sandboxes: Sandboxes, folder: Path) -> None:
        runtime = sandboxes.runtime
        original = sandboxes.run_counter()
        count = int(ask(original) or 0)
        image = folder / "image"
        image.mkdir()
        runtime.checkpoint(original.id, image)
        copies = [sandboxes.describe(*original.args) for _ in range(2)]
        for copy in copies:
            runtime.restore(copy, image)
            sandboxes.open_gateway(copy)
        answers = [eventually(lambda copy=copy: ask(copy)) for copy in copies]
        assert answers == [str(count + 1), str(count + 1)]
        assert ask(copies[0]) == str(count + 2), "a copy counts for itself"

    def test_connections_within_survive_and_those_to_the_outside_are_closed(
        self, sandboxes: Sandboxes, folder: Path
    ) -> None:
        original, _ = sandboxes.run("python3", "-c", HOLDER, "connections")
        eventually(lambda: ask(original) == "inside: open, outside: none")
        with NamespaceSockets(str(original.netns)) as sockets, sockets.open(socket.AF_INET) as connection:
            connection.settimeout(30)
            connection.connect((REPLICA_ADDRESS, 9000))
            eventually(lambda: ask(original) == "inside: open, outside: open")
            (copy,) = sandboxes.copies(original, folder / "image", 1)
        eventually(lambda: ask(copy) == "inside: open, outside: closed")

    def test_a_checkpoint_ends_the_original(self, sandboxes: Sandboxes, folder: Path) -> None:
        sandbox, pid = sandboxes.run("sleep", "1000")
        (folder / "image").mkdir()
        sandboxes.runtime.checkpoint(sandbox.id, folder / "image")
        eventually(lambda: not is_alive(pid), "the sandbox has ended")

    def test_a_restored_copy_writes_to_its_own_log(self, sandboxes: Sandboxes, folder: Path) -> None:
        original = sandboxes.run_counter()
        (folder / "image").mkdir()
        sandboxes.runtime.checkpoint(original.id, folder / "image")
        before = original.log.read_text()
        copy = sandboxes.describe(*original.args)
        sandboxes.runtime.restore(copy, folder / "image")
        sandboxes.open_gateway(copy)
        eventually(lambda: ask(copy))
        eventually(lambda: "counted" in copy.log.read_text())
        assert original.log.read_text() == before

    def test_exec_passes_input_output_and_exit_code(self, sandboxes: Sandboxes) -> None:
        sandbox, _ = sandboxes.run("sleep", "1000")
        argv = sandboxes.runtime.exec_argv(sandbox.id, ["sh", "-c", "cat; echo e >&2; exit 3"], tty=False)
        done = subprocess.run(argv, input="hello", capture_output=True, text=True, timeout=30, check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("hello", "e\n", 3)

    def test_what_exec_started_can_be_ended_by_the_pid_it_left(
        self, sandboxes: Sandboxes, folder: Path
    ) -> None:
        sandbox, _ = sandboxes.run("sleep", "1000")
        pid_file = folder / "pid"
        argv = sandboxes.runtime.exec_argv(sandbox.id, ["sleep", "1000"], tty=False, pid_file=pid_file)
        with running(argv) as process:
            eventually(lambda: pid_file.exists() and pid_file.read_text())
            sandboxes.runtime.signal(sandbox.id, "SIGKILL", int(pid_file.read_text()))
            assert process.wait(30) == 128 + 9

    def test_a_signal_reaches_the_first_process(self, sandboxes: Sandboxes, reaper: Any) -> None:
        script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
        sandbox, pid = sandboxes.run("sh", "-c", script)
        eventually(lambda: "ready" in sandbox.log.read_text())
        sandboxes.runtime.signal(sandbox.id, "SIGTERM")
        assert reaper.exit_code(pid) == 5

    def test_termination_ends_a_first_process_that_does_not_handle_it(
        self, sandboxes: Sandboxes, reaper: Any
    ) -> None:
        sandbox, pid = sandboxes.run("sleep", "1000")
        sandboxes.runtime.signal(sandbox.id, "SIGTERM")
        assert reaper.exit_code(pid) in (-9, 128 + 9, 128 + 15)

    @pytest.mark.parametrize("disposition", ["trap '' TERM", "trap : TERM"])
    def test_termination_leaves_a_first_process_that_ignores_or_handles_it(
        self, sandboxes: Sandboxes, disposition: str
    ) -> None:
        script = f"{disposition}; while :; do echo here; sleep 0.05; done"
        sandbox, _ = sandboxes.run("sh", "-c", script)

        def said() -> int:
            return sandbox.log.read_text().count("here")

        eventually(said)
        sandboxes.runtime.signal(sandbox.id, "SIGTERM")
        before = said()
        eventually(lambda: said() > before + 5, "it goes on")

    def test_delete_ends_what_runs_and_may_be_repeated(self, sandboxes: Sandboxes) -> None:
        sandbox, pid = sandboxes.run("sleep", "1000")
        sandboxes.runtime.delete(sandbox.id)
        assert not is_alive(pid)
        sandboxes.runtime.delete(sandbox.id)

    def test_a_command_that_does_not_exist_is_a_typed_error_of_one_line(self, sandboxes: Sandboxes) -> None:
        sandbox = sandboxes.describe("no-such-program")
        error = failure(lambda: (sandboxes.runtime.create(sandbox), sandboxes.runtime.start(sandbox)))
        assert isinstance(error, RuntimeFailed)
        assert "no-such-program" in error.message
        assert "executable" in error.message
        assert "\n" not in error.message

    def test_an_id_in_use_is_refused_and_its_owner_unharmed(self, sandboxes: Sandboxes) -> None:
        sandbox = sandboxes.run_counter()
        with pytest.raises(RuntimeFailed):
            sandboxes.runtime.create(sandbox)
        assert ask(sandbox)

    def test_a_restore_into_an_id_in_use_is_refused_and_its_owner_unharmed(
        self, sandboxes: Sandboxes, folder: Path
    ) -> None:
        original = sandboxes.run_counter()
        (copy,) = sandboxes.copies(original, folder / "image", 1)
        count = int(eventually(lambda: ask(copy)))
        with pytest.raises(RuntimeFailed) as caught:
            sandboxes.runtime.restore(copy, folder / "image")
        assert "\n" not in caught.value.message
        assert ask(copy) == str(count + 1), "it is who it was"

    def test_what_is_not_there_cannot_be_checkpointed_or_signalled(
        self, sandboxes: Sandboxes, folder: Path
    ) -> None:
        (folder / "image").mkdir()
        with pytest.raises(GlowplugError):
            sandboxes.runtime.checkpoint("gpt-absent", folder / "image")
        with pytest.raises(GlowplugError):
            sandboxes.runtime.signal("gpt-absent", "SIGTERM")
