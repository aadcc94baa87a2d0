"""Every kind of source gives the tree that it was made from.

Names, kinds, modes, owners, times to the nanosecond, which names are links of one another, xattrs, devices,
content.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import needs
from tests.e2e.live import Live
from tests.image.index.nasty_folder import make_nasty_folder
from tests.image.index.real_tree import differences
from tests.image.origin.oci_images import make_shell_root, make_umoci_layout, run, unpack_by_umoci
from tests.image.origin.origin_kit import a_job
from tests.image.origin.registry_server import DockerRegistry

from glowplug.image.buildah import Buildah
from glowplug.image.layout import ImageFolders
from glowplug.types.clock import SystemClock

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(300)]

DOCKERFILE = """
FROM scratch
ADD base.tar /
RUN mkdir -p /a/b && echo gone > /a/gone && echo kept > /a/b/kept
RUN ln /a/b/kept /a/again && mkfifo -m 620 /a/fifo
RUN rm /a/gone && chmod 4755 /a/b/kept && touch -d '2001-02-03 04:05:06.789' /a/b && ln -s b /a/link
RUN rm -r /a/b && mkdir /a/b && echo anew > /a/b/anew && chmod 2750 /a
"""


@pytest.fixture(scope="module", autouse=True)
def _machine() -> None:
    needs.root("to make such files, and to mount")
    needs.programs("umoci", "skopeo", "docker-registry")


def as_folder(live: Live, scratch: Path, name: str) -> Path:
    """Import ``name``; what it has to be equal to."""
    make_nasty_folder(scratch / "nasty")
    live.cli("image", "import", str(scratch / "nasty"), name)
    return scratch / "nasty"


def as_tar(live: Live, scratch: Path, name: str) -> Path:
    make_nasty_folder(scratch / "nasty")
    # tar keeps no sockets, and of two names of a fifo it makes two.
    (scratch / "nasty" / "special" / "socket").unlink()
    (scratch / "nasty" / "links" / "the same fifo").unlink()
    options = ["--sparse", "--format=posix", "--xattrs", "-C", scratch / "nasty"]
    run("tar", *options, "-czf", scratch / "nasty.tar.gz", ".")
    live.cli("image", "import", str(scratch / "nasty.tar.gz"), name)
    return scratch / "nasty"


def as_layout(live: Live, scratch: Path, name: str) -> Path:
    layout = make_umoci_layout(scratch, scratch)
    live.cli("image", "import", f"oci:{layout}:app", name)
    return unpack_by_umoci(layout, "app", scratch)


def from_registry(live: Live, scratch: Path, name: str) -> Path:
    layout = make_umoci_layout(scratch, scratch)
    with DockerRegistry(scratch / "registry") as server:
        reference = f"docker://{server.address}/team/layered:1"
        run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:app", reference)
        live.cli("image", "import", reference, name)
    return unpack_by_umoci(layout, "app", scratch)


def from_dockerfile(live: Live, scratch: Path, name: str) -> Path:
    """Built by buildah; what it says that it has built."""
    needs.programs("buildah", "mmdebstrap")
    context = scratch / "context"
    context.mkdir()
    programs = ("sh", "mkdir", "rm", "ln", "mkfifo", "chmod", "touch")
    make_shell_root(scratch / "base", *(f"/bin/{program}" for program in programs))
    run("tar", "-C", scratch / "base", "-cf", context / "base.tar", ".")
    (context / "Dockerfile").write_text(DOCKERFILE)
    live.cli("image", "import", f"dockerfile:{context}", name, timeout_s=240)
    built = scratch / "built"
    built.mkdir()
    buildah = Buildah(ImageFolders(live.state).build_storage, SystemClock())
    with buildah.session(job := a_job()):
        options = ["--format={{.Name}}:{{.Tag}}", "--filter=reference=localhost/glowplug-dockerfile"]
        buildah.copy_out(job, "copying", buildah.ask(job, "looking", "images", *options), built)
    return built


Importing = Callable[[Live, Path, str], Path]


@pytest.mark.parametrize(
    "importing",
    [
        as_folder,
        pytest.param(as_tar, marks=pytest.mark.nightly),
        from_registry,
        *(pytest.param(one, marks=pytest.mark.nightly) for one in (as_layout, from_dockerfile)),
    ],
)
def test_the_mounted_tree_is_the_original(live: Live, tmp_path: Path, importing: Importing) -> None:
    name = f"{importing.__name__.replace('_', '-')}:1"
    original = importing(live, tmp_path, name)
    target = tmp_path / "mounted"
    target.mkdir()
    live.cli("image", "mount", name, str(target))
    try:
        found = differences(original, target)
        told = diff_r(original, target) if importing in (as_layout, from_registry) else ""
    finally:
        live.cli("image", "unmount", str(target))
        live.cli("image", "unmount", name)
    if importing not in (as_folder, as_tar):  # no layer says what mode and time the root itself has
        found = [line for line in found if not line.startswith(f"{str(target)!r}: st_m")]
    assert (found, told) == ([], "")


def diff_r(original: Path, copy: Path) -> str:
    """What somebody is told who does not believe our own comparison. It cannot compare devices."""
    command = ["diff", "-r", "--no-dereference", "--exclude=spool", str(original), str(copy)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
