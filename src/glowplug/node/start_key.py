"""Which snapshot a server may be restored from, here and now: the key, with what only a node knows of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from glowplug.node.container import runner_digest
from glowplug.node.runtimes import Runtimes
from glowplug.snapshot.key import MachineIdentity, SnapshotKey
from glowplug.types.replica import StartReplica


def start_key(request: StartReplica, runtimes: Runtimes, machine: MachineIdentity) -> SnapshotKey:
    """The snapshot key of this server on this node. Raises SystemUnfit if it lacks the server's runtime."""
    values = "\0".join(f"{name}={value}" for name, value in sorted(request.secrets.items()))
    scope = f"{request.app} {hashlib.blake2b(values.encode(), digest_size=8).hexdigest()}"
    runtime = runtimes.named(runtimes.choose(request.server)).identity()
    # Our runner's code is in the memory too; what a plain command may import of ours is only mounted.
    library = f"runner={runner_digest()}" if request.server.code is not None else "library=mounted"
    runtime = replace(runtime, flags=(*runtime.flags, library))
    return SnapshotKey.compute(request.server, request.image_id, runtime, machine, secrets_scope=scope)
