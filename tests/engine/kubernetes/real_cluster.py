"""A real kube-apiserver and etcd, with certificates and RBAC; no kubelet: tests stand in for it.

The programs are built by ``scripts/build_kube_apiserver.sh`` into the cache; etcd is Debian's.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests import needs
from tests.engine.kubernetes.conftest import NAMESPACE
from tests.ports import free_ports

from glowplug.engine.kubernetes.access import Access
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.types.errors import GlowplugError

CRDS = Path(__file__).parents[3] / "deploy" / "helm" / "glowplug" / "crds"
PROGRAMS = Path(os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")) / "kubernetes-1.20.2"
ADMIN, OPERATOR, AGENT = "admin-token", "operator-token", "agent-token"
_STARTS_WITHIN_S = 120.0


class RealCluster:
    """Made, it runs; :meth:`close` it. Service accounts have tokens without a controller that makes them."""

    def __init__(self, release: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gp-kube-", dir="/var/tmp"))
        self._etcd_port, self._peer_port, self.port = free_ports(3)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        account = f"system:serviceaccount:{NAMESPACE}:{release}"
        self._write_credentials(
            [
                (ADMIN, "admin", "system:masters"),
                (OPERATOR, f"{account}-operator", ""),
                (AGENT, f"{account}-agent", ""),
            ]
        )
        self._start_etcd()
        self.start()

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def access(self, token: str = ADMIN) -> Access:
        authority = (self.folder / "certificates" / "apiserver.crt").read_text()
        return Access(self.server, NAMESPACE, authority=authority, token=token)

    def kubeconfig(self, token: str) -> Path:
        """For programs that are to be known by this token."""
        file = self.folder / f"{token}.kubeconfig"
        cluster = {
            "server": self.server,
            "certificate-authority": str(self.folder / "certificates/apiserver.crt"),
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        file.write_text(yaml.safe_dump(content))
        return file

    def kubectl(self, *arguments: str, code: int | None = 0, text: str | None = None) -> str:
        """What it prints; an exit code other than ``code`` fails the test."""
        done = subprocess.run(
            [str(PROGRAMS / "kubectl"), "--kubeconfig", str(self.kubeconfig(ADMIN)), *arguments],
            input=text, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"kubectl {' '.join(arguments)}: {said}"
        return said

    def start(self) -> None:
        """Start the API server, and wait until it is ready."""
        folder = self.folder
        self._run(
            "kube-apiserver",
            str(PROGRAMS / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1", f"--secure-port={self.port}", "--insecure-port=0",
            f"--cert-dir={folder / 'certificates'}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={folder / 'accounts.key'}",
            f"--service-account-key-file={folder / 'accounts.key'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            # Nobody here makes tokens of service accounts for pods.
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true", "--endpoint-reconciler-type=none",
        )  # fmt: skip
        self._wait_until_ready()

    def kill(self) -> None:
        """kill -9 of the API server."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait(60)

    def close(self) -> None:
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGKILL)
            process.wait(60)

    def _write_credentials(self, tokens: list[tuple[str, str, str]]) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        (self.folder / "accounts.key").write_bytes(pem)
        with (self.folder / "tokens.csv").open("w", newline="") as file:
            for token, user, groups in tokens:
                csv.writer(file).writerow([token, user, user, *([groups] if groups else [])])

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._run(
            "etcd", "etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}",
        )  # fmt: skip

    def _run(self, name: str, *argv: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while True:
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            assert not ended, f"{ended} ended: see {self.folder}"
            assert time.monotonic() < deadline_s, f"the API server is not ready: see {self.folder}"
            try:
                with KubernetesApi(self.access()) as api:
                    api.list("v1/namespaces")
                    api.list("rbac.authorization.k8s.io/v1/clusterroles")
            except (GlowplugError, FileNotFoundError):
                time.sleep(0.2)
            else:
                return


def applied(cluster: RealCluster, documents: list[dict[str, Any]], *, is_dry: bool = False) -> str:
    """`kubectl apply` of these."""
    text = yaml.safe_dump_all(documents)
    dry = ["--dry-run=server"] if is_dry else []
    return cluster.kubectl("apply", "--namespace", NAMESPACE, *dry, "-f", "-", text=text)


@contextmanager
def real_cluster() -> Iterator[RealCluster]:
    """One with our namespace and our definitions in it; gone afterwards."""
    needs.programs("etcd")
    if not (PROGRAMS / "kube-apiserver").exists():
        needs.lacking("scripts/build_kube_apiserver.sh")
    made = RealCluster("gp")
    try:
        made.kubectl("create", "namespace", NAMESPACE)
        applied(made, [yaml.safe_load(file.read_text()) for file in sorted(CRDS.glob("*.yaml"))])
        made.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield made
    finally:
        made.close()
        shutil.rmtree(made.folder, ignore_errors=True)
