"""Checks of what the kernel offers and what the machine has: most cannot be installed, only chosen."""

from __future__ import annotations

import re
from pathlib import Path

from glowplug.cli.checks import Check, Finding, Fix, fail, ok, warn
from glowplug.cli.machine import Machine
from glowplug.observe.waterfall import format_bytes

_OLDEST_KERNEL = (5, 10)  # Debian 11's: pidfds, cgroup namespaces and the /proc files we read
_ARCHITECTURES = ("x86_64", "aarch64")  # what gVisor runs on
_CONTROLLERS = ("cpu", "memory", "pids")
_GIB = 1 << 30
_WANTED_OPEN_FILES = 65_536
_TRY_S = 10.0


def kernel_checks(state_root: Path) -> list[Check]:
    """Checks of kernel and machine; disk space is that of ``state_root``."""
    return [
        Check(
            "kernel",
            "Sandboxes, pidfds and cgroups need a Linux kernel of 5.10 or newer, on x86_64 or arm64.",
            "Use a current distribution: Debian 12 or newer.",
            _kernel,
        ),
        Check(
            "root",
            "Network namespaces, mounts and cgroups of replicas are made by root.",
            "Run as root, for example with sudo.",
            _root,
        ),
        Check(
            "cgroups",
            "CPU and memory limits of replicas, and telling that one ran out of memory.",
            "Boot with cgroup v2 (the default on Debian 12), or mount v1's controllers cpu, memory, pids.",
            _cgroups,
        ),
        Check(
            "ip",
            "Sets up each replica's network.",
            "apt-get install iproute2",
            lambda machine: _program(machine, "ip", ["-V"]),
            Fix(packages=("iproute2",)),
        ),
        Check(
            "network namespaces",
            "Each replica has its own network namespace with a veth pair; one was made and removed to see.",
            "Run as root on a kernel with CONFIG_NET_NS and CONFIG_VETH; in a container: with CAP_SYS_ADMIN "
            "and CAP_NET_ADMIN.",
            _network_namespaces,
        ),
        Check(
            "/proc/sys/net",
            "Newer kernels show net.core.rmem_default in every namespace; runsc then takes it for the host's "
            "and refuses a network. We hide it from runsc in a mount namespace.",
            "apt-get install mount; run as root; in a container: with CAP_SYS_ADMIN.",
            _sysctl_quirk,
            Fix(packages=("mount",)),
        ),
        Check(
            "open files",
            "A held request is a socket: a thousand of them need a limit far above 1024.",
            "Raise the hard limit: ulimit -Hn 65536, or LimitNOFILE=65536 in a systemd unit.",
            _open_files,
        ),
        Check(
            "memory",
            "Replicas live in it; a small real model with vLLM takes about 3 GiB.",
            "Stop other programs, or use a machine with more memory.",
            _memory,
        ),
        Check(
            "swap",
            "Where the memory of parked servers goes when others need it, so that many fit on one machine.",
            "Without it parked servers are stopped instead; to add some: fallocate -l 32G /swapfile && "
            "chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile.",
            _swap,
        ),
        Check(
            "disk",
            f"Images and snapshots lie in {state_root}; a snapshot is as large as the server's memory.",
            "Make room, or put the state on another disk: --state or GLOWPLUG_STATE.",
            lambda machine: _disk(machine, state_root),
        ),
    ]


def _kernel(machine: Machine) -> Finding:
    system, release, architecture = machine.kernel()
    found = f"{system} {release} {architecture}"
    version = re.match(r"(\d+)\.(\d+)", release)
    if system != "Linux" or version is None or architecture not in _ARCHITECTURES:
        return fail(found)
    return ok(found) if (int(version[1]), int(version[2])) >= _OLDEST_KERNEL else fail(found)


def _root(machine: Machine) -> Finding:
    user = machine.user_id()
    return ok("running as root") if user == 0 else fail(f"running as user {user}")


