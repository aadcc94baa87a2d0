from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from glowplug.observe import plot
from glowplug.observe.plot import format_seconds, plot_cdf
from glowplug.types.coldstart import Outcome
from glowplug.types.errors import InvalidInput, SystemUnfit
from glowplug.types.replica import StartPath


@pytest.fixture
def records(make_record):
    cold = [make_record(path=StartPath.COLD, total_s=s) for s in (81.0, 85.5, 92.0)]
    restored = [make_record(path=StartPath.CPU_SNAPSHOT, total_s=2.2 + 0.03 * i) for i in range(30)]
    return cold + restored


def test_a_png_is_a_picture(records, tmp_path):
    plot_cdf(records, tmp_path / "cdf.png", "chat/vllm")
    height, width, _channels = imread(tmp_path / "cdf.png").shape
    assert (width, height) == (1280, 720)


def test_an_svg_is_well_formed(records, tmp_path):
    plot_cdf(records, tmp_path / "cdf.svg", "chat/vllm")
    assert ElementTree.parse(tmp_path / "cdf.svg").getroot().tag.endswith("svg")


def test_the_folder_is_made(records, tmp_path):
    plot_cdf(records, tmp_path / "new" / "folder" / "cdf.PNG", "chat/vllm")
    assert (tmp_path / "new" / "folder" / "cdf.PNG").stat().st_size > 0


def test_a_title_is_not_a_formula(records, tmp_path):
    plot_cdf(records, tmp_path / "cdf.svg", r"$\frac{broken & <odd>")
    assert (tmp_path / "cdf.svg").exists()


def test_one_start_is_enough(make_record, tmp_path):
    plot_cdf([make_record()], tmp_path / "cdf.png", "one")
    assert (tmp_path / "cdf.png").exists()


def test_another_suffix_is_refused(records, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        plot_cdf(records, tmp_path / "cdf.exe", "chat")
    assert ".svg" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_nothing_answered_is_nothing_to_draw(make_record, tmp_path):
    with pytest.raises(InvalidInput, match="no answered start"):
        plot_cdf([make_record(outcome=Outcome.FAILED)], tmp_path / "cdf.png", "chat")


def test_without_matplotlib_the_remedy_is_the_extra(records, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemUnfit) as caught:
        plot_cdf(records, tmp_path / "cdf.png", "chat")
    assert caught.value.remedy == "pip install glowplug[plot]"


def test_matplotlib_is_not_imported_before_something_is_drawn():
    code = f"import sys, {plot.__name__}; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (0.0996, "0.10 s"),
        (0.997, "1.0 s"),
        (3.04, "3.0 s"),
        (1.44, "1.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (95.4, "95 s"),
    ],
)
def test_seconds_are_told_in_few_digits(seconds, text):
    assert format_seconds(seconds) == text
