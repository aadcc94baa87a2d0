"""Images are immutable values that touch no file until they are described."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

import glowplug as gp
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import (
    BuildImage,
    DirectoryImage,
    DockerfileImage,
    HostPythonImage,
    ImageSpec,
    LocalDir,
    NamedImage,
    RegistryImage,
)

_SPEC: TypeAdapter[ImageSpec] = TypeAdapter(ImageSpec)


def described(image: gp.Image, folder: Path = Path("/nowhere")) -> ImageSpec:
    return _SPEC.validate_python(image.to_spec(folder))


def test_every_step_is_kept_in_order() -> None:
    image = gp.Image.debian_slim().apt_install("git", "curl").pip_install("torch").run_commands("ldconfig")
    spec = described(image.env({"A": "1"}).workdir("/srv"))
    assert isinstance(spec, BuildImage)
    assert [(step.op, step.args) for step in spec.steps] == [
        ("apt", ["git", "curl"]),
        ("pip", ["torch"]),
        ("run", ["ldconfig"]),
    ]
    assert (spec.env, spec.workdir, spec.python) == ({"A": "1"}, "/srv", "3.11")


def test_extending_an_image_leaves_the_base_as_it_was() -> None:
    base = gp.Image.debian_slim().env({"A": "1"})
    extended = base.pip_install("torch").env({"B": "2"})
    assert base == gp.Image.debian_slim().env({"A": "1"})
    assert described(extended).env == {"A": "1", "B": "2"}


def test_the_nodes_own_python_may_name_a_virtual_environment(tmp_path: Path) -> None:
    assert described(gp.Image.host_python()) == HostPythonImage()
    (tmp_path / "venv").mkdir()
    assert described(gp.Image.host_python(venv="venv"), tmp_path) == HostPythonImage(venv=f"{tmp_path}/venv")


def test_absolute_folders_are_the_nodes_to_judge() -> None:
    assert described(gp.Image.from_directory("/srv/rootfs")) == DirectoryImage(path="/srv/rootfs")


def test_relative_local_folders_start_at_the_app(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spec = described(gp.Image.host_python().add_local_dir("data", "/data/"), tmp_path)
    assert spec.local_dirs == [LocalDir(local_path=f"{tmp_path}/data", remote_path="/data")]


def test_a_missing_relative_folder_is_noticed_when_the_image_is_described(tmp_path: Path) -> None:
    image = gp.Image.from_directory("rootfs")  # making it looks at nothing
    with pytest.raises(InvalidInput, match=r"'rootfs' is no folder") as caught:
        image.to_spec(tmp_path)
    assert str(tmp_path) in caught.value.remedy


def test_only_built_images_take_packages() -> None:
    with pytest.raises(InvalidInput, match="not on host_python images"):
        gp.Image.host_python().pip_install("torch")
    with pytest.raises(InvalidInput, match="not on directory images"):
        gp.Image.from_directory("/x").apt_install("git")


def test_empty_steps_and_odd_arguments_are_refused() -> None:
    image = gp.Image.debian_slim()
    for mistake in (
        lambda: image.pip_install(),
        lambda: image.pip_install(""),
        lambda: image.pip_install(["torch"]),  # type: ignore[arg-type]
        lambda: image.run_commands("a\0b"),
        lambda: image.workdir("relative"),
        lambda: image.add_local_dir(".", "/dev/x"),
        lambda: image.add_local_dir(".", "data"),
        lambda: image.env([("A", "1")]),  # type: ignore[arg-type]
        lambda: image.env({"A": 1}).to_spec(Path("/")),  # type: ignore[dict-item]
        lambda: image.env({"A=B": "1"}).to_spec(Path("/")),
        lambda: gp.Image.debian_slim("3"),
        lambda: gp.Image.debian_slim(3.11),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInput):
            mistake()


def test_an_image_may_come_from_a_registry() -> None:
    image = gp.Image.from_registry("localhost:5000/app:1", insecure=True).env({"A": "1"})
    assert described(image) == RegistryImage(ref="localhost:5000/app:1", insecure=True, env={"A": "1"})


def test_an_image_may_have_been_imported_before() -> None:
    assert described(gp.Image.from_name("team/vllm:1")) == NamedImage(name="team/vllm:1")


def test_a_dockerfile_copies_from_its_own_folder_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile").write_text("FROM scratch\n")
    image = gp.Image.from_dockerfile("docker/Dockerfile", build_args={"V": "2"})
    assert described(image, tmp_path) == DockerfileImage(
        path=f"{tmp_path}/docker/Dockerfile", context_dir=f"{tmp_path}/docker", build_args={"V": "2"}
    )
    elsewhere = gp.Image.from_dockerfile("docker/Dockerfile", context=".")
    assert described(elsewhere, tmp_path) == DockerfileImage(
        path=f"{tmp_path}/docker/Dockerfile", context_dir=str(tmp_path)
    )


def test_a_missing_dockerfile_is_noticed_when_the_image_is_described(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no file"):
        gp.Image.from_dockerfile().to_spec(tmp_path)


def test_only_built_images_take_steps() -> None:
    with pytest.raises(InvalidInput, match="works on images that are built"):
        gp.Image.from_registry("app").pip_install("torch")
