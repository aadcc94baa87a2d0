"""Where state lies on a machine. The only module that spells file names shared between rooms."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_STATE_DIR = Path("/var/lib/glowplug")
TOOLS_DIR = Path("/usr/local/lib/glowplug/bin")
DATABASE_URL_VARIABLE = "GLOWPLUG_DATABASE_URL"
"""The control plane's database, where it is not in the state directory. May hold a password."""


@dataclass(frozen=True)
class IdentityDir:
    """Certificates and keys of a cluster: the authority and control's where control runs, a node's on it."""

    root: Path

    @property
    def authority(self) -> Path:
        """The certificate authority: its key and its certificate, mode 0600."""
        return self.root / "authority.pem"

    @property
    def authority_certificate(self) -> Path:
        """The authority's certificate alone: what everybody checks the others' against."""
        return self.root / "ca.crt"

    @property
    def control_key(self) -> Path:
        """The control plane's private key, mode 0600."""
        return self.root / "control.key"

    @property
    def control_certificate(self) -> Path:
        """The control plane's certificate."""
        return self.root / "control.crt"

    @property
    def node_key(self) -> Path:
        """This node's private key, mode 0600."""
        return self.root / "node.key"

    @property
    def node_certificate(self) -> Path:
        """This node's certificate."""
        return self.root / "node.crt"

    @property
    def router_certificate(self) -> Path:
        """What the router on this node shows to gateways; for the node's key."""
        return self.root / "router.crt"

    @property
    def engine(self) -> IdentityDir:
        """The same of the engine's own traffic, of another authority, where we started what it stands on."""
        return IdentityDir(self.root / "engine")

    @property
    def engine_base(self) -> Path:
        """In :attr:`engine`: where the engine's cluster is, and the token for it, mode 0600."""
        return self.root / "base.json"

    @property
    def membership(self) -> Path:
        """Which cluster this node is of, under what name, and where its gateway listens."""
        return self.root / "membership.json"


