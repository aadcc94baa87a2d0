"""Registries for tests: Debian's real one, with and without logins, and one that does as it is told."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import queue
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.image.origin.oci_images import BlobFolder, digest_of

from glowplug.image.origin.oci_manifest import OCI_INDEX, OCI_MANIFEST

START_TIMEOUT_S = 60
USER, PASSWORD = "keeper", "open sesame"
# The only kind of hash that docker-registry takes: bcrypt, of the password above.
HTPASSWD = f"{USER}:$2b$04$uuEnfXFdU5kCL9CVkVXlC.rUegJ8STVS9v7luOfMUBd7iTCpy.GFi\n"
ISSUER, SERVICE = "tests", "registry of tests"

Respond = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request to a :class:`ScriptedServer`; ``answer`` is all that most scripts need."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def answer(self, status: int, body: bytes = b"", **headers: str | int) -> None:
        """A whole answer; ``Content_Type`` becomes Content-Type."""
        self.head(status, Content_Length=len(body), **headers)
        self.wfile.write(body)

    def head(self, status: int, **headers: str | int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def hang_up(self) -> None:
        """End the connection where it is."""
        self.close_connection = True
        self.wfile.flush()

    def stall(self) -> None:
        """Say nothing more until the test is over."""
        self.server.closing.wait(START_TIMEOUT_S)
        self.close_connection = True

    def trickle(self, byte: bytes = b"x") -> None:
        """Send one byte after the other, slowly, until the test is over or nobody listens."""
        with contextlib.suppress(OSError):
            while not self.server.closing.wait(0.02):
                self.wfile.write(byte)
        self.close_connection = True

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers.items())))
        try:
            self.server.respond(self)
        except OSError:  # the client had enough
            self.close_connection = True

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_CONNECT(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.respond = respond
        self.closing = threading.Event()
        self.seen: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are what these tests are about


class ScriptedServer:
    """An HTTP server whose every answer is up to ``respond``; with ``tls``, HTTPS."""

    def __init__(self, respond: Respond, tls: ssl.SSLContext | None = None) -> None:
        self._server = _Server(respond)
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def seen(self) -> list[tuple[str, dict[str, str]]]:
        """Path and headers of every request so far."""
        return self._server.seen

    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    def close(self) -> None:
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def scripted(respond: Respond, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    server = ScriptedServer(respond, tls)
    try:
        yield server
    finally:
        server.close()


def serve_layout(blobs: BlobFolder, request: Request) -> None:
    """What an honest registry answers that holds this layout as any repository: ranges, 404 and all."""
    match = re.fullmatch(r"/v2/.+/(manifests|blobs)/([^/]+)", request.path)
    if match is None:
        request.answer(404)
        return
    named = {
        (image.get("annotations") or {}).get("org.opencontainers.image.ref.name"): image["digest"]
        for image in json.loads((blobs.folder / "index.json").read_text())["manifests"]
    }
    path = blobs.path(named.get(match[2], match[2]))
    if not path.is_file():
        error = {"errors": [{"code": "UNKNOWN", "message": "no such \x1b[31mthing"}]}
        request.answer(404, json.dumps(error).encode())
        return
    data = path.read_bytes()
    if match[1] == "manifests":
        kind = OCI_INDEX if "manifests" in json.loads(data) else OCI_MANIFEST
        request.answer(200, data, Content_Type=kind, Docker_Content_Digest=digest_of(data))
    elif wanted := re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("Range", "")):
        start = int(wanted[1])
        shown = f"bytes {start}-{len(data) - 1}/{len(data)}"
        request.answer(206, data[start:], Content_Range=shown)
    else:
        request.answer(200, data)


class DockerRegistry:
    """Debian's docker-registry as a process on a free port; a context manager."""

    def __init__(self, folder: Path, auth: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._configuration = folder / "registry.yml"
        self._configuration.write_text(
            "version: 0.1\nlog: {level: info}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
            f"http: {{addr: '127.0.0.1:0', secret: tests}}\n{auth}"
        )
        self.address = ""

    @staticmethod
    def with_password(folder: Path) -> DockerRegistry:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "htpasswd").write_text(HTPASSWD)
        return DockerRegistry(folder, f"auth: {{htpasswd: {{realm: r, path: {folder / 'htpasswd'}}}}}\n")

    def __enter__(self) -> DockerRegistry:
        self._process = subprocess.Popen(
            ["docker-registry", "serve", self._configuration],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
        )
        port: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read_log, args=(port,), daemon=True)
        self._reader.start()
        try:
            self.address = f"127.0.0.1:{port.get(timeout=START_TIMEOUT_S)}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(START_TIMEOUT_S)
        self._reader.join(START_TIMEOUT_S)

    def _read_log(self, port: queue.Queue[str]) -> None:
        stream = self._process.stderr
        assert stream is not None
        with stream:
            for line in stream:
                if match := re.search(r"listening on 127\.0\.0\.1:([0-9]+)", line):
                    port.put(match[1])


class TokenServer:
    """Issues the tokens that a docker-registry with ``auth: token`` wants; a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _self_signed(self._key)
        self._bundle = folder / "tokens.pem"
        self._bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self.server = ScriptedServer(self._respond)
        self.answers_to: list[tuple[str, str]] = []
        """Scope and Authorization of each request."""

    def auth(self) -> str:
        """What the registry's configuration must say."""
        return (
            f"auth: {{token: {{realm: 'http://{self.server.address}/token', service: '{SERVICE}', "
            f"issuer: {ISSUER}, rootcertbundle: {self._bundle}}}}}\n"
        )

    def __enter__(self) -> TokenServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def _respond(self, request: Request) -> None:
        question = parse_qs(urlsplit(request.path).query)
        scope = question.get("scope", [""])[0]
        sent = request.headers.get("Authorization", "")
        self.answers_to.append((scope, sent))
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if sent != f"Basic {pair}":
            request.answer(401, b'{"details": "who?"}')
            return
        request.answer(200, json.dumps({"token": self._token(scope)}).encode())

    def _token(self, scope: str) -> str:
        access = []
        if scope:
            kind, name, actions = scope.split(":")
            access = [{"type": kind, "name": name, "actions": actions.split(",")}]
        now_s = int(time.time())
        certificate = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate).decode()]}
        claims = {"iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": "1", "access": access}
        claims |= {"iat": now_s, "nbf": now_s - 60, "exp": now_s + 600}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        numbers = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(b''.join(number.to_bytes(32, 'big') for number in numbers))}"


def tls_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody trusts yet, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(_self_signed(key).public_bytes(serialization.Encoding.PEM))
    unlocked = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, unlocked))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return certificate, context


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    basic = x509.BasicConstraints(ca=True, path_length=None)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = builder.add_extension(basic, critical=True).add_extension(here, critical=False)
    return builder.sign(key, hashes.SHA256())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
