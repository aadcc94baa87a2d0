"""How a machine becomes a node of the control plane, and stops being one: the same script for every provider.

The token goes in by the script's standard input: it is in no command line that others on the machine see. It
is good for one attempt, and revoked after it. Only what runs as a node is stopped: not the control plane of
a machine that is in the list by mistake. A script that ran and failed is the machine's fault; a control
plane that does not answer, or a machine that cannot be reached yet, is not: then it is tried again.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from glowplug.pool.identity import PoolId
from glowplug.pool.planner.workforce import Workforce
from glowplug.pool.providers.shell import Ran, Shell
from glowplug.pool.run_settings import JoinSettings
from glowplug.types.errors import DeadlineExceeded, GlowplugError, Unavailable

_POLL_S = 0.5
_LABEL_CHARACTERS = 63
_ROOT = """\
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  else sudo -n --preserve-env=GLOWPLUG_JOIN_TOKEN,GLOWPLUG_STATE "$@"
  fi
}
is_node() { as_root test -e "${GLOWPLUG_STATE:-/var/lib/glowplug}/identity/membership.json"; }
"""
_JOIN = """\
set -eu
read -r GLOWPLUG_JOIN_TOKEN
export GLOWPLUG_JOIN_TOKEN
{root}{boot}
program=$(command -v glowplug) || {{ echo "glowplug is not installed" >&2; exit 127; }}
if is_node; then as_root "$program" down >/dev/null 2>&1 || :; fi
as_root "$program" cluster join {arguments}
"""
_LEAVE = """\
{root}program=$(command -v glowplug) || exit 0
if is_node; then as_root "$program" down; fi
"""


class NotJoined(Unavailable):
    """The machine did not become a node, by its own fault."""


class NodeJoiner:
    """Makes nodes of machines, by commands on them. Safe to use from several threads."""

    def __init__(
        self,
        settings: JoinSettings,
        workforce: Workforce,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._workforce = workforce
        self._monotonic = monotonic
        self._sleep = sleep

    def join(self, shell: Shell, node: str, pool: PoolId, labels: Mapping[str, str]) -> None:
        """Boot the machine, have it join as ``node``, and wait until the control plane hears of it.

        Raises NotJoined, or any other GlowplugError when nobody is to blame.
        """
        limit_s = self._settings.join_s
        deadline_s = self._monotonic() + limit_s
        token = self._workforce.token(limit_s)
        try:
            script = self._script(node, pool, labels)
            ran = shell.run(script, limit_s, f"{token.text}\n")
        except DeadlineExceeded as problem:
            raise NotJoined(problem.message, remedy=problem.remedy, node=node) from problem
        finally:
            with suppress(GlowplugError):  # it ends by itself
                self._workforce.revoke(token)
        if ran.code != 0:
            raise NotJoined(
                f"Its boot script ends with {ran.code}: {_words(ran)}",
                remedy="Run it by hand on such a machine; docs/pools.md shows it.",
                node=node,
            )
        while node not in self._workforce.look().heard:
            if self._monotonic() >= deadline_s:
                raise NotJoined(
                    f"It joined, and the control plane does not hear of it {limit_s:g} s after its boot.",
                    remedy="The control plane must reach its gateway: docs/cluster.md.",
                    node=node,
                )
            self._sleep(_POLL_S)

    def leave(self, shell_of: Callable[[], Shell], node: str) -> None:
        """Take the node out of the cluster, and end what runs on the machine: each whether or not the other
        can be done. Raises GlowplugError, of two the first.
        """
        try:
            self._workforce.remove(node)
        except GlowplugError:
            with suppress(GlowplugError):
                self._end(shell_of(), node)
            raise
        self._end(shell_of(), node)

    def _end(self, shell: Shell, node: str) -> None:
        ran = shell.run(_LEAVE.format(root=_ROOT), self._settings.leave_s)
        if ran.code != 0:
            raise Unavailable(
                f"`glowplug down` on {node} ends with {ran.code}: {_words(ran)}",
                remedy="A cloud's machine ends all the same; on one's own run it again.",
                node=node,
            )

    def _script(self, node: str, pool: PoolId, labels: Mapping[str, str]) -> str:
        own = {"pool": label_of(str(pool)), "zone": label_of(f"{pool.cloud}.{pool.region}")}
        wanted = {**own, **labels, **self._settings.labels}
        arguments = [self._settings.control, "--name", node]
        for name, value in wanted.items():
            arguments += ["--label", f"{name}={value}"]
        return _JOIN.format(
            root=_ROOT, boot=self._settings.boot, arguments=shlex.join([*arguments, *self._settings.options])
        )


def label_of(text: str) -> str:
    """The text as a label's value: letters, digits and . _ - inside."""
    return re.sub(r"[^A-Za-z0-9._-]+", ".", text)[:_LABEL_CHARACTERS].strip("._-") or "unnamed"


def _words(ran: Ran) -> str:
    return " ".join((ran.err.strip() or ran.out.strip() or "it says nothing").split())[-400:]
