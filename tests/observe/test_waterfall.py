from __future__ import annotations

import io
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from glowplug.observe.waterfall import format_bytes, printable, waterfall
from glowplug.types.coldstart import Outcome
from glowplug.types.replica import Stage, StartPath


def shown(record, width=60):
    """The lines a person sees, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(waterfall(record, width))
    return console.file.getvalue().splitlines()


def line_of(lines, name):
    return next(line for line in lines if line.startswith(name))


def bar_of(lines, name):
    """``(columns before the bar, columns of bar)``."""
    middle = line_of(lines, name)[13:-17]
    bar = middle.strip()
    return len(middle) - len(middle.lstrip()), len(bar)


def test_every_stage_has_its_seconds_and_its_share(make_record):
    lines = shown(make_record(total_s=10.0, stages_s={Stage.ALLOCATE: 1.0, Stage.HOST_INIT: 9.0}))
    assert "1.00 s   10 %" in line_of(lines, "allocate")
    assert "9.00 s   90 %" in line_of(lines, "host_init")


def test_a_stage_begins_where_the_one_before_it_ended(make_record):
    lines = shown(make_record(total_s=10.0, stages_s={Stage.MOUNT: 5.0, Stage.FIRST_ANSWER: 5.0}))
    (mount_start, mount_length), (answer_start, answer_length) = (
        bar_of(lines, name) for name in ("mount", "first_answer")
    )
    assert mount_start == 0
    assert answer_start == mount_length
    assert mount_length + answer_length == 30


def test_stages_come_in_the_order_of_a_start_whatever_the_order_of_the_record(make_record):
    backwards = dict.fromkeys(reversed(Stage), 1.0)
    lines = shown(make_record(total_s=5.0, stages_s=backwards))
    assert [line.split()[0] for line in lines[1:6]] == [stage.value for stage in Stage]


def test_seconds_that_no_stage_accounts_for_are_shown(make_record):
    lines = shown(make_record(total_s=10.0, stages_s={Stage.HOST_INIT: 7.0}))
    assert "3.00 s   30 %" in line_of(lines, "unaccounted")


def test_scheduling_noise_is_not_a_line_of_its_own(make_record):
    lines = shown(make_record(total_s=10.0, stages_s={Stage.HOST_INIT: 9.99}))
    assert not any(line.startswith("unaccounted") for line in lines)


def test_a_stage_too_short_for_the_scale_stays_visible(make_record):
    lines = shown(make_record(total_s=100.0, stages_s={Stage.MOUNT: 0.001, Stage.HOST_INIT: 99.999}))
    assert bar_of(lines, "mount")[1] == 1


def test_the_head_names_server_path_seconds_and_outcome(make_record):
    head = shown(make_record(path=StartPath.CPU_SNAPSHOT, total_s=2.43))[0]
    assert head == "chat/vllm  cpu_snapshot  2.43 s  answered"


def test_bytes_and_snapshot_are_named(make_record):
    record = make_record(
        path=StartPath.CPU_SNAPSHOT,
        snapshot_id="sn-77",
        bytes_by_tier={"page_cache": 1_960_000_000, "ssd": 0},
    )
    notes = " ".join(shown(record, width=100)[-1:])
    assert "snapshot sn-77" in notes
    assert "1.96 GB from page_cache" in notes
    assert "ssd" not in notes


def test_hits_are_named_beside_bytes(make_record):
    record = make_record(
        bytes_by_tier={"zone": 21_300_000, "ssd": 0, "region": 5000},
        chunks_by_tier={"zone": 57, "ssd": 0},
    )
    notes = " ".join(shown(record, width=100)[-1:])
    assert "21.30 MB in 57 chunks from zone · 5.00 kB from region" in notes


def test_a_fallback_says_why(make_record):
    lines = shown(make_record(fallback_reason="the canary answered differently"))
    assert "why cold: the canary answered differently" in lines


def test_a_failure_says_why(make_record):
    lines = shown(make_record(outcome=Outcome.FAILED, error="the server exited with code 3"))
    assert "error: the server exited with code 3" in lines
    assert lines[0].endswith("failed")


def test_last_words_of_a_server_cannot_drive_the_terminal(make_record):
    record = make_record(error="\x1b[2Jgone\r\n[bold red]not markup[/]", outcome=Outcome.FAILED)
    text = "\n".join(shown(record, width=100))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "[bold red]not markup[/]" in text


@pytest.mark.parametrize("total_s", [0.0, -1.0])
def test_a_record_with_an_impossible_total_is_still_drawn(make_record, total_s):
    assert shown(make_record(total_s=total_s, stages_s={Stage.HOST_INIT: -2.0}))


@pytest.mark.parametrize(
    "told", [{"total_s": math.nan}, {"total_s": math.inf}, {"stages_s": {Stage.MOUNT: math.nan}}]
)
def test_what_is_no_number_is_no_record(make_record, told):
    with pytest.raises(ValidationError):
        make_record(**told)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(
    total_s=st.floats(allow_nan=False, allow_infinity=False),
    stages_s=st.dictionaries(st.sampled_from(list(Stage)), st.floats(min_value=-1, max_value=1e6)),
    width=st.integers(min_value=0, max_value=200),
)
def test_no_line_is_wider_than_asked_for(make_record, total_s, stages_s, width):
    record = make_record(total_s=total_s, stages_s=stages_s)
    console = Console(file=io.StringIO(), width=400, color_system=None)
    console.print(waterfall(record, width))
    bars = console.file.getvalue().splitlines()[1:-1]
    assert all(len(line.rstrip()) <= max(width, 40) for line in bars)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (1_960_000_000, "1.96 GB"), (5 * 10**15, "5000.00 TB")],
)
def test_bytes_are_told_in_decimal_units(count, text):
    assert format_bytes(count) == text


def test_what_cannot_be_printed_is_replaced():
    assert printable("a\x00b\nc") == "a\ufffdb\ufffdc"
