"""Real builds, with a base system that is kept between runs; the first run makes it in half a minute."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests import needs
from tests.image.index.real_tree import differences
from tests.image.origin.origin_kit import a_job

from glowplug.image.build import BuildSource, StepReader
from glowplug.image.buildah import Buildah
from glowplug.image.containerfile import SOURCE_DATE_EPOCH, Instruction, instructions
from glowplug.image.job import Job
from glowplug.image.mount import ImageMounter
from glowplug.image.skeleton import add_mount_point, make_empty_files
from glowplug.image.store import ImageStore
from glowplug.image.task_runner import TaskRunner
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import InvalidInput, ResourceExhausted, SystemUnfit, Unavailable
from glowplug.types.paths import StateDir
from glowplug.types.spec import BuildImage, BuildStep, LocalDir

from .conftest import Enter, names, quiet, some_seconds, wait_until_no_process_has


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept outside the clone and between runs, like every other download: the base system, no more."""
    needs.root("to build")
    needs.programs("buildah", "mmdebstrap")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    storage = cache / "glowplug-tests" / "image-build"
    state = StateDir(tmp_path_factory.mktemp("base"))
    state.create()
    ImageStore(state, build_storage=storage).ensure(BuildImage(), quiet)
    shutil.rmtree(state.images)
    return storage


@pytest.fixture
def builder(state: StateDir, storage: Path) -> Iterator[ImageStore]:
    store = ImageStore(state, build_storage=storage)
    yield store
    for image in store.list():
        store.remove(image.id)
    assert not (storage / "scratch").exists()
    assert str(storage) not in Path("/proc/self/mountinfo").read_text()


def run_step(line: str) -> BuildStep:
    return BuildStep(op="run", args=[line])


