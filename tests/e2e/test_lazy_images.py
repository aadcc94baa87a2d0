"""Images as their user has them: import, push, a node with an empty cache, a server that starts lazily."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import needs
from tests.e2e.cloud import Cloud, running_cloud
from tests.e2e.conftest import Apps
from tests.e2e.image_root import make_python_root
from tests.e2e.live import TOOLBOX, Live
from tests.image.origin.oci_images import run
from tests.image.origin.registry_server import DockerRegistry
from tests.ports import free_port

from glowplug.image.index.catalog import Catalog
from glowplug.image.lazy import trace
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.replica import StartPath

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(300)]

APP_FILE = """
import glowplug as gp

app = gp.App("lazy")


@app.server(image=gp.Image.from_name("app:1"), memory="256MiB", scaledown_window_s=60, snapshot={snapshot})
def web():
    return {command!r}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs.root("to mount")
    needs.programs("nginx", "docker-registry", "skopeo", "umoci")
    return make_python_root(tmp_path_factory.mktemp("root") / "root")


@pytest.fixture(scope="module")
def cloud(root: Path) -> Iterator[Cloud]:
    """A region that one image was pushed to."""
    with running_cloud("gp-e2e") as cloud:
        with Live(GLOWPLUG_REGION=cloud.region, **cloud.environment) as builder:
            builder.cli("image", "import", str(root), "app:1")
            sent = builder.listing("image", "push", "app:1")
            assert sent["sent_bytes"] > 20 << 20
            assert builder.listing("image", "push", "app:1")["sent_bytes"] == 0
        yield cloud


@pytest.fixture
def empty_node(cloud: Cloud) -> Iterator[Live]:
    """A node that has never seen an image."""
    with Live(**cloud.node) as live:
        yield live


def deploy(live: Live, folder: Path, *, snapshot: bool = False) -> str:
    file = folder / "app.py"
    command = ["python3", "-c", TOOLBOX.read_text()]
    file.write_text(APP_FILE.format(command=command, snapshot=snapshot))
    name = live.new_name("lazy")
    live.deploy(file, name)
    return name


def test_a_server_starts_on_an_empty_node_and_fetches_only_what_it_reads(
    empty_node: Live, cloud: Cloud, tmp_path: Path
) -> None:
    name = deploy(empty_node, tmp_path)
    assert empty_node.get(f"/{name}/web/who")["version"] == "1"
    (record,) = empty_node.cold_starts(name)
    assert record.mounted_as == "lazy"
    (image,) = empty_node.listing("image", "ls")["indexes"]
    assert 0 < fetched_bytes(record) < image["content_bytes"] / 2
    assert record.bytes_by_tier["zone"] > 0
    assert record.chunks_by_tier["zone"] > 0
    assert image["here_bytes"] >= fetched_bytes(record) / 2
    assert not image["is_complete"]
    shown = empty_node.cli("coldstarts", name).stdout
    assert "zone" in shown
    assert "image mounted lazy" in shown


def test_what_the_first_start_read_is_fetched_ahead_on_other_nodes(
    empty_node: Live, cloud: Cloud, tmp_path: Path
) -> None:
    name = deploy(empty_node, tmp_path)
    empty_node.get(f"/{name}/web/who")
    wait_for_trace(empty_node)
    empty_node.cli("image", "push", "app:1")
    with Live(**cloud.node) as other:
        other.cli("image", "pull", "app:1")
        assert other.listing("image", "ls")["indexes"][0]["here_bytes"] == 0
        prefetched = other.listing("image", "prefetch", "app:1")["bytes"]
        image = other.listing("image", "ls")["indexes"][0]
        assert 0 < prefetched < image["content_bytes"] / 2
        second = deploy(other, tmp_path)
        assert other.get(f"/{second}/web/who")["version"] == "1"
        (record,) = other.cold_starts(second)
        assert record.mounted_as == "lazy"
        assert fetched_bytes(record) < prefetched / 10
        assert fetched_bytes(record) < fetched_bytes(empty_node.cold_starts(name)[0]) / 10
        assert other.daemon_metric("fetch_waits_total") < empty_node.daemon_metric("fetch_waits_total") / 4
        assert other.daemon_metric("fetched_chunks_total") < other.daemon_metric("ssd_chunks_total") / 10


def fetched_bytes(record: ColdStartRecord) -> int:
    return sum(count for tier, count in record.bytes_by_tier.items() if tier != "ssd")


