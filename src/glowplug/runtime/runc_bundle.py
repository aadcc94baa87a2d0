"""What runc is told beyond :func:`~glowplug.runtime.bundle.oci_config`: here the host's kernel is shared.

So the profile says what gVisor need not be told: paths of the host's kernel are hidden, no device but the
harmless ones, and system calls that leave the container or that CRIU cannot checkpoint are absent.
"""

from __future__ import annotations

import errno
import platform
import resource
from pathlib import Path
from typing import Any

from glowplug.runtime.bundle import CAPABILITIES, OPEN_FILES, bind, oci_config
from glowplug.runtime.port import ContainerEdits, Sandbox
from glowplug.runtime.writable import WritableFolders

# What a process may still ask of the host's kernel: the defaults of Docker's and Podman's profiles.
_MASKED_PATHS = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware",
]  # fmt: skip
_READ_ONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
# CRIU cannot checkpoint a ring, nor a userfaultfd. Told that there is none, libraries do without (libuv).
_ABSENT_CALLS = ["io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"]
# clone3 hides its flags behind a pointer that no filter can follow; the C library then uses clone.
_UNFILTERABLE_CALLS = ["clone3"]
_REFUSED_CALLS = [
    "acct", "add_key", "bpf", "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount",
    "fsopen", "fspick", "init_module", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount",
    "mount_setattr", "move_mount", "open_by_handle_at", "open_tree", "perf_event_open", "pivot_root",
    "quotactl", "reboot", "request_key", "setns", "swapoff", "swapon", "umount2", "unshare",
]  # fmt: skip
_CLONE_NEW_ANYTHING = 0x7E02_0000  # CLONE_NEWNS .. CLONE_NEWNET, linux/sched.h
_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}
# A snapshot that was taken under another profile is another snapshot: its filters are in the memory image.
PROFILE_VERSION = 1


def runc_config(sandbox: Sandbox, writable: WritableFolders, criu_config: Path) -> dict[str, Any]:
    """The runtime specification of one container for runc.

    ``writable`` holds its root, /tmp and /dev/shm; ``criu_config`` is read whenever CRIU is called for it.
    """
    config = oci_config(sandbox)
    config["root"] = {"path": str(writable.root), "readonly": False}
    capabilities = config["process"]["capabilities"]
    config["process"]["capabilities"] = {kind: list(CAPABILITIES) for kind in capabilities}
    # The host's own limit holds here, and some hosts do not let even root raise it.
    open_files = min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files}]
    own = {mount.destination for mount in sandbox.mounts}
    mounts = [mount for mount in config["mounts"] if mount["destination"] in own]
    config["mounts"] = _kernel_mounts() + [
        bind(folder, destination, False) for destination, folder in writable.binds.items()
    ] + mounts  # fmt: skip
    config["annotations"] = {**sandbox.annotations, "org.criu.config": str(criu_config)}
    linux = config["linux"]
    linux["namespaces"].append({"type": "cgroup"})
    linux["resources"]["memory"] = {"limit": sandbox.memory_bytes}
    linux["resources"]["devices"] = [{"allow": False, "access": "rwm"}]
    linux["maskedPaths"] = _MASKED_PATHS
    linux["readonlyPaths"] = _READ_ONLY_PATHS
    linux["seccomp"] = seccomp_profile()
    if sandbox.edits is not None:
        _edit(config, sandbox.edits)
    return config


def _edit(config: dict[str, Any], edits: ContainerEdits) -> None:
    """Device nodes are mounts too, like all else that comes from the host: a copy gets its own in place."""
    process, linux = config["process"], config["linux"]
    said = {entry.partition("=")[0] for entry in process["env"]}
    process["env"] += [f"{name}={value}" for name, value in edits.env.items() if name not in said]
    config["mounts"] += [bind(mount.source, mount.destination, mount.read_only) for mount in edits.mounts]
    config["mounts"] += [bind(node.source, node.destination, False) for node in edits.nodes]
    linux["resources"]["devices"] += [
        {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.access}
        for node in edits.nodes
    ]
    if edits.hooks:
        config["hooks"] = edits.hooks


def seccomp_profile(machine: str = platform.machine()) -> dict[str, Any]:
    """Everything is allowed but what leaves the container, and what cannot be checkpointed does not exist."""
    absent = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}
    refused = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    any_new = [
        {"index": 0, "value": 1 << bit, "valueTwo": 1 << bit, "op": "SCMP_CMP_MASKED_EQ"}
        for bit in range(32)
        if _CLONE_NEW_ANYTHING >> bit & 1
    ]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": _ARCHITECTURES.get(machine, []),
        "syscalls": [
            {"names": _ABSENT_CALLS + _UNFILTERABLE_CALLS, **absent},
            {"names": _REFUSED_CALLS, **refused},
            *({"names": ["clone"], "args": [condition], **refused} for condition in any_new),
        ],
    }


def _kernel_mounts() -> list[dict[str, Any]]:
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
    ]