@pytest.mark.sandbox
def test_an_image_with_debian_python_packages_and_a_command_runs(
    builder: ImageStore, mounter: ImageMounter, tmp_path: Path, enter: Enter
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("local")
    spec = BuildImage(
        env={"GREETING": "it's"},
        workdir="/srv/work",
        local_dirs=[LocalDir(local_path=str(tmp_path / "data"), remote_path="/data")],
        steps=[
            BuildStep(op="apt", args=["hello"]),
            BuildStep(op="pip", args=["six", "idna>=3,<4"]),
            run_step('echo "$GREETING $(pwd)\nSTEP 9/9: FROM nothing" > /made; hello'),
        ],
    )
    said: list[tuple[str, float | None]] = []
    image = builder.ensure(spec, lambda text, fraction: said.append((text, fraction)))

    assert any("step 3/5: apt hello" in text for text, _ in said)
    told = [fraction for _, fraction in said if fraction is not None]
    assert told == sorted(told)
    assert image.bytes > 50 << 20
    root = mounter.mount(image.id)
    result = enter(
        root, "/bin/sh", "-c", "cat /made /data/file; pwd; hello; python -c 'import six, idna, ssl'"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n") == [
        "it's /srv/work", "STEP 9/9: FROM nothing", "local/srv/work", "Hello, world!", "",
    ]  # fmt: skip
    assert builder.ensure(spec, quiet) == image

    assert names(root.root / "run") == ["glowplug", "lock"]
    assert not list((root.root / "etc" / "apt" / "apt.conf.d").glob("*mmdebstrap*"))
    assert (root.root / "etc" / "resolv.conf").read_bytes() == b""


@pytest.mark.nightly
@pytest.mark.sandbox
def test_the_mounted_image_is_what_buildah_built(
    builder: ImageStore, state: StateDir, mounter: ImageMounter, storage: Path, tmp_path: Path
) -> None:
    """But for the mount points that every image gets, and times that were clamped."""
    line = "ln /etc/passwd /srv/again; mkfifo /srv/fifo; chmod 6755 /usr/bin/id; rm -r /etc/skel"
    spec = BuildImage(workdir="/srv/work", steps=[run_step(line), run_step("rm /srv/again /usr/bin/whoami")])
    mounted = mounter.mount(builder.ensure(spec, quiet).id).base
    built = tmp_path / "built"
    built.mkdir()
    buildah = Buildah(storage, SystemClock())
    source = BuildSource(spec, instructions(spec), buildah, {}, TaskRunner(state))
    with buildah.session(job := a_job()):
        buildah.copy_out(job, "copying", source.tag, built)
    for place in ("run/glowplug-build", "run/glowplug-lent"):
        shutil.rmtree(built / place, ignore_errors=True)
    make_empty_files(built)
    for place in ("/.glowplug/lib", "/app", "/run/glowplug", "/srv/work"):
        add_mount_point(built, Path(place), is_folder=True)
    for path in [*built.rglob("*"), built]:
        newest_ns = min(path.lstat().st_mtime_ns, SOURCE_DATE_EPOCH * 10**9)
        os.utime(path, ns=(newest_ns, newest_ns), follow_symlinks=False)
    assert differences(built, mounted) == []


@pytest.mark.nightly
@pytest.mark.sandbox
def test_how_the_host_reaches_packages_is_used_but_not_kept(
    state: StateDir, storage: Path, tmp_path: Path
) -> None:
    secret = f"secret{uuid.uuid4().hex}"
    ca_bundle = tmp_path / "ca.crt"
    ca_bundle.write_text(f"a certificate {secret}")
    environ = {
        "HOME": str(tmp_path),
        "PIP_INDEX_URL": f"https://user:{secret}@index.invalid/simple",
        "SSL_CERT_FILE": str(ca_bundle),
    }
    store = ImageStore(state, build_storage=storage, environ=environ)
    nonce = uuid.uuid4().hex
    shows = f"echo {nonce}; pip config list | grep -c @index.invalid; grep -c certificate $SSL_CERT_FILE"
    said: list[str] = []
    image = store.ensure(BuildImage(steps=[run_step(shows)]), lambda text, _fraction: said.append(text))
    assert [text for text in said if text == "1"] == ["1", "1"]
    for place in (state.images / image.id, storage):
        found = subprocess.run(["grep", "-rlas", secret, place], capture_output=True, timeout=60, check=False)
        assert found.stdout == b""
    store.remove(image.id)


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (BuildStep(op="run", args=["echo because of this >&2; exit 7"]), "because of this"),
        (BuildStep(op="apt", args=["no-such-package-anywhere"]), "no-such-package-anywhere"),
    ],
)
def test_a_failing_step_is_named_with_its_last_words(
    builder: ImageStore, state: StateDir, step: BuildStep, complaint: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        builder.ensure(BuildImage(steps=[run_step("true"), step]), quiet)
    assert step.args[0] in caught.value.details["step"]
    assert complaint in caught.value.details["output"]
    assert builder.list() == []
    assert names(state.images / ".staging") == []


@pytest.mark.sandbox
def test_a_cancelled_build_leaves_no_process_and_no_mount(builder: ImageStore) -> None:
    seconds = some_seconds()
    gone = threading.Event()

    def cancel_when_it_sleeps(text: str, _fraction: float | None) -> None:
        if text == "sleeping":
            gone.set()

    steps = [run_step(f"echo sleeping; sleep {seconds}")]
    with pytest.raises(Unavailable, match="cancelled"):
        builder.ensure(BuildImage(steps=steps), cancel_when_it_sleeps, gone)
    wait_until_no_process_has(f"sleep {seconds}")


@pytest.mark.sandbox
def test_what_a_killed_agent_was_building_is_cleared_by_the_next(state: StateDir, storage: Path) -> None:
    ImageStore(state, build_storage=storage).ensure(BuildImage(), quiet)  # shows that it stays
    seconds = some_seconds()
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from glowplug.image.store import ImageStore\n"
        "from glowplug.types.paths import StateDir\n"
        "from glowplug.types.spec import BuildImage, BuildStep\n"
        "store = ImageStore(StateDir(Path(sys.argv[1])), build_storage=Path(sys.argv[2]))\n"
        "steps = [BuildStep(op='run', args=['echo sleeping; sleep ' + sys.argv[3]])]\n"
        "store.ensure(BuildImage(steps=steps), lambda text, _fraction: print(text, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, state.root, storage, seconds], stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        for line in agent.stdout:
            if line == "sleeping\n":
                agent.send_signal(signal.SIGKILL)
    assert agent.returncode == -signal.SIGKILL
    wait_until_no_process_has(f"sleep {seconds}")
    store = ImageStore(state, build_storage=storage)
    assert names(state.images / ".staging") == []
    assert not (storage / "scratch").exists()
    assert str(storage) not in Path("/proc/self/mountinfo").read_text()
    assert len(store.list()) == 1


@pytest.mark.sandbox
def test_two_callers_build_once(builder: ImageStore) -> None:
    spec = BuildImage(steps=[run_step(f"echo ran-{uuid.uuid4().hex}")])
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(builder.ensure, spec, lambda text, _fraction: said.append(text)) for _ in range(2)
        ]
        first, second = [call.result(timeout=120) for call in calls]
    assert first == second
    assert len([text for text in said if text.startswith("ran-")]) == 1