@dataclass(frozen=True)
class StateDir:
    """All paths below one state directory. Nothing is created until :meth:`create` is called."""

    root: Path

    @classmethod
    def from_environment(cls) -> StateDir:
        """``GLOWPLUG_STATE`` or the default."""
        return cls(Path(os.environ.get("GLOWPLUG_STATE", str(DEFAULT_STATE_DIR))).absolute())

    def create(self) -> None:
        """Make the directories, readable by their owner only."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for directory in (
            self.images, self.snapshots, self.snapshot_staging, self.replica_logs, self.replicas, self.exits,
            self.runsc_root, self.runc_root,
        ):  # fmt: skip
            directory.mkdir(parents=True, exist_ok=True)

    @property
    def database(self) -> Path:
        """The control plane's SQLite file."""
        return self.root / "control.db"

    @property
    def token(self) -> Path:
        """The API token, mode 0600."""
        return self.root / "token"

    @property
    def identity(self) -> IdentityDir:
        """Certificates and keys of the cluster; made when a cluster is."""
        return IdentityDir(self.root / "identity")

    @property
    def engine_settings(self) -> Path:
        """Which engine machines come from, where that is not this one alone."""
        return self.root / "engine.json"

    @property
    def ray_token(self) -> Path:
        """The token of a Ray cluster that was started from here, mode 0600."""
        return self.root / "ray-token"

    @property
    def released_machines(self) -> Path:
        """Machines of the engine that are not to have an agent again."""
        return self.root / "released-machines.json"

    @property
    def control_id(self) -> Path:
        """By which the control plane of this state directory knows itself in a database of several."""
        return self.root / "control-id"

    @property
    def control_lock(self) -> Path:
        """Held by the one control plane of this state directory."""
        return self.run / "control.lock"

    @property
    def leader_term(self) -> Path:
        """The newest term of a control plane from which the node agent has heard."""
        return self.root / "leader-term.json"

    @property
    def images(self) -> Path:
        """One folder per image."""
        return self.root / "images"

    @property
    def indexes(self) -> Path:
        """One folder per image index, named by its digest."""
        return self.root / "indexes"

    @property
    def chunks(self) -> Path:
        """The SSD tier: content by hash, of images and snapshots."""
        return self.root / "chunks"

    @property
    def lazy(self) -> Path:
        """The blob daemon: its socket, its FUSE mount, the EROFS mounts."""
        return self.run / "lazy"

    @property
    def snapshots(self) -> Path:
        """One folder per finished snapshot."""
        return self.root / "snapshots"

    @property
    def snapshot_staging(self) -> Path:
        """Snapshots being written: on the same filesystem as the finished ones, so a rename publishes."""
        return self.snapshots / ".staging"

    @property
    def unsealed(self) -> Path:
        """Memory that looks like folders: what is sealed on the disk, while it is captured or restored."""
        return self.run / "unsealed"

    @property
    def superseded(self) -> Path:
        """Content that the region is to forget, because it was sealed anew."""
        return self.root / "superseded.json"

    @property
    def start_times(self) -> Path:
        """How long starts take here, cold and restored."""
        return self.root / "start-times.json"

    @property
    def probation(self) -> Path:
        """Whether restores fail on this node, whatever is restored."""
        return self.root / "restores.json"

    @property
    def pools(self) -> Path:
        """The planner's: ledger, supply log, scarcity prices, metrics."""
        return self.root / "pools"

    @property
    def logs(self) -> Path:
        """Logs of our own processes."""
        return self.root / "logs"

    @property
    def replica_logs(self) -> Path:
        """One log per replica."""
        return self.logs / "replicas"

    @property
    def run(self) -> Path:
        """What is true of this boot only."""
        return self.root / "run"

    @property
    def agent_socket(self) -> Path:
        """The node agent's HTTP socket."""
        return self.run / "agent.sock"

    @property
    def router_socket(self) -> Path:
        """Where the node's router is told by control where requests may go."""
        return self.run / "router.sock"

    @property
    def gateway_metrics(self) -> Path:
        """What the node's gateway counts, as Prometheus text."""
        return self.run / "gateway.prom"

    @property
    def engine_status(self) -> Path:
        """What the engine saw when it looked last."""
        return self.run / "engine.json"

    @property
    def engine_demand(self) -> Path:
        """What whoever plans wants of the engine beside the control plane."""
        return self.run / "engine-demand.json"

    @property
    def engine_answer(self) -> Path:
        """How that went."""
        return self.run / "engine-answer.json"

    @property
    def engine_metrics(self) -> Path:
        """What the engine beside the control plane counts, as Prometheus text."""
        return self.run / "engine.prom"

    @property
    def page_merging(self) -> Path:
        """The host's own settings of the kernel's page merging, while an agent has changed them."""
        return self.run / "page-merging.json"

    @property
    def large_pages(self) -> Path:
        """The host's own sizes of pages, while an agent has changed them to restore."""
        return self.run / "large-pages.json"

    @property
    def gpu_guard(self) -> Path:
        """The journal of the node agent's GPU guard."""
        return self.run / "gpu-guard"

    @property
    def gpu_check(self) -> Path:
        """The journal of the guard that ``glowplug gpu check`` starts."""
        return self.run / "gpu-check"

    @property
    def supervisor(self) -> Path:
        """Pid and address of the running supervisor."""
        return self.run / "supervisor.json"

    @property
    def exits(self) -> Path:
        """Exit codes of orphaned sandboxes, noted by the supervisor: one file per pid."""
        return self.run / "exits"

    @property
    def replicas(self) -> Path:
        """One folder per replica."""
        return self.run / "replicas"

    @property
    def runsc_root(self) -> Path:
        """gVisor's own state."""
        return self.run / "runsc"

    @property
    def runc_root(self) -> Path:
        """runc's own state, and what its containers can write to."""
        return self.run / "runc"
