"""A region as users have one: a bucket in a real S3 server, and an nginx zone cache before it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import needs
from tests.chunks.servers import S3Server
from tests.e2e.live import GLOWPLUG
from tests.ports import free_port

COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Cloud:
    """``environment`` is what a node needs to reach the bucket; see :attr:`node` for one that uses it."""

    server: S3Server
    region: str
    zone: str
    environment: dict[str, str]

    @property
    def node(self) -> dict[str, str]:
        """The environment of a node of this region that asks the zone first."""
        return {**self.environment, "GLOWPLUG_REGION": self.region, "GLOWPLUG_ZONE": self.zone}


@contextmanager
def running_cloud(bucket: str) -> Iterator[Cloud]:
    """Both servers, until the end of the block."""
    needs.programs("nginx")
    server = S3Server()
    try:
        environment = {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
        }
        region = f"s3://{server.make_bucket(bucket)}/images"
        listen = f"127.0.0.1:{free_port()}"
        folder = Path(tempfile.mkdtemp(prefix="gp-zone-", dir="/var/tmp"))
        folder.chmod(0o755)  # nginx's workers are another user's
        try:
            _zone_cache(environment, "up", region, "--listen", listen, "--folder", str(folder))
            yield Cloud(server, region, f"http://{listen}", environment)
        finally:
            _zone_cache(environment, "down", "--folder", str(folder))
            shutil.rmtree(folder)
    finally:
        server.kill()


def _zone_cache(environment: dict[str, str], *arguments: str) -> None:
    subprocess.run(
        [str(GLOWPLUG), "zone-cache", *arguments],
        env={**os.environ, **environment},
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
    )