@pytest.mark.sandbox
def test_a_disk_that_fills_up_while_building_is_said_and_leaves_nothing(
    tmp_path: Path, storage: Path
) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", root], check=True, timeout=60)
    try:
        state = StateDir(root / "state")
        state.create()
        store = ImageStore(state, build_storage=storage)
        with pytest.raises(ResourceExhausted):
            store.ensure(BuildImage(), quiet)
        assert store.list() == []
        assert names(state.images / ".staging") == []
    finally:
        subprocess.run(["umount", root], check=True, timeout=60)


@pytest.mark.nightly
@pytest.mark.sandbox
def test_removing_an_image_drops_its_layers(builder: ImageStore, storage: Path) -> None:
    marker = uuid.uuid4().hex
    spec = BuildImage(steps=[run_step(f"echo > /{marker}")])
    image = builder.ensure(spec, quiet)
    assert list(storage.glob(f"*/root/*/*/diff/{marker}")) + list(storage.glob(f"*/root/vfs/dir/*/{marker}"))
    builder.remove(image.id)
    assert not list(storage.glob(f"*/root/*/*/diff/{marker}"))
    assert not list(storage.glob(f"*/root/vfs/dir/*/{marker}"))


def test_a_machine_without_the_builder_is_told_how_to_get_it(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glowplug.image.buildah.DEFAULT_PATH", "/nowhere")
    with pytest.raises(SystemUnfit) as caught:
        ImageStore(state).ensure(BuildImage(), quiet)
    assert "glowplug doctor --fix" in caught.value.remedy
    assert "buildah" in caught.value.details["missing"]


def test_bad_steps_are_refused_before_anything_is_started(state: StateDir) -> None:
    store = ImageStore(state)
    with pytest.raises(InvalidInput):
        store.ensure(BuildImage(python="3.12"), quiet)
    with pytest.raises(InvalidInput):
        store.ensure(BuildImage(steps=[BuildStep(op="apt", args=["--help"])]), quiet)
    assert not (state.images / ".build").exists()


def test_a_steps_output_cannot_pass_for_the_builders() -> None:
    said: list[tuple[str, float | None]] = []
    clock = ManualClock()
    job = Job(lambda text, fraction: said.append((text, fraction)), clock, clock.monotonic() + 1)
    reader = StepReader([Instruction("base"), Instruction("first"), Instruction("second")], job)
    for line in ["STEP 1/3: FROM x", "STEP 2/3: RUN y", "STEP 2/3: fake", "STEP 9/9: fake", "STEP 3/4: fake"]:
        reader.read(line)
    assert reader.current.title == "first"
    reader.read("STEP 3/3: RUN z")
    assert reader.current.title == "second"
    assert [text for text, _ in said if text.startswith("step")] == [
        "step 1/3: base", "step 2/3: first", "step 3/3: second",
    ]  # fmt: skip
    assert re.fullmatch(r"0\.6\d*", str(said[-1][1]))
