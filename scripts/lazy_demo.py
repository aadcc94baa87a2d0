"""The demo of images: a real vLLM starts on machines that have none of it, through nginx and an S3 server.

Imports a root filesystem of several GB, pushes it to an S3 server (moto's, on this machine), starts a zone
cache (nginx), and then starts vLLM on two nodes with empty caches, one after the other: the first fetches
what it reads when it reads it, the second knows what the first read and fetches that ahead. Exits with 1
unless both answer the same, and right. ``make demo-images`` installs what it needs first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from chat import Answer, ask
from live_session import CACHE, EXAMPLES, GLOWPLUG, LiveSession
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from glowplug.observe.waterfall import waterfall
from glowplug.types.errors import GlowplugError, RuntimeFailed

APP = "chat"
IMAGE = "vllm"
BUCKET = "glowplug-demo"
ENGINE = CACHE / "engines" / "vllm-0.32.0"
ROOT = CACHE / "roots" / "vllm-0.32.0"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
S3_SERVER = Path(__file__).with_name("s3_server.py")
START_TIMEOUT_S = 60.0


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """moto's S3 API with one bucket; the environment with which it is reached."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, str(S3_SERVER), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        make_bucket(f"http://127.0.0.1:{port}/{BUCKET}", server)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_REGION": "us-east-1",
            "GLOWPLUG_REGION": f"s3://{BUCKET}/images",
        }
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def make_bucket(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait for the server, and make the bucket. Raises RuntimeFailed."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            httpx.put(url, timeout=10).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeFailed("The S3 server does not start.", remedy="Is moto[server] installed? Run make setup.")


@contextmanager
def zone_cache(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """nginx between the nodes and the S3 server; the environment with both."""
    folder = Path(tempfile.mkdtemp(prefix="glowplug-zone-", dir="/var/tmp"))
    folder.chmod(0o755)  # nginx's workers are another user's
    listen = f"127.0.0.1:{free_port()}"

    def command(*arguments: str) -> None:
        subprocess.run(
            [str(GLOWPLUG), "zone-cache", *arguments, "--folder", str(folder)],
            env={**os.environ, **environment},
            check=True,
            timeout=START_TIMEOUT_S,
            stdout=subprocess.DEVNULL,
        )

    command("up", environment["GLOWPLUG_REGION"], "--listen", listen)
    try:
        yield {**environment, "GLOWPLUG_ZONE": f"http://{listen}"}
    finally:
        command("down")
        shutil.rmtree(folder)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def spec_of(session: LiveSession) -> dict[str, Any]:
    """``examples/chat_vllm.py``, from the imported image: engine, interpreter and model are all in it."""
    spec = session.load_spec(EXAMPLES / "chat_vllm.py")
    server = spec["servers"][0]
    server["image"] = {"kind": "named", "name": IMAGE, "env": {"PATH": f"{ENGINE}/bin:{SYSTEM_PATH}"}}
    server["volumes"] = []
    server["snapshot"] = {"enabled": False}
    return spec


def push_image(environment: dict[str, str], console: Console) -> None:
    """Import the root filesystem on one node and push it to the region."""
    console.print(Rule("A node imports the image and pushes it", style="bright_black", align="left"))
    with LiveSession(environment) as session:
        console.print(session.glowplug("image", "import", str(ROOT), IMAGE, timeout_s=900).strip())
        console.print(session.glowplug("image", "push", IMAGE, timeout_s=900).strip())


def start_on_an_empty_node(title: str, environment: dict[str, str], console: Console) -> Answer:
    """Start vLLM where nothing of it is, ask it, show where the seconds went, and leave its trace behind."""
    console.print(Rule(title, style="bright_black", align="left"))
    with LiveSession(environment) as session:
        session.deploy_spec(spec_of(session))
        console.print(session.glowplug("image", "ls").strip(), soft_wrap=True)
        answer = ask(session.client)
        record = session.wait_for_record(APP, set())
        console.print(Text(f"vllm says: {answer.text}", style="green"))
        console.print(waterfall(record, min(console.width, 100)))
        console.print(session.glowplug("image", "ls").strip(), soft_wrap=True)
        session.wait(
            lambda: bool(session.get("/api/v1/indexes")[0]["traces"]), 60.0, "the access trace to be kept"
        )
        session.glowplug("image", "push", IMAGE)
    return answer


def run(console: Console) -> list[str]:
    """The whole story. Returns what went wrong, if anything."""
    with s3_server() as region:
        push_image(region, console)
        with zone_cache(region) as environment:
            answers = [
                start_on_an_empty_node("An empty node: fetched when it is read", environment, console),
                start_on_an_empty_node(
                    "Another: what the first one read is fetched ahead", environment, console
                ),
            ]
    wrong = [answer.text for answer in answers if not answer.is_correct]
    problems = [f"{len(wrong)} answers are not vLLM's own: {wrong}"] if wrong else []
    if len({answer.text for answer in answers}) > 1:
        problems.append("The answers differ.")
    return problems


def main() -> NoReturn:
    """Parse the command line, run, and exit with the verdict."""
    argparse.ArgumentParser(description="Start a real vLLM on empty nodes.").parse_args()
    console = Console(highlighter=None)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    try:
        problems = run(console)
    except GlowplugError as error:
        console.print(Text(f"The demo failed: {error}", style="bold red"))
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        sys.exit(130)
    for problem in problems:
        console.print(Text(problem, style="bold red"))
    if problems:
        sys.exit(1)
    console.print(Text("Both answers are the same, and right.", style="bold green"))
    sys.exit(0)


if __name__ == "__main__":
    main()
