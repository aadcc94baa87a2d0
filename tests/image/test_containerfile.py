from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.containerfile import containerfile, instructions
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import BuildImage, BuildStep


def spec_of(*steps: BuildStep, **fields: Any) -> BuildImage:
    return BuildImage(steps=list(steps), **fields)


@given(st.lists(st.text(max_size=40).filter(lambda text: "\0" not in text), min_size=1, max_size=5))
def test_no_run_line_can_add_an_instruction(lines: list[str]) -> None:
    steps = instructions(spec_of(BuildStep(op="run", args=lines)))
    text = containerfile("localhost/base", steps)
    first, *runs = text.split("\n")[:-1]
    assert first == "FROM localhost/base"
    assert len(runs) == 2
    for run in runs:
        word, _, arguments = run.partition(" ")
        assert word == "RUN"
        assert json.loads(arguments)[:2] == ["/bin/sh", "-c"]
    assert json.loads(runs[1].partition(" ")[2])[2].endswith("\n".join(lines))


@given(value=st.text(max_size=40).filter(lambda text: "\0" not in text and text.isascii()))
def test_environment_values_reach_the_steps_unchanged(value: str) -> None:
    [*_, step] = instructions(spec_of(BuildStep(op="run", args=["true"]), env={"GREETING": value}))
    assert step.script is not None
    exports = step.script.rpartition("\n. ")[0]  # the value may have such a line, too
    shown = subprocess.run(
        ["sh", "-c", exports + '\nprintf %s "$GREETING"'],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout == value.replace("\r\n", "\n").replace("\r", "\n")


@given(
    st.from_regex(
        r"[a-z][a-z0-9]{1,8}(\[[a-z]+\])?((>=|==|<)[0-9]{1,3}; ?python_version>'3')?", fullmatch=True
    )
)
def test_a_requirement_reaches_pip_as_one_argument(requirement: str) -> None:
    [*_, step] = instructions(spec_of(BuildStep(op="pip", args=[requirement])))
    assert step.script is not None
    assert shlex.split(step.script.splitlines()[-1])[-1] == requirement


@pytest.mark.parametrize(
    "package", ["-y", "a; rm -rf /", "a\nb", "$(id)", "../x.deb", "", "A b", "--reinstall"]
)
def test_what_is_no_debian_package_name_is_refused(package: str) -> None:
    with pytest.raises(InvalidInput, match="Debian package"):
        instructions(spec_of(BuildStep(op="apt", args=["ok-name", package])))


@pytest.mark.parametrize("package", ["g++", "libc6:amd64", "hello=2.10-3", "python3.11-dev"])
def test_debian_package_names_are_accepted(package: str) -> None:
    [*_, step] = instructions(spec_of(BuildStep(op="apt", args=[package])))
    assert package in (step.script or "")


@pytest.mark.parametrize("requirement", ["--index-url=http://elsewhere", "-r", " -e .", "  "])
def test_pip_options_are_refused_as_requirements(requirement: str) -> None:
    with pytest.raises(InvalidInput, match="Python requirement"):
        instructions(spec_of(BuildStep(op="pip", args=[requirement])))


def test_another_python_is_refused_with_what_can_be_done_instead() -> None:
    with pytest.raises(InvalidInput) as caught:
        instructions(spec_of(python="3.13"))
    assert "host_python" in caught.value.remedy


def test_a_variable_that_no_shell_can_set_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be set while"):
        instructions(spec_of(env={"a; rm -rf /": "x"}))


def test_an_endless_list_of_steps_is_refused() -> None:
    with pytest.raises(InvalidInput, match="steps"):
        instructions(spec_of(*[BuildStep(op="run", args=["true"])] * 101))


def test_the_title_of_a_step_is_one_harmless_line() -> None:
    [*_, step] = instructions(spec_of(BuildStep(op="run", args=["a\n\x1b[31mb", "c" * 1000])))
    assert step.title.startswith("run a b ccc")
    assert len(step.title) == 200
