"""Which runtime a server gets on a node that has both, or one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from glowplug.node.runtimes import Runtimes
from glowplug.runtime.runc import Runc
from glowplug.runtime.runsc import Runsc
from glowplug.types.errors import SystemUnfit
from glowplug.types.spec import HostPythonImage, ServerSpec

ABSENT = SystemUnfit("No usable CRIU was found.", remedy="Build one.")


def _server(**changes: Any) -> ServerSpec:
    return ServerSpec(name="web", image=HostPythonImage(), command=["true"], **changes)


@pytest.fixture
def both(tmp_path: Path) -> Runtimes:
    runsc = Runsc(tmp_path / "runsc", Path("/bin/true"))
    return Runtimes({"runsc": runsc, "runc": Runc(tmp_path / "runc", Path("/bin/true"), Path("/bin/true"))})


@pytest.fixture
def one(tmp_path: Path) -> Runtimes:
    return Runtimes({"runsc": Runsc(tmp_path / "runsc", Path("/bin/true"))}, {"runc": ABSENT})


@pytest.mark.parametrize(
    ("changes", "on_both", "on_one"),
    [
        ({}, "runsc", "runsc"),
        ({"trusted": True}, "runc", "runsc"),
        ({"runtime": "runsc"}, "runsc", "runsc"),
        ({"runtime": "runc"}, "runc", None),
    ],
)
def test_a_server_gets_what_it_names_and_gvisor_unless_it_is_trusted(
    both: Runtimes, one: Runtimes, changes: dict[str, Any], on_both: str, on_one: str | None
) -> None:
    server = _server(**changes)
    assert both.choose(server) == on_both
    if on_one is None:
        with pytest.raises(SystemUnfit, match=r"no runc: No usable CRIU") as caught:
            one.choose(server)
        assert caught.value.remedy == ABSENT.remedy
    else:
        assert one.choose(server) == on_one


def test_what_may_hold_a_container_of_an_unknown_runtime_is_every_one(both: Runtimes) -> None:
    assert both.holding("runc") == [both.named("runc")]
    assert both.holding(None) == [both.named("runsc"), both.named("runc")]


def test_a_runtime_nobody_heard_of_is_an_unfit_system(one: Runtimes) -> None:
    with pytest.raises(SystemUnfit, match="no docker"):
        one.named("docker")


def test_trust_with_gvisor_named_is_a_contradiction() -> None:
    with pytest.raises(ValidationError, match="trusted"):
        _server(trusted=True, runtime="runsc")
