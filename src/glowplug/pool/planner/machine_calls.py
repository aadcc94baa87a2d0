"""What is done on machines, in the background: checks before they take work, joining, leaving.

Apart from the calls to providers, as these take minutes where those take seconds, and many machines come at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from glowplug.pool.planner.calls import CallLane, Ended, Key
from glowplug.pool.planner.decision import Decision
from glowplug.pool.planner.joining import NodeJoiner, NotJoined
from glowplug.pool.planner.observation import Answer, Outcome
from glowplug.pool.planner.state import FleetState, HeldMachine
from glowplug.pool.providers.port import Supplier, Verdict
from glowplug.pool.providers.shell import Shell
from glowplug.pool.run_settings import RunSettings
from glowplug.types.errors import SystemUnfit, Unavailable

_AT_ONCE = 16


class MachineCalls:
    """Makes them, and keeps how they ended until that is taken. ``on_end`` is called by a call's thread,
    ``failed`` with what went wrong and how. From one thread.
    """

    def __init__(
        self,
        settings: RunSettings,
        suppliers: Mapping[str, Supplier],
        joiner: NodeJoiner | None,
        monotonic: Callable[[], float],
        on_end: Callable[[Key], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self._settings = settings
        self._suppliers = suppliers
        self._joiner = joiner
        self._failed = failed
        join = settings.join
        longest_s = max(settings.call_s, join.join_s if join else 0.0, join.leave_s if join else 0.0)
        self._lanes = {
            cloud: CallLane(f"a machine of {cloud}", longest_s, monotonic, on_end, _AT_ONCE)
            for cloud in suppliers
        }
        self._health: dict[str, Verdict] = {}
        self._joined: dict[str, Answer] = {}
        self._left: set[str] = set()

    def collect(self) -> None:
        """Take in what has ended."""
        for cloud, lane in self._lanes.items():
            for (what, name), call in lane.collect().items():
                self._take(cloud, what, name, call)

    def take_health(self) -> dict[str, Verdict]:
        """Verdicts since the last time."""
        taken, self._health = self._health, {}
        return taken

    def take_joined(self) -> dict[str, Answer]:
        """Which machines became nodes since the last time, or could not by their own fault."""
        taken, self._joined = self._joined, {}
        return taken

    def act(self, decision: Decision, state: FleetState) -> None:
        """Check and join what is to be."""
        self._left &= set(state.machines)
        call_s = self._settings.call_s
        for name in decision.check:
            held = state.machines[name]
            inspect = self._suppliers[held.pool.cloud].inspector.inspect
            self._submit(held, "inspect", partial(inspect, name, held.address, held.gpu, held.gpus, call_s))
        for name in decision.join:
            held = state.machines[name]
            if self._joiner is not None:
                self._submit(held, "join", partial(self._join, self._joiner, held))

    def has_left(self, held: HeldMachine) -> bool:
        """Whether the machine is no node any more, or leaving failed; if it is one, it begins to leave, once
        it does not become one at the same time.
        """
        if not held.node or held.machine in self._left or self._joiner is None:
            return True
        if ("join", held.machine) in self._lanes[held.pool.cloud].open_keys:
            return False
        self._submit(held, "leave", partial(self._leave, self._joiner, held))
        return False

    def close(self) -> None:
        """Make no more calls."""
        for lane in self._lanes.values():
            lane.close()

    def _join(self, joiner: NodeJoiner, held: HeldMachine) -> None:
        labels = self._suppliers[held.pool.cloud].labels
        joiner.join(self._shell_of(held), held.node, held.pool, labels)

    def _leave(self, joiner: NodeJoiner, held: HeldMachine) -> None:
        joiner.leave(partial(self._shell_of, held), held.node)

    def _shell_of(self, held: HeldMachine) -> Shell:
        shell_of = self._suppliers[held.pool.cloud].shell_of
        if shell_of is None:
            raise SystemUnfit(
                f"{held.machine} exists on paper only: nothing can run there.",
                remedy="Give the simulated provider a `network`; docs/pools.md.",
            )
        return shell_of(held.machine, held.address)

    def _submit(self, held: HeldMachine, what: str, call: Callable[[], object]) -> None:
        self._lanes[held.pool.cloud].submit((what, held.machine), call)

    def _take(self, cloud: str, what: str, name: str, call: Ended) -> None:
        if what == "inspect" and not isinstance(call.error, Unavailable):
            self._health[name] = call.value if call.error is None else Verdict(False, str(call.error))
        elif what == "join" and call.error is None:
            self._joined[name] = Answer(Outcome.DONE)
        elif what == "join" and isinstance(call.error, NotJoined):
            self._joined[name] = Answer(Outcome.REFUSED, call.error.message)
        elif call.error is not None:
            self._failed(what, f"{cloud}, {name}: {call.error}")
        if what == "leave":
            # Leaving is tried once: whoever cannot be reached is not waited for, and ends all the same.
            self._left.add(name)