def wait_for_trace(live: Live) -> None:
    live.wait_for(lambda: live.get("/api/v1/indexes")[0]["traces"], "the access trace")


def test_a_complete_image_is_mounted_without_the_daemon(empty_node: Live, tmp_path: Path) -> None:
    empty_node.cli("image", "pull", "app:1", "--content")
    name = deploy(empty_node, tmp_path)
    empty_node.get(f"/{name}/web/who")  # the first start shows the daemon what is read
    wait_for_trace(empty_node)
    (image,) = empty_node.listing("image", "ls")["indexes"]
    graduated = empty_node.state.indexes / image["digest"] / "graduated.json"
    empty_node.wait_for(graduated.exists, "the graduation")
    empty_node.rest(name)
    reads = empty_node.daemon_metric("reads_total")
    empty_node.get(f"/{name}/web/who")
    assert [record.mounted_as for record in empty_node.cold_starts(name)] == ["graduated", "lazy"]
    assert empty_node.daemon_metric("reads_total") == reads


def test_a_snapshot_of_a_server_on_a_lazy_image_restores(empty_node: Live, tmp_path: Path) -> None:
    name = deploy(empty_node, tmp_path, snapshot=True)
    first = empty_node.get(f"/{name}/web/who")
    empty_node.wait_for_snapshot(name)
    empty_node.rest(name)
    again = empty_node.get(f"/{name}/web/who")
    assert (again["restored"], again["version"]) == (True, first["version"])
    assert empty_node.cold_starts(name)[0].path is StartPath.CPU_SNAPSHOT


# The worker alone is killed in tests/faults, too.
@pytest.mark.parametrize("victim", [pytest.param("worker", marks=pytest.mark.nightly), "holder"])
def test_replicas_outlive_the_death_of_the_blob_daemon(
    root: Path, empty_node: Live, tmp_path: Path, victim: str
) -> None:
    name = deploy(empty_node, tmp_path)
    empty_node.get(f"/{name}/web/who")
    os.kill(empty_node.daemon_pid(victim), signal.SIGKILL)
    (replica,) = empty_node.ready(name)
    assert replica.mounted_as == "lazy"
    # Nothing has read this file before: it comes through the daemon that took over.
    checked = empty_node.cli("exec", replica.id, "--", "python3", "-c", _SUM, timeout_s=120)
    assert checked.stdout.strip() == hashlib.sha256((root / "srv/unread").read_bytes()).hexdigest()


def test_a_lost_zone_cache_costs_latency_only(cloud: Cloud, tmp_path: Path) -> None:
    dead_zone = f"http://127.0.0.1:{free_port()}"
    with Live(**cloud.node | {"GLOWPLUG_ZONE": dead_zone}) as live:
        name = deploy(live, tmp_path)
        assert live.get(f"/{name}/web/who")["version"] == "1"
        assert live.listing("image", "ls")["indexes"][0]["here_bytes"] > 0


_SUM = "import hashlib; print(hashlib.sha256(open('/srv/unread', 'rb').read()).hexdigest())"


# --- the examples ---


