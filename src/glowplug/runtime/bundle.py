"""From a :class:`~glowplug.runtime.port.Sandbox` to an OCI bundle (``config.json``, runtime spec 1.0.2).

:func:`oci_config` is what every runtime is told, and complete for runsc: its root is writable through an
overlay in the sandbox's memory, and /tmp and /dev/shm are tmpfs inside, so that what is written is part of a
snapshot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glowplug.runtime.port import Sandbox

CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
]  # fmt: skip
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# vLLM needs it; gVisor keeps this limit itself, whatever the host's is.
OPEN_FILES = 65_536
# What the sandbox's own kernel (gVisor's sentry, 50-90 MiB measured) takes on top of the application.
SANDBOX_OVERHEAD_BYTES = 192 << 20
CPU_PERIOD_US = 100_000


def write_bundle(sandbox: Sandbox, config: dict[str, Any]) -> Path:
    """Write ``config.json`` into ``sandbox.directory`` and return that folder."""
    sandbox.directory.mkdir(parents=True, exist_ok=True)
    (sandbox.directory / "config.json").write_text(json.dumps(config, indent=1))
    return sandbox.directory


def oci_config(sandbox: Sandbox) -> dict[str, Any]:
    """The runtime specification of one container."""
    env = {
        "PATH": DEFAULT_PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "HOSTNAME": sandbox.hostname,
    } | sandbox.env
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(sandbox.args),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": sandbox.workdir,
            "capabilities": {
                kind: [*CAPABILITIES, *sandbox.extra_capabilities] for kind in _CAPABILITY_SETS
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": OPEN_FILES, "soft": OPEN_FILES}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(sandbox.root), "readonly": False},
        "hostname": sandbox.hostname,
        "mounts": _system_mounts() + [bind(m.source, m.destination, m.read_only) for m in sandbox.mounts],
        "annotations": sandbox.annotations,
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": str(sandbox.netns)},
            ],
            "cgroupsPath": sandbox.cgroup,
            "resources": {
                "memory": {"limit": sandbox.memory_bytes + SANDBOX_OVERHEAD_BYTES},
                "cpu": {
                    "quota": max(1000, int(sandbox.cpus * CPU_PERIOD_US)),
                    "period": CPU_PERIOD_US,
                    "shares": max(2, int(1024 * sandbox.cpu_weight / 100)),
                },
            },
        },
    }  # fmt: skip


def _system_mounts() -> list[dict[str, Any]]:
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
    ]


def bind(source: Path, destination: str, read_only: bool) -> dict[str, Any]:
    """A mount that shows a file or folder of the host, and what is mounted in it."""
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", "ro" if read_only else "rw"],
    }
