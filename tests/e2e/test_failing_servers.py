"""Apps that cannot work: each gets one clear error with cause and remedy, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.live import Live

from glowplug.types.coldstart import Outcome

pytestmark = pytest.mark.sandbox

GIB = 1 << 30


def refusal(app: Deployed, status: int) -> dict[str, Any]:
    """The error that a held request got."""
    answer = app.live.http.get(app.path + "/")
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert error["remedy"]
    return dict(error)


def refused_deploy(live: Live, file: Path, name: str) -> dict[str, Any]:
    """The error that ``glowplug deploy --json`` printed."""
    done = live.cli("deploy", str(file), "--name", name, "--json", code=1)
    assert done.stdout == ""
    error = json.loads(done.stderr.splitlines()[-1])
    assert error["remedy"]
    assert live.listing("deployments", name) == []
    return dict(error)


# -- refused when deployed ---------------------------------------------------------------------------


def test_a_malformed_app_file_is_refused_with_its_line(live: Live, apps: Apps, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text('import glowplug as gp\n\napp = gp.App("broken"\n')
    error = refused_deploy(live, file, apps.name("broken"))
    assert error["code"] == "invalid_input"
    assert "broken.py, line 3" in error["message"]


def test_an_app_file_that_raises_is_refused_with_its_traceback(
    live: Live, apps: Apps, tmp_path: Path
) -> None:
    file = tmp_path / "raises.py"
    file.write_text("import glowplug as gp\n\n\n1 / 0\n")
    error = refused_deploy(live, file, apps.name("raises"))
    assert "raises.py, line 4 raised ZeroDivisionError" in error["message"]
    assert "1 / 0" in error["details"]["traceback"]


def test_a_misspelt_keyword_is_refused_with_the_right_one(live: Live, apps: Apps) -> None:
    error = refused_deploy(live, apps.write(scaledown_windows_s=3), apps.name("keyword"))
    assert "scaledown_windows_s" in error["message"]
    assert "scaledown_window_s" in error["remedy"]


def test_a_missing_image_folder_is_refused_by_name(live: Live, apps: Apps, tmp_path: Path) -> None:
    file = tmp_path / "image.py"
    missing = tmp_path / "no" / "such" / "root"
    file.write_text(
        "import glowplug as gp\n\napp = gp.App('image')\n\n\n"
        f"@app.server(image=gp.Image.from_directory({str(missing)!r}))\n"
        "def web():\n    return ['/bin/server']\n"
    )
    error = refused_deploy(live, file, apps.name("image"))
    assert error["code"] in ("invalid_input", "not_found")
    assert str(missing) in error["message"]


# -- refused when called -----------------------------------------------------------------------------


def test_a_command_that_exits_is_a_502_with_its_exit_code_and_last_words(live: Live, apps: Apps) -> None:
    app = apps.deploy("--say", "no weights found", "--exit-code", "3", word="exits")
    error = refusal(app, 502)
    assert "exit code 3" in error["message"]
    assert "no weights found" in error["details"]["log"]
    assert f"glowplug logs {error['details']['replica_id']}" in error["remedy"]
    assert "no weights found" in live.cli("logs", error["details"]["replica_id"]).stdout
    record = live.cold_starts(app.name)[0]
    assert record.outcome is Outcome.FAILED
    assert record.error is not None
    assert "exit code 3" in record.error


def test_a_command_that_does_not_exist_is_a_502_that_names_it(apps: Apps) -> None:
    app = apps.deploy(word="nocommand", command=["no-such-program", "--serve"])
    error = refusal(app, 502)
    assert "no-such-program" in error["message"]


def test_a_server_that_never_gets_ready_is_a_504_that_names_the_stage(apps: Apps) -> None:
    app = apps.deploy("--port", "0", word="neverready", startup_timeout_s=120, request_timeout_s=10)
    error = refusal(app, 504)
    assert error["code"] == "deadline_exceeded"
    assert error["details"]["stage"] == "host_init"
    assert "host_init" in error["message"]


def test_a_server_that_keeps_failing_to_get_ready_fails_its_callers_with_the_reason(apps: Apps) -> None:
    app = apps.deploy("--port", "0", word="giveup", startup_timeout_s=2)
    error = app.live.http.get(app.path + "/").json()
    assert "did not answer GET / on port 8000 within 2 s" in error["message"]
    assert error["details"]["stage"] == "host_init"
    assert "listens on no TCP port" in error["message"]


def test_a_server_on_another_port_is_told_which_one_it_listens_on(live: Live, apps: Apps) -> None:
    app = apps.deploy("--port", "9000", word="wrongport", startup_timeout_s=10, request_timeout_s=2)
    live.http.get(app.path + "/")  # held for less than a busy machine needs
    error = live.wait_for(lambda: live.deployments(app.name)[0]["error"], "the reason")
    assert "on port 8000" in error["message"]
    assert "It listens on 9000 (all addresses)" in error["message"]
    assert "port=" in error["remedy"]


@pytest.mark.usefixtures("no_swap")
def test_a_server_that_runs_out_of_memory_is_told_its_limit(live: Live, apps: Apps) -> None:
    app = apps.deploy("--allocate-bytes", str(GIB), word="oom", memory="200MiB")
    error = refusal(app, 502)
    assert "ran out of memory: its limit is 0.2 GiB" in error["message"]
    assert "memory=" in error["remedy"]


def test_a_server_too_large_for_the_machine_is_a_504_that_tells_what_is_free(apps: Apps) -> None:
    app = apps.deploy(word="huge", memory=1 << 50, request_timeout_s=4)
    error = refusal(app, 504)
    assert error["details"]["stage"] == "allocate"
    assert "GiB are free" in error["message"]


def test_a_failing_app_is_well_again_with_its_next_version(live: Live, apps: Apps) -> None:
    app = apps.deploy("--exit-code", "1", word="heals")
    refusal(app, 502)
    shown = live.listing("deployments", app.name)[0]
    assert "exit code 1" in shown["error"]["message"]
    apps.deploy("--version", "2", name=app.name)
    assert app.ask()["version"] == "2"
    assert live.listing("deployments", app.name)[0]["error"] is None


def test_a_failing_app_does_not_disturb_its_neighbour(apps: Apps) -> None:
    good = apps.deploy(word="good")
    identity = good.ask()["identity"]
    bad = apps.deploy("--exit-code", "1", word="bad")
    refusal(bad, 502)
    assert good.ask()["identity"] == identity
