from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glowplug.image.mount import ImageMounter, RootFilesystem
from glowplug.image.store import ImageStore
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import HostPythonImage, LocalDir

from .conftest import Enter, make_venv, names, quiet

PROGRAM = """
import ssl, json, sqlite3, sys
print(json.dumps([sys.prefix, len(ssl.create_default_context().get_ca_certs())]))
"""


def image_of(store: ImageStore, mounter: ImageMounter, venv: Path | None, **fields: Any) -> RootFilesystem:
    spec = HostPythonImage(venv=str(venv) if venv else None, **fields)
    return mounter.mount(store.ensure(spec, quiet).id)


def refused(store: ImageStore, venv: Path, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        store.ensure(HostPythonImage(venv=str(venv), **fields), quiet)
    assert caught.value.remedy
    assert store.list() == []
    return caught.value


@pytest.mark.sandbox
def test_the_virtual_environment_runs_with_its_standard_library(
    store: ImageStore, mounter: ImageMounter, venv: Path, enter: Enter
) -> None:
    root = image_of(store, mounter, venv)
    assert root.python == f"{venv}/bin/python"
    result = enter(root, root.python, "-c", PROGRAM)
    assert result.returncode == 0, result.stderr
    assert f'"{venv}"' in result.stdout


@pytest.mark.sandbox
def test_the_nodes_own_python_runs(store: ImageStore, mounter: ImageMounter, enter: Enter) -> None:
    root = image_of(store, mounter, None)
    result = enter(root, "python3", "-c", PROGRAM)
    assert result.returncode == 0, result.stderr
    assert '"/usr"' in result.stdout


@pytest.fixture
def outside_tmp() -> Iterator[Path]:
    """Containers have a /tmp of their own, so what is about links must lie elsewhere."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="glowplug-test-") as folder:
        yield Path(folder)


def make_linked_venv(folder: Path) -> Path:
    """As with uv or pyenv: a link to a link to the interpreter, by folders that are not shown otherwise."""
    shims = folder / "home" / "bin"
    shims.mkdir(parents=True)
    (shims / "python-here").symlink_to(Path(sys.executable).resolve())
    venv = make_venv(folder / "real" / "env")
    (folder / "versions").symlink_to("real")
    for name in ("python", "python3"):
        (venv / "bin" / name).unlink()
        (venv / "bin" / name).symlink_to(shims / "python-here")
    return folder / "versions" / "env"


@pytest.mark.sandbox
def test_links_on_the_way_to_an_interpreter_work_inside(
    store: ImageStore, mounter: ImageMounter, outside_tmp: Path, enter: Enter
) -> None:
    venv = make_linked_venv(outside_tmp)
    root = image_of(store, mounter, venv)
    assert root.python == f"{venv}/bin/python"
    result = enter(root, root.python, "-c", PROGRAM)
    assert result.returncode == 0, result.stderr


def test_links_in_a_folder_that_is_empty_in_containers_are_refused(store: ImageStore, tmp_path: Path) -> None:
    assert "/tmp" in refused(store, make_linked_venv(tmp_path)).message


@pytest.mark.sandbox
def test_host_folders_stay_unwritable_and_unchanged(
    store: ImageStore, mounter: ImageMounter, venv: Path, enter: Enter
) -> None:
    root = image_of(store, mounter, venv)
    result = enter(root, "/bin/sh", "-c", f"touch {venv}/x; touch /usr/x; touch /tmp/ok && echo tmp")
    assert result.stdout == "tmp\n"
    assert not (venv / "x").exists()
    assert not Path("/usr/x").exists()


def test_no_secret_of_the_host_is_shown(store: ImageStore, mounter: ImageMounter, venv: Path) -> None:
    root = image_of(store, mounter, venv)
    shown = {bind.destination for bind in root.binds}
    for private in (
        "/etc/shadow",
        "/etc/ssh",
        "/etc/ssl/private",
        "/root/.ssh",
        "/etc",
        "/root",
        "/var",
        "/",
    ):
        assert private not in shown
    copied = set(names(root.root / "etc"))
    assert not copied & {"shadow", "gshadow", "ssh", "sudoers", "pip.conf", "netrc", "environment"}
    for name in ("hosts", "hostname", "resolv.conf"):
        assert (root.root / "etc" / name).read_bytes() == b""


def test_the_virtual_environments_programs_come_first(
    store: ImageStore, mounter: ImageMounter, venv: Path
) -> None:
    assert image_of(store, mounter, venv).env["PATH"].startswith(f"{venv}/bin:/usr/local")
    chosen = image_of(store, mounter, venv, env={"PATH": "/usr/bin", "X": "1"})
    assert chosen.env["PATH"] == f"{venv}/bin:/usr/bin"
    assert chosen.env["X"] == "1"


def test_packages_outside_the_image_are_mentioned(store: ImageStore, tmp_path: Path) -> None:
    venv = make_venv(tmp_path / "env")
    [site] = venv.glob("lib/python*/site-packages")
    (tmp_path / "source").mkdir()
    (site / "editable.pth").write_text(str(tmp_path / "source"))
    said: list[str] = []
    store.ensure(HostPythonImage(venv=str(venv)), lambda text, _fraction: said.append(text))
    assert any(str(tmp_path / "source") in text and "add_local_dir" in text for text in said)


def test_a_missing_virtual_environment_is_refused(store: ImageStore, tmp_path: Path) -> None:
    assert "not a folder" in refused(store, tmp_path / "missing").message


def test_a_virtual_environment_whose_interpreter_has_gone_is_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "env")
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python")
    problem = refused(store, venv)
    assert "leads nowhere" in problem.message
    assert f"--clear {venv}" in problem.remedy


def test_a_folder_that_only_has_an_interpreter_is_refused(store: ImageStore, tmp_path: Path) -> None:
    venv = make_venv(tmp_path / "env")
    (venv / "pyvenv.cfg").unlink()
    assert "pyvenv.cfg" in refused(store, venv).message


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("#!/bin/sh\necho broken library >&2; exit 127\n", "broken library"),
        ("#!/bin/sh\necho hello\n", "does not answer like Python"),
        ("#!/bin/sh\necho '[1, 2]'\n", "does not answer like Python"),
        ("not a program", "cannot be run"),
    ],
)
def test_an_interpreter_that_does_not_work_is_refused(
    store: ImageStore, tmp_path: Path, script: str, complaint: str
) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(script)
    python.chmod(0o755)
    assert complaint in refused(store, tmp_path / "env").message


def test_an_interpreter_whose_prefix_would_show_private_folders_is_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "env")
    liar = venv / "bin" / "python"
    liar.unlink()
    answer = (
        f'{{"version": "3", "libc": ["glibc", "2"], "prefix": "{venv}", "base_prefixes": ["/root"], '
        '"search_path": []}'
    )
    liar.write_text(f"#!/bin/sh\necho '{answer}'\n")
    liar.chmod(0o755)
    assert "/root" in refused(store, venv).message


def test_a_virtual_environment_in_circles_is_refused(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "env").symlink_to("env")
    assert "symbolic links" in refused(store, tmp_path / "env").message


def test_a_local_folder_must_not_need_a_new_folder_on_the_host(
    store: ImageStore, mounter: ImageMounter, venv: Path, tmp_path: Path
) -> None:
    local = [LocalDir(local_path=str(tmp_path), remote_path="/usr/share/not-there-yet")]
    assert "/usr" in refused(store, venv, local_dirs=local).message
    assert not Path("/usr/share/not-there-yet").exists()
    allowed = [LocalDir(local_path=str(tmp_path), remote_path="/data/models")]
    root = image_of(store, mounter, venv, local_dirs=allowed, workdir="/data/work")
    assert (root.root / "data" / "models").is_dir()
    assert (root.root / "data" / "work").is_dir()


def test_changed_packages_are_another_image(store: ImageStore, tmp_path: Path) -> None:
    venv = make_venv(tmp_path / "env")
    spec = HostPythonImage(venv=str(venv))
    seen = [store.identify(spec)]
    assert store.identify(spec) == seen[0]
    [site] = venv.glob("lib/python*/site-packages")

    package = site / "thing-1.0.dist-info"
    package.mkdir()
    (package / "RECORD").write_text("thing.py,,\n")
    seen.append(store.identify(spec))
    (package / "RECORD").write_text("thing.py,,\nmore.py,,\n")
    seen.append(store.identify(spec))
    package.rename(site / "thing-1.1.dist-info")
    seen.append(store.identify(spec))
    with (venv / "pyvenv.cfg").open("a") as file:
        file.write("prompt = other\n")
    seen.append(store.identify(spec))
    assert len(set(seen)) == len(seen)

    shutil.rmtree(site / "thing-1.1.dist-info")
    assert store.identify(spec) not in seen


def test_using_an_environment_does_not_make_it_another_image(store: ImageStore, tmp_path: Path) -> None:
    venv = make_venv(tmp_path / "env")
    spec = HostPythonImage(venv=str(venv))
    before = store.identify(spec)
    [site] = venv.glob("lib/python*/site-packages")
    (site / "module.py").write_text("x = 1\n")
    subprocess.run([venv / "bin" / "python", "-c", "import module"], check=True, timeout=30)
    assert store.identify(spec) == before