def _cgroups(machine: Machine) -> Finding:
    unified = (machine.read(Path("/sys/fs/cgroup/cgroup.controllers")) or "").split()
    if all(controller in unified for controller in _CONTROLLERS):
        return ok("v2 with " + ", ".join(_CONTROLLERS))
    # One line of /proc/mounts: device, mount point, type, options (v1 names its controllers there).
    mounts = [line.split() for line in (machine.read(Path("/proc/mounts")) or "").splitlines()]
    mounted = {option for m in mounts if len(m) > 3 and m[2] == "cgroup" for option in m[3].split(",")}
    missing = [controller for controller in _CONTROLLERS if controller not in mounted]
    if missing:
        return fail("no controller " + ", ".join(missing))
    return ok("v1 with " + ", ".join(_CONTROLLERS))


def _program(machine: Machine, name: str, version_arguments: list[str]) -> Finding:
    path = machine.which(name)
    if path is None:
        return fail("not installed")
    done = machine.run([str(path), *version_arguments], _TRY_S)
    return ok(done.last_line) if done.is_good else fail(f"{path} does not run: {done.last_line}")


def _network_namespaces(machine: Machine) -> Finding:
    # Inside a throw-away namespace: it takes the pair with it when it ends.
    veth = "ip link add gp0 type veth peer name gp1"
    done = machine.run(["unshare", "-n", *veth.split()], _TRY_S)
    return ok("a veth pair can be made") if done.is_good else fail(done.last_line or "not allowed")


def _sysctl_quirk(machine: Machine) -> Finding:
    shown = machine.run(["unshare", "-n", "test", "-e", "/proc/sys/net/core/rmem_default"], _TRY_S)
    if shown.code == 1:
        return ok("not shown in new namespaces: nothing to hide")
    mask = "mount -t tmpfs -o ro,size=4k none /proc/sys/net && ! test -e /proc/sys/net/core"
    masked = machine.run(["unshare", "-n", "-m", "sh", "-c", mask], _TRY_S)
    return ok("can be hidden") if masked.is_good else fail(f"cannot be hidden: {masked.last_line}")


def _open_files(machine: Machine) -> Finding:
    limit = machine.open_files_limit()
    if limit >= _WANTED_OPEN_FILES:
        return ok(f"hard limit {limit}")
    raised = machine.run(["prlimit", f"--nofile={_WANTED_OPEN_FILES}", "true"], _TRY_S)
    if raised.is_good:
        return ok(f"hard limit {limit}, can be raised to {_WANTED_OPEN_FILES}")
    found = f"hard limit {limit}, cannot be raised"
    return warn(found) if limit >= 4096 else fail(found)


def _memory(machine: Machine) -> Finding:
    table = machine.read(Path("/proc/meminfo")) or ""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", table, re.MULTILINE)
    if available is None:
        return warn("unknown: /proc/meminfo does not say")
    free_bytes = int(available[1]) * 1024
    found = f"{format_bytes(free_bytes)} available"
    return ok(found) if free_bytes >= 4 * _GIB else warn(found) if free_bytes >= _GIB else fail(found)


def _swap(machine: Machine) -> Finding:
    table = machine.read(Path("/proc/meminfo")) or ""
    free = re.search(r"^SwapFree:\s+(\d+) kB", table, re.MULTILINE)
    free_bytes = int(free[1]) * 1024 if free else 0
    if free_bytes == 0:
        return ok("none: parked servers keep their memory, or are stopped when it is short")
    return ok(f"{format_bytes(free_bytes)} free for the memory of parked servers")


def _disk(machine: Machine, state_root: Path) -> Finding:
    if not machine.is_writable(state_root):
        return fail(f"{state_root} cannot be written")
    free_bytes = machine.free_bytes(state_root)
    found = f"{format_bytes(free_bytes)} free"
    return ok(found) if free_bytes >= 20 * _GIB else warn(found) if free_bytes >= 2 * _GIB else fail(found)
