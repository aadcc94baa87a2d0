"""Clouds through SkyPilot's API server: a machine is a cluster of one node, and its name is the order's id.

Spoken to by its REST interface, so that nothing of SkyPilot needs to be installed here. Every call is
answered with a request id at once, and done in the background; ``/api/get`` waits for it. Names carry the
fleet: what has the form of our orders is ours, whichever ledger made it.
"""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import yaml

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.port import MachineState, Order, Sighting
from glowplug.pool.providers.shell import Shell, SshShell
from glowplug.pool.run_settings import SkyPilotEntry
from glowplug.types.errors import DeadlineExceeded, SystemUnfit, Unauthorized, Unavailable

URL_VARIABLE = "SKYPILOT_API_SERVER_ENDPOINT"
TOKEN_VARIABLE = "SKYPILOT_SERVICE_ACCOUNT_TOKEN"  # noqa: S105 - the name of a variable
DEFAULT_URL = "http://127.0.0.1:46580"
_REQUEST_ID_HEADERS = ("X-Skypilot-Request-ID", "X-Request-ID")
_FLEET_LABEL, _ORDER_LABEL = "glowplug-fleet", "glowplug-order"
_GONE_ERROR = "ClusterDoesNotExist"
_STATES = {
    "INIT": MachineState.STARTING, "UP": MachineState.UP,
    # A stopped cluster still costs its disk, and never does any work for us.
    "STOPPED": MachineState.ENDING,
}  # fmt: skip
_LAUNCH_STATES = {
    "PENDING": MachineState.PENDING, "WAITING": MachineState.PENDING, "RUNNING": MachineState.PENDING,
    "SUCCEEDED": MachineState.GONE, "FAILED": MachineState.REFUSED, "CANCELLED": MachineState.GONE,
}  # fmt: skip
_OVER = (MachineState.REFUSED, MachineState.GONE)
_KEPT_OVER = 100
_Launch = tuple[str, PoolId]
"""The id of the server's request, and what it is for."""
_ZONES = (
    re.compile(r"(?P<region>[a-z]+-[a-z]+\d+)-[a-z]"),  # Google Cloud
    re.compile(r"(?P<region>[a-z]{2}(-[a-z]+)+-\d+)[a-z]"),  # AWS
)


