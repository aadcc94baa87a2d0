"""App files are other people's programs: whatever is in them, loading ends with an app or a clear error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glowplug.sdk.loader import load_app
from glowplug.types.errors import InvalidInput

from .conftest import WriteApp, only_server

HELLO = """
    import glowplug as gp
    app = gp.App("hello")

    @app.function()
    def greet(name: str) -> str:
        return name
"""


def test_a_file_with_one_app_is_that_app(write_app: WriteApp) -> None:
    file = write_app(HELLO)
    code = only_server(load_app(file)).code
    assert code is not None
    assert (code.local_dir, code.module, code.target) == (str(file.parent), "user_app.py", "greet")


def test_two_names_for_one_app_are_one_app(write_app: WriteApp) -> None:
    assert load_app(write_app(HELLO + "\n    alias = app\n")).name == "hello"


def test_one_of_several_apps_is_chosen_by_name(write_app: WriteApp) -> None:
    file = write_app('import glowplug as gp\na = gp.App("one")\nb = gp.App("two")')
    assert load_app(file, "two").name == "two"
    with pytest.raises(InvalidInput, match="several apps: one, two") as caught:
        load_app(file)
    assert "user_app.py:one" in caught.value.remedy
    with pytest.raises(InvalidInput, match="no app named 'three'"):
        load_app(file, "three")


def test_a_file_without_an_app_is_refused(write_app: WriteApp) -> None:
    with pytest.raises(InvalidInput, match="defines no app") as caught:
        load_app(write_app("x = 1"))
    assert "gp.App" in caught.value.remedy


def test_of_a_link_the_real_files_folder_counts(write_app: WriteApp, tmp_path: Path) -> None:
    file = write_app(HELLO)
    (tmp_path / "link.py").symlink_to(file)
    code = only_server(load_app(tmp_path / "link.py")).code
    assert code is not None
    assert (code.local_dir, code.module) == (str(file.parent), "user_app.py")


@pytest.mark.parametrize("name", ["missing.py", ".", "notes.txt", "nul\0.py", "circle.py"])
def test_what_is_no_python_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "circle.py").symlink_to("circle.py")
    with pytest.raises(InvalidInput) as caught:
        load_app(tmp_path / name)
    assert caught.value.remedy


def test_a_syntax_error_is_reported_with_its_line(write_app: WriteApp) -> None:
    with pytest.raises(InvalidInput, match=r"user_app\.py, line 3: ") as caught:
        load_app(write_app("a = 1\nb = 2\nc = = 3\n"))
    assert caught.value.details["line"] == 3


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a = 1\0", b"# coding: no-such-coding\n", b"(" * 5000])
def test_bytes_that_are_no_program_are_refused(write_app: WriteApp, content: bytes) -> None:
    file = write_app("")
    file.write_bytes(content)
    with pytest.raises(InvalidInput):
        load_app(file)


def test_an_exception_is_reported_with_its_line_and_traceback(write_app: WriteApp) -> None:
    with pytest.raises(InvalidInput, match=r"user_app\.py, line 2 raised ZeroDivisionError") as caught:
        load_app(write_app("def f():\n    return 1 / 0\n\n\nf()\n"))
    traceback = caught.value.details["traceback"]
    assert "return 1 / 0" in traceback
    assert "importlib" not in traceback


def test_a_missing_package_is_explained(write_app: WriteApp) -> None:
    with pytest.raises(InvalidInput, match="No module named 'no_such_package'") as caught:
        load_app(write_app("import no_such_package"))
    assert "inside the methods" in caught.value.remedy


def test_a_file_that_exits_does_not_take_us_along(write_app: WriteApp) -> None:
    with pytest.raises(InvalidInput, match="raised SystemExit"):
        load_app(write_app("raise SystemExit(3)"))


def test_a_mistake_in_a_decorator_keeps_its_remedy_and_gains_a_line(write_app: WriteApp) -> None:
    source = "import glowplug as gp\napp = gp.App('a')\n@app.function(memroy='4GiB')\ndef f(): ...\n"
    with pytest.raises(InvalidInput, match=r"user_app\.py, line 3: @app\.function has no keyword") as caught:
        load_app(write_app(source))
    assert "Did you mean memory" in caught.value.remedy


def test_neighbouring_modules_are_found_and_do_not_leak_into_the_next_app(tmp_path: Path) -> None:
    names = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.py").write_text(f"NAME = {name!r}")
        (tmp_path / name / "app.py").write_text(
            "import glowplug as gp, settings\napp = gp.App(settings.NAME)\n"
        )
        names.append(load_app(tmp_path / name / "app.py").name)
    assert names == ["one", "two"]
    assert "settings" not in sys.modules
    assert str(tmp_path / "one") not in sys.path


def test_loading_writes_nothing_beside_the_app_and_nothing_to_standard_output(
    write_app: WriteApp, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_app(HELLO + "\n    print('loading')\n")
    (file.parent / "neighbour.py").touch()
    load_app(file)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "loading\n")
    assert not (file.parent / "__pycache__").exists()


def test_relative_paths_start_at_the_app_file(write_app: WriteApp) -> None:
    file = write_app("""
        import glowplug as gp
        app = gp.App("a")

        @app.server(image=gp.Image.host_python().add_local_dir("data", "/data"))
        def serve():
            return ["serve"]
    """)
    (file.parent / "data").mkdir()
    assert only_server(load_app(file)).image.local_dirs[0].local_path == str(file.parent / "data")
