"""`glowplug image ...`: what is sent to the node, what is shown of its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Glowplug
from tests.cli.fake_control import FakeControl

DIGEST = "ab" * 32
INDEX: dict[str, Any] = {
    "digest": DIGEST, "names": ["team/vllm:1"], "entries": 61_234, "content_bytes": 3_500_000_000,
    "index_bytes": 6_000_000, "here_bytes": 250_000_000, "mounted": "lazy", "traces": ["k"],
}  # fmt: skip
IMAGE: dict[str, Any] = {"id": "im-1", "kind": "host_python", "spec": {"kind": "host_python"}, "bytes": 5}


def sent(control: FakeControl) -> dict[str, Any]:
    (body,) = control.bodies
    task: dict[str, Any] = body["task"]
    return task


def test_listing_shows_names_how_much_is_here_and_how_it_is_mounted(
    control: FakeControl, glowplug: Glowplug
) -> None:
    control.indexes, control.images = [INDEX], [IMAGE]
    output = glowplug("image", "ls").stdout
    for word in ("team/vllm:1", DIGEST[:12], "61234", "3.50 GB", "250.00 MB", "lazy", "im-1"):
        assert word in output


def test_json_of_the_listing_holds_indexes_and_images(control: FakeControl, glowplug: Glowplug) -> None:
    control.indexes, control.images = [INDEX], [IMAGE]
    printed = json.loads(glowplug("image", "ls", "--json").stdout)
    assert printed["indexes"][0]["digest"] == DIGEST
    assert printed["images"][0]["id"] == "im-1"


def test_inspect_takes_a_name_with_slashes(control: FakeControl, glowplug: Glowplug) -> None:
    control.indexes = [INDEX]
    assert json.loads(glowplug("image", "inspect", "team/vllm:1").stdout)["entries"] == 61_234


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("root", "{here}/root"),
        ("oci:layout:tag", "oci:{here}/layout:tag"),
        ("dockerfile:Dockerfile", "dockerfile:{here}/Dockerfile"),
        ("docker://host:5000/app:1", "docker://host:5000/app:1"),
    ],
)
def test_import_sends_paths_that_the_node_understands(
    control: FakeControl,
    glowplug: Glowplug,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = {"digest": DIGEST, "entries": 3, "content_bytes": 10, "new_bytes": 4, "seconds": 0.5}
    control.task_events = [{"text": "reading", "fraction": 0.5}, {"result": result}]
    shown = glowplug("image", "import", given, "app:1").stdout
    assert sent(control)["source"] == expected.format(here=tmp_path)
    assert sent(control)["name"] == "app:1"
    assert "app:1: 3 files, 10 B (4 B new)" in shown


def test_a_failed_task_is_explained(control: FakeControl, glowplug: Glowplug) -> None:
    error = {"code": "invalid_input", "message": "It is no tar.", "remedy": "Use another."}
    control.task_events = [{"error": error}]
    result = glowplug("image", "import", "x.tar")
    assert result.exit_code == 1
    assert "It is no tar." in result.stderr
    assert "Use another." in result.stderr


def test_a_node_that_falls_silent_is_no_success(control: FakeControl, glowplug: Glowplug) -> None:
    control.task_events = [{"text": "reading"}]
    assert glowplug("image", "push", "app").exit_code == 1


def test_differing_images_are_a_failure_as_with_diff(control: FakeControl, glowplug: Glowplug) -> None:
    change = {"sign": "~", "path": "/etc/x", "what": "mode, content"}
    control.task_events = [{"result": {"changes": [change], "differing": 1, "shared_bytes": 7}}]
    result = glowplug("image", "diff", "a", "b")
    assert result.exit_code == 1
    assert "/etc/x" in result.stdout
    control.task_events = [{"result": {"changes": [], "differing": 0, "shared_bytes": 7}}]
    assert glowplug("image", "diff", "a", "a").exit_code == 0


def test_removing_by_name_is_a_task(control: FakeControl, glowplug: Glowplug) -> None:
    control.task_events = [{"result": {"removed": True}}]
    glowplug("image", "rm", "team/vllm:1")
    assert sent(control) == {"op": "remove", "image": "team/vllm:1"}


def test_up_says_at_once_what_is_wrong_with_its_region(
    glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOWPLUG_REGION", "")  # put back afterwards: the command sets it
    result = glowplug("up", "--region", "nowhere")
    assert result.exit_code == 1
    assert "GLOWPLUG_REGION" in result.stderr
    assert "s3://bucket/prefix" in result.stderr