class SkyPilotProvider:
    """One cloud of one API server. Safe to use from several threads.

    Where the server is, and who asks, say ``SKYPILOT_API_SERVER_ENDPOINT`` and
    ``SKYPILOT_SERVICE_ACCOUNT_TOKEN``, as for SkyPilot's own client.
    """

    def __init__(
        self,
        name: str,
        entry: SkyPilotEntry,
        file: Path,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.name = name
        self._entry = entry
        self._file = file
        self._lock = threading.Lock()
        self._launches = self._load()
        self._reasons: dict[str, str] = {}
        token = os.environ.get(TOKEN_VARIABLE, "")
        self._client = httpx.Client(
            base_url=os.environ.get(URL_VARIABLE, DEFAULT_URL),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=transport,
        )

    # -- the port --------------------------------------------------------------------------------------------

    def request(self, order: Order, timeout_s: float) -> None:
        """Launch a cluster of one node. What the cloud says to it is in later listings."""
        with self._lock:
            if order.id in self._launches:
                return
        body = {"task": self._task(order), "cluster_name": order.id, "retry_until_up": False}
        launch = self._post("/launch", body, timeout_s)
        with self._lock:
            self._launches[order.id] = launch, order.pool
            self._save()

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        """The clusters that have the form of our names, and launches that made none."""
        ours = re.compile(rf"{re.escape(fleet)}-[0-9a-f]{{8}}-\d+")
        with self._lock:
            launches = {order: known for order, known in self._launches.items() if ours.fullmatch(order)}
        # Launches first: one that ends in between has its cluster in the list, and not the other way round.
        states = self._launch_states(launches, timeout_s)
        asked = {
            "cluster_names": None, "refresh": "AUTO", "all_users": True, "include_handle": False,
            "include_credentials": False,
        }  # fmt: skip
        records = self._result(self._post("/status", asked, timeout_s), timeout_s)
        if not isinstance(records, list):
            raise self._nonsense("/status", records)
        found = [
            self._sighting(record, launches)
            for record in records
            if isinstance(record, dict) and ours.fullmatch(str(record.get("name", "")))
            if record["name"] in launches or self._is_of_this_cloud(record)
        ]
        clusters = {sighting.machine for sighting in found}
        without = [
            Sighting(order, order, launches[order][1], state, reason=reason)
            for order, (state, reason) in states.items()
            if order not in clusters
        ]
        self._forget([sighting.order for sighting in without if sighting.state in _OVER])
        return found + without

    def terminate(self, machine: str, timeout_s: float) -> None:
        """Take the cluster down, and wait until the server says that it is."""
        request = self._post("/down", {"cluster_name": machine, "purge": False}, timeout_s)
        try:
            self._result(request, timeout_s)
        except _RequestFailed as failure:
            if failure.kind != _GONE_ERROR:
                raise
        with self._lock:
            if self._launches.pop(machine, None) is not None:
                self._save()

    def cancel(self, order: str, timeout_s: float) -> None:
        """Stop launching, and take down what was launched."""
        with self._lock:
            known = self._launches.get(order)
        if known is not None:
            self._result(self._post("/api/cancel", {"request_ids": [known[0]]}, timeout_s), timeout_s)
        self.terminate(order, timeout_s)

    def shell_of(self, machine: str, _address: str) -> Shell:
        """SkyPilot's client keeps an alias for each cluster in the user's SSH configuration."""
        return SshShell(machine)

    # -- what is said to the server --------------------------------------------------------------------------

    def _task(self, order: Order) -> str:
        region = order.pool.region
        zone = next((found for form in _ZONES if (found := form.fullmatch(region))), None)
        where = f"{zone['region']}/{region}" if zone else region
        resources: dict[str, Any] = {
            "infra": f"{self._entry.cloud}/{where}",
            "instance_type": order.pool.machine,
            "accelerators": {order.gpu: order.gpus},
            "use_spot": order.pool.purchase is Purchase.SPOT,
            "labels": {_FLEET_LABEL: order.fleet, _ORDER_LABEL: order.id},
        }
        if self._entry.disk_gb is not None:
            resources["disk_size"] = self._entry.disk_gb
        if self._entry.image is not None:
            resources["image_id"] = self._entry.image
        task: dict[str, Any] = {"name": order.id, "num_nodes": 1, "resources": resources}
        if self._entry.setup:
            task["setup"] = self._entry.setup
        return str(yaml.safe_dump(task))

    def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> str:
        """Ask for something; the id of the request."""
        # The server keeps clusters by user: without one it would be nobody's.
        env = {"SKYPILOT_USER_ID": "91077106", "SKYPILOT_USER": "glowplug"}
        response = self._send("POST", path, timeout_s, json={"env_vars": env, **body})
        for header in _REQUEST_ID_HEADERS:
            if header in response.headers:
                return str(response.headers[header])
        raise self._nonsense(path, response.text)

    def _result(self, request: str, timeout_s: float) -> Any:
        """Wait for a request and return its value. Raises _RequestFailed with the server's words."""
        response = self._send("GET", "/api/get", timeout_s, params={"request_id": request})
        answer = _object(response)
        if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            answer = answer.get("detail", {})
        if not isinstance(answer, dict) or "status" not in answer:
            raise self._nonsense("/api/get", response.text)
        if answer["status"] != "SUCCEEDED":
            raise _failure(answer)
        return _decoded(answer.get("return_value"))

    def _send(self, method: str, path: str, timeout_s: float, **asked: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, timeout=timeout_s, **asked)
        except httpx.TimeoutException as problem:
            raise DeadlineExceeded(
                f"SkyPilot's API server did not answer {path} within {timeout_s:g} s.",
                remedy="It is asked again. `sky api info` says whether it is up.",
                stage=path,
            ) from problem
        except httpx.HTTPError as problem:
            raise Unavailable(
                f"SkyPilot's API server at {self._client.base_url} cannot be reached: {problem}.",
                remedy=f"Start it with `sky api start`, or correct {URL_VARIABLE}.",
            ) from problem
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Unauthorized("SkyPilot's API server refuses the token.", remedy=f"Set {TOKEN_VARIABLE}.")
        is_answer = path == "/api/get" and response.status_code == httpx.codes.INTERNAL_SERVER_ERROR
        if response.is_error and not is_answer:
            raise Unavailable(
                f"SkyPilot's API server answers {path} with {response.status_code}: {response.text[:300]}",
                remedy="It was tried with 0.14: `sky api info` says which one this is.",
            )
        return response

    # -- what the server says --------------------------------------------------------------------------------

    def _is_of_this_cloud(self, record: dict[str, Any]) -> bool:
        """One server lists the clusters of all clouds; those of others are for their providers to list."""
        return str(record.get("cloud") or "").lower() == self._entry.cloud.lower()

    def _sighting(self, record: dict[str, Any], launches: dict[str, _Launch]) -> Sighting:
        name = str(record["name"])
        known = launches.get(name)
        pool = (
            known[1]
            if known
            else PoolId(self.name, str(record.get("region") or "?"), "?", Purchase.ON_DEMAND)
        )
        state = _STATES.get(str(record.get("status")), MachineState.STARTING)
        return Sighting(name, name, pool, state, address=name if state is MachineState.UP else "")

    def _launch_states(
        self, launches: dict[str, _Launch], timeout_s: float
    ) -> dict[str, tuple[MachineState, str]]:
        """What a launch is by itself, and why. One that succeeded and has no cluster is gone."""
        if not launches:
            return {}
        asked = {"request_ids": [launch for launch, _pool in launches.values()], "all_status": True}
        answers = _list(self._send("GET", "/api/status", timeout_s, params=asked))
        by_id = {str(answer.get("request_id")): answer for answer in answers}
        found = {}
        for order, (launch, _pool) in launches.items():
            state = _LAUNCH_STATES.get(str(by_id.get(launch, {}).get("status")))
            if state is not None:
                reason = self._why(launch, timeout_s) if state is MachineState.REFUSED else ""
                found[order] = state, reason
        return found

    def _why(self, launch: str, timeout_s: float) -> str:
        """The list of requests does not say why they failed; each one does."""
        if launch not in self._reasons:
            try:
                self._result(launch, timeout_s)
                self._reasons[launch] = "the server does not say why"
            except _RequestFailed as failure:
                self._reasons[launch] = failure.message
        return self._reasons[launch]

    def _nonsense(self, path: str, answer: Any) -> Unavailable:
        return Unavailable(
            f"SkyPilot's API server answers {path} with what is no answer: {str(answer)[:300]}",
            remedy="It was tried with 0.14: `sky api info` says which one this is.",
        )

    # -- launches --------------------------------------------------------------------------------------------

    def _forget(self, over: list[str]) -> None:
        """Of launches that made no cluster, or none that is left, the newest are told again and again."""
        with self._lock:
            for order in over[:-_KEPT_OVER]:
                launch, _pool = self._launches.pop(order, ("", None))
                self._reasons.pop(launch, None)
            if len(over) > _KEPT_OVER:
                self._save()

    def _load(self) -> dict[str, _Launch]:
        if not self._file.exists():
            return {}
        try:
            found = json.loads(self._file.read_bytes())
            return {
                order: (launch, PoolId(cloud, region, machine, Purchase(purchase)))
                for order, (launch, cloud, region, machine, purchase) in found["launches"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise SystemUnfit(
                f"The launches in {self._file} cannot be used: {problem}.",
                remedy="Remove the file: what is launched is found by its name.",
                file=str(self._file),
            ) from problem

    def _save(self) -> None:
        launches = {
            order: (launch, pool.cloud, pool.region, pool.machine, pool.purchase.value)
            for order, (launch, pool) in self._launches.items()
        }
        fresh = self._file.with_name(f".{self._file.name}.new")
        try:
            with fresh.open("w") as file:
                json.dump({"version": 1, "launches": launches}, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
        except OSError as problem:
            raise SystemUnfit(
                f"The launches cannot be written to {self._file}: {problem}.",
                remedy="Check the disk and who may write there.",
                file=str(self._file),
            ) from problem


class _RequestFailed(Unavailable):
    """A request that the server took, and that failed. ``kind``: the name of SkyPilot's exception."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, remedy="SkyPilot's words; `sky api logs` has more.", kind=kind)
        self.kind = kind


def _failure(answer: dict[str, Any]) -> _RequestFailed:
    error = _decoded(answer.get("error"))
    if not isinstance(error, dict):
        return _RequestFailed(
            str(answer.get("status")), str(answer.get("status_msg") or answer.get("status"))
        )
    return _RequestFailed(str(error.get("type")), str(error.get("message"))[:1_000])


def _decoded(value: Any) -> Any:
    """Values lie in the answer as JSON in JSON. What is pickled in them is left alone."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _list(response: httpx.Response) -> list[dict[str, Any]]:
    try:
        found = response.json()
    except ValueError:
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
