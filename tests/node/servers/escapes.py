"""A tenant that tries to get out: ``GET /attempts`` does all it can think of, and tells how each try ended.

``null`` where nothing came of it, else what it got. Standard library only; harmless where it does succeed, as
nothing is written that a host would notice.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

LIBC = ctypes.CDLL(None, use_errno=True)
CONNECT_TIMEOUT_S = 2.0
CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWUSER = 0x0002_0000, 0x4000_0000, 0x1000_0000
SIOCADDRT, SIOCSIFADDR = 0x890B, 0x8916
CAP_SYS_ADMIN, CAPABILITY_VERSION_3 = 21, 0x2008_0522
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAPBSET_READ = 47, 2, 23


def got(attempt: Callable[[], object]) -> object:
    """What came of it; None for a refusal."""
    try:
        return attempt()
    except OSError:
        return None


def call(name: str, *arguments: object) -> str:
    """A system call of the C library's. Raises OSError."""
    if getattr(LIBC, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
    return f"{name} was allowed"


def connect(family: socket.AddressFamily, address: object) -> str:
    with socket.socket(family) as caller:
        caller.settimeout(CONNECT_TIMEOUT_S)
        caller.connect(address)  # type: ignore[arg-type]
        return f"connected to {address!r}"


def reach(host: str, port: int) -> object:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return got(lambda: connect(family, (host, port)))


def open_for_writing(path: str) -> object:
    """Nothing is written: that it can be opened is too much."""

    def attempt() -> str:
        os.close(os.open(path, os.O_WRONLY))
        return f"{path} was opened"

    return got(attempt)


def make_file(folder: str) -> object:
    def attempt() -> str:
        path = Path(folder) / "left-by-a-tenant"
        path.write_text("x")
        return f"{path} was written"

    return got(attempt)


def own_capabilities() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}


def status_of(name: str) -> str | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)


def take_capability() -> str:
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    wanted = 1 << CAP_SYS_ADMIN
    data = struct.pack("=6I", wanted, wanted, wanted, 0, 0, 0)
    return call("capset", ctypes.c_char_p(header), ctypes.c_char_p(data))


def raise_ambient_capability() -> str:
    return call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0)


def add_route() -> str:
    """A default route by the other end of the cable (struct rtentry, route(7))."""
    import fcntl

    def address(host: str) -> bytes:
        return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(host))

    entry = struct.pack(
        "=Q16s16s16sHhQQhQQ",
        0,
        address("0.0.0.0"),
        address("10.99.0.1"),
        address("0.0.0.0"),
        3,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCADDRT, entry.ljust(120, b"\0"))
    return "a route was added"


def raw_socket() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        return "a raw socket"


def packet_socket() -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
        return "a packet socket"


def make_device() -> str:
    os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0))
    os.close(os.open("/tmp/disk", os.O_RDONLY))  # gVisor lets it be made, and has no device behind it
    return "a disk was opened"


def processes() -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append((folder / "cmdline").read_text(errors="replace").replace("\0", " "))
            except OSError:
                continue
    return found


def environments() -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append((folder / "environ").read_text(errors="replace"))
            except OSError:
                continue
    return found


READ_ONLY = ("/usr", "/usr/bin", "/servers", "/.glowplug/lib/glowplug", "/run/glowplug")
OF_THE_KERNEL = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/sys/kernel/mm/ksm/run",
    "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/cgroup.procs", "/dev/mem", "/dev/kmsg",
    "/dev/sda", "/dev/vda", "/dev/loop-control", "/dev/fuse", "/dev/kvm", "/dev/net/tun",
)  # fmt: skip
MEMORY_OF_THE_HOST = ("/proc/kcore", "/proc/keys", "/proc/timer_list")


def attempts(port: int, hosts: list[str], agent: str, abstract: str, sister_port: int) -> dict[str, object]:
    """Everything, by what it aims at."""
    return {
        "host": {host: reach(host, port) for host in hosts},
        "metadata": {host: reach(host, 80) for host in ("169.254.169.254", "169.254.170.2", "fd00:ec2::254")},
        "outside": {host: reach(host, 53) for host in ("8.8.8.8", "2001:4860:4860::8888", "10.0.0.1")},
        "sister": {host: reach(host, sister_port) for host in ("10.99.0.2", "10.99.0.1", "127.0.0.1")},
        "agent": {agent: got(lambda: connect(socket.AF_UNIX, agent)), "is seen": Path(agent).exists()},
        "abstract": got(lambda: connect(socket.AF_UNIX, b"\0" + abstract.encode())),
        "names": got(lambda: socket.gethostbyname("metadata.google.internal")),
        "environment": sorted(os.environ),
        "environments": environments(),
        "processes": processes(),
        "read-only": {folder: make_file(folder) for folder in READ_ONLY},
        "kernel": {path: open_for_writing(path) for path in OF_THE_KERNEL},
        "memory of the host": [path for path in MEMORY_OF_THE_HOST if got(lambda path=path: read_some(path))],
        "capabilities": own_capabilities(),
        "kernel release": os.uname().release,
        "no new privileges": status_of("NoNewPrivs"),
        "seccomp": status_of("Seccomp"),
        "powers": {
            "take a capability": got(take_capability),
            "raise an ambient one": got(raise_ambient_capability),
            "mount": got(lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
            "raw socket": got(raw_socket),
            "packet socket": got(packet_socket),
            "add a route": got(add_route),
            "make a device": got(make_device),
            "load a module": got(lambda: call("syscall", 175, b"", 0, b"")),
            "join a namespace": got(lambda: call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), 0)),
        },
        "namespaces": {
            name: in_child(lambda flag=flag: call("unshare", flag))
            for name, flag in (("mounts", CLONE_NEWNS), ("network", CLONE_NEWNET), ("users", CLONE_NEWUSER))
        },
    }  # fmt: skip


def read_some(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(64)


def in_child(attempt: Callable[[], object]) -> object:
    """In a process of its own, which may be changed by it."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if got(attempt) is not None else 1)
    return "it was allowed" if os.waitpid(pid, 0)[1] == 0 else None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        answer: object = "hello"
        if url.path == "/attempts":
            answer = attempts(
                int(query["port"][0]),
                query["host"],
                query["agent"][0],
                query["abstract"][0],
                int(query["sister"][0]),
            )
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT", "8000"))), Handler).serve_forever()
