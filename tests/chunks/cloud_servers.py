"""Azurite, which emulates Azure's blobs, and Google's API at a server of S3's.

Google's XML API, which is what obstore speaks, is S3's in all that we use, so moto's server stands in for it.
Emulators of Google's cloud do not: gcp-storage-emulator 2026.7 sends no ETag, without which obstore takes no
answer, and fake-gcs-server (as of PyPI's wrapper 0.1.1) takes no plain PUT.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import signal
import subprocess
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from tests import needs
from tests.chunks.servers import S3Server, wait_for_port
from tests.ports import free_port

from glowplug.chunks.region_objects import ObstoreObjects

AZURITE = Path(os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")) / "azurite"


class AzureServer:
    """Azurite's blobs, in memory, on a port of their own."""

    ACCOUNT = "devstoreaccount1"
    # Azurite's own, the same for everybody.
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        program = AZURITE / "node_modules/.bin/azurite-blob"
        if not program.exists():
            needs.lacking("Azurite (scripts/setup_azurite.sh)")
        options = ["--blobHost=127.0.0.1", f"--blobPort={self.port}", "--inMemoryPersistence", "--silent"]
        self.process = subprocess.Popen(
            [program, *options, "--skipApiVersionCheck", "--disableTelemetry"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def make_bucket(self, name: str) -> str:
        """A container; obstore makes none."""
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
        resource = f"/{self.ACCOUNT}/{self.ACCOUNT}/{name}\nrestype:container"
        listed = "".join(f"{header}:{value}\n" for header, value in headers.items())
        signed = f"PUT{12 * chr(10)}{listed}{resource}"
        key = base64.b64decode(self.KEY)
        signature = base64.b64encode(hmac.digest(key, signed.encode(), hashlib.sha256)).decode()
        request = urllib.request.Request(
            f"{self.url}/{self.ACCOUNT}/{name}?restype=container",
            method="PUT",
            headers={**headers, "Authorization": f"SharedKey {self.ACCOUNT}:{signature}"},
        )
        with urllib.request.urlopen(request, timeout=60):
            return name

    def objects(self, bucket: str, prefix: str = "some/prefix") -> ObstoreObjects:
        options = {"account_name": self.ACCOUNT, "account_key": self.KEY}
        options["endpoint"] = f"{self.url}/{self.ACCOUNT}"
        return ObstoreObjects(f"az://{bucket}/{prefix}", options)


class GcsServer(S3Server):
    """See the module."""

    def objects(self, bucket: str, prefix: str = "some/prefix") -> ObstoreObjects:
        return ObstoreObjects(f"gs://{bucket}/{prefix}", {"base_url": self.url, "bearer_token": "tests"})