@pytest.fixture(scope="module")
def registry(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that holds the image ``team/python:1``; its reference."""
    scratch = tmp_path_factory.mktemp("registry")
    run("umoci", "init", "--layout", f"{scratch}/layout")
    run("umoci", "new", "--image", f"{scratch}/layout:app")
    run("umoci", "insert", "--image", f"{scratch}/layout:app", str(root), "/")
    with DockerRegistry(scratch / "registry") as server:
        reference = f"{server.address}/team/python:1"
        source = f"oci:{scratch}/layout:app"
        run("skopeo", "copy", "--dest-tls-verify=false", source, f"docker://{reference}")
        yield reference


@pytest.mark.parametrize(
    ("file", "path", "expected"),
    [
        ("from_registry.py", "/usr/bin/", "python3.11"),
        pytest.param(
            "from_name.py", "/usr/bin/", "python3.11", marks=pytest.mark.nightly
        ),  # as all the others
        ("dockerfile/app.py", "/hello.txt", "hello from a Dockerfile"),
    ],
)
def test_the_example_answers(
    live: Live, apps: Apps, registry: str, root: Path, file: str, path: str, expected: str
) -> None:
    environment = {"GLOWPLUG_EXAMPLE_REF": registry, "GLOWPLUG_EXAMPLE_IMAGE": "example:1"}
    live.cli("image", "import", str(root), "example:1")
    name = apps.name("example")
    live.cli("deploy", str(EXAMPLES / file), "--name", name, timeout_s=240, **environment)
    answer = live.http.get(f"/{name}/web{path}")
    assert answer.status_code == 200
    assert expected in answer.text


def test_importing_twice_gives_the_same_digest_and_stores_nothing_new(
    root: Path, live: Live, tmp_path: Path
) -> None:
    first = live.listing("image", "import", str(root), "twice:1")
    second = live.listing("image", "import", str(root), "twice:2")
    assert (second["digest"], second["new_bytes"]) == (first["digest"], 0)


@pytest.mark.nightly
def test_an_import_in_the_order_of_a_trace_lays_out_first_what_was_read(live: Live, tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "bin"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"{number:02}").write_bytes(os.urandom(5000))
    importing = ("image", "import", str(folder.parent))
    plain = Catalog(live.state).get(live.listing(*importing, "read:1")["digest"])
    ordering = (*importing, "ordered:1", "--order-by", "read:1")
    refused = live.cli(*ordering, code=None)
    assert refused.returncode != 0
    assert "no access trace" in " ".join(refused.stderr.split())
    read = [19, 5, 7]
    trace.save(plain.path, trace.key_of(["a command"]), ["a command"], read)
    digest = live.listing(*ordering)["digest"]
    ordered = Catalog(live.state).get(digest).table()
    assert [ordered[number] for number in range(3)] == [plain.table()[number] for number in read]
    assert sorted(chunk.id for chunk in ordered) == sorted(chunk.id for chunk in plain.table())
    live.cli("image", "diff", "read:1", "ordered:1")  # its exit code says that they are the same


def test_nothing_stays_mounted_after_down(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "shown"
    target.mkdir()
    with Live() as live:  # checks on leaving that no mount and no process is left
        live.cli("image", "import", str(root), "left:1")
        live.cli("image", "mount", "left:1", str(target))
        assert target.is_mount()
    assert not target.is_mount()


def test_an_image_that_is_shown_somewhere_is_not_removed(root: Path, tmp_path: Path, live: Live) -> None:
    target = tmp_path / "shown"
    target.mkdir()
    live.cli("image", "import", str(root), "shown:1")
    live.cli("image", "import", str(root), "shown:2")
    live.cli("image", "rm", "shown:1")
    live.cli("image", "mount", "shown:2", str(target))
    assert (target / "usr/bin/python3").is_symlink()
    live.cli("image", "unmount", str(target))


def test_diff_names_what_changed(root: Path, live: Live, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(root, changed, symlinks=True)
    (changed / "etc" / "added").write_text("new")
    (changed / "srv" / "unread").write_text("shorter")
    live.cli("image", "import", str(root), "diff:1")
    live.cli("image", "import", str(changed), "diff:2")
    result = live.cli("image", "diff", "diff:1", "diff:2", "--json", code=1)
    changes = {change["path"]: change["sign"] for change in json.loads(result.stdout)["changes"]}
    assert changes["/etc/added"] == "+"
    assert changes["/srv/unread"] == "~"


def test_a_removed_image_frees_its_content(live: Live, tmp_path: Path, apps: Apps) -> None:
    lonely = tmp_path / "lonely"
    (lonely / "bin").mkdir(parents=True)
    (lonely / "bin" / "data").write_bytes(os.urandom(3 << 20))
    live.cli("image", "import", str(lonely), "lonely:1")
    live.cli("image", "rm", "lonely:1")
    assert live.listing("image", "gc")["freed_bytes"] >= 3 << 20


def test_a_damaged_chunk_is_found_by_verify(live: Live, tmp_path: Path) -> None:
    folder = tmp_path / "fragile"
    (folder / "bin").mkdir(parents=True)
    content = os.urandom(1 << 20)
    (folder / "bin" / "data").write_bytes(content)
    live.cli("image", "import", str(folder), "fragile:1")
    for pack in live.state.chunks.glob("packs/*"):
        data = pack.read_bytes()
        if (place := data.find(content[:4096])) >= 0:
            with pack.open("r+b") as file:
                file.seek(place + 100)
                file.write(b"\0\1\2\3")
    assert json.loads(live.cli("image", "verify", "fragile:1", "--json", code=1).stdout)["damaged"] == 1
