"""The way to the API server: from inside a pod by its service account, from elsewhere by a kubeconfig.

Plug-ins that fetch credentials (``exec``, ``auth-provider``) are not run: where those are needed, use a
service account's token, or a client certificate.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.types.errors import InvalidInput, NotFound

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True)
class Access:
    """Where the API server is, and by what it knows us. Certificates and keys are PEM.

    ``token_path`` is read for each request: Kubernetes renews what is in it every hour.
    """

    server: str
    namespace: str = _DEFAULT_NAMESPACE
    authority: str | None = None
    token: str | None = None
    token_path: Path | None = None
    certificate: str | None = None
    private_key: str | None = None
    is_insecure: bool = False

    def bearer(self) -> str | None:
        """The token of this moment, if it is one that we are known by."""
        if self.token_path is None:
            return self.token
        try:
            return self.token_path.read_text().strip()
        except OSError as error:
            raise NotFound(
                f"The token of the API server cannot be read: {error.strerror}.",
                remedy="The pod needs a service account whose token is mounted.",
                path=str(self.token_path),
            ) from error

    def tls(self) -> ssl.SSLContext:
        """How to talk to it. Raises InvalidInput for what is no certificate."""
        try:
            context = ssl.create_default_context(cadata=self.authority)
            if self.certificate is not None and self.private_key is not None:
                _load_chain(context, self.certificate + "\n" + self.private_key)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInput(
                f"The certificates for the API server cannot be used: {error}.", remedy="See the kubeconfig."
            ) from error
        if self.is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _load_chain(context: ssl.SSLContext, pem: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # mode 0600; ssl reads files only
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)


def find_access(
    environment: Mapping[str, str] = os.environ, service_account: Path = SERVICE_ACCOUNT
) -> Access:
    """``KUBECONFIG`` if it is set, a pod's service account, ``~/.kube/config``. Raises NotFound."""
    named = environment.get("KUBECONFIG")
    if named:
        return from_kubeconfig(Path(named.split(os.pathsep)[0]))
    if (service_account / "token").exists():
        return _from_service_account(environment, service_account)
    usual = Path.home() / ".kube" / "config"
    if usual.exists():
        return from_kubeconfig(usual)
    raise NotFound(
        "There is no way to a Kubernetes API server from here.",
        remedy="Run it in a pod with a service account, or name a kubeconfig with KUBECONFIG.",
    )


def _from_service_account(environment: Mapping[str, str], folder: Path) -> Access:
    host = environment.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    authority, namespace = folder / "ca.crt", folder / "namespace"
    return Access(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=namespace.read_text().strip() if namespace.exists() else _DEFAULT_NAMESPACE,
        authority=authority.read_text() if authority.exists() else None,
        token_path=folder / "token",
    )


def from_kubeconfig(path: Path) -> Access:
    """The current context of this file. Raises NotFound, InvalidInput."""
    import yaml  # comes with kopf: extra `kubernetes`

    try:
        config = yaml.safe_load(path.read_text())
        context = _named(config, "contexts", "context", config["current-context"])
        cluster = _named(config, "clusters", "cluster", context["cluster"])
        user = _named(config, "users", "user", context["user"])
        token_file = user.get("tokenFile")
        return Access(
            server=str(cluster["server"]).rstrip("/"),
            namespace=context.get("namespace") or _DEFAULT_NAMESPACE,
            authority=_pem(cluster, "certificate-authority", path),
            token=user.get("token"),
            token_path=path.parent / token_file if token_file else None,
            certificate=_pem(user, "client-certificate", path),
            private_key=_pem(user, "client-key", path),
            is_insecure=bool(cluster.get("insecure-skip-tls-verify")),
        )
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no file {error.filename}.", remedy="Correct KUBECONFIG, or what is in it."
        ) from error
    except (
        OSError,
        yaml.YAMLError,
        KeyError,
        TypeError,
        AttributeError,
        binascii.Error,
        ValueError,
    ) as error:
        raise InvalidInput(
            f"{path} is no kubeconfig that can be used: {type(error).__name__}: {error}.",
            remedy="`kubectl config view --minify --raw --flatten` writes a good one.",
        ) from error


def _named(config: Any, kind: str, field: str, name: str) -> dict[str, Any]:
    for one in config[kind]:
        if one["name"] == name:
            found: dict[str, Any] = one.get(field) or {}
            return found
    raise KeyError(f"{name!r} in {kind}")


def _pem(where: Mapping[str, Any], name: str, config: Path) -> str | None:
    """What is in the file itself comes before the file that is named."""
    data = where.get(f"{name}-data")
    if data:
        return base64.b64decode(data, validate=True).decode()
    file = where.get(name)
    return (config.parent / file).read_text() if file else None
