"""What is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from glowplug.nccl import support
from glowplug.types.errors import SystemUnfit

NO_NVLS = {"NCCL_NVLS_ENABLE": "0"}


class Suspending:
    def suspend(self) -> None: ...

    def resume(self) -> None: ...


@pytest.mark.parametrize(
    ("backends", "environment", "named"),
    [
        (["nccl"], {}, "NVLS"),
        (["nccl"], {"NCCL_NVLS_ENABLE": "2"}, "NVLS"),
        (["nccl"], {**NO_NVLS, "CUDA_VISIBLE_DEVICES": "MIG-0f1e"}, "MIG"),
        (["nccl"], {**NO_NVLS, "NVIDIA_VISIBLE_DEVICES": "MIG-0f1e,MIG-2"}, "MIG"),
        (["nccl"], {**NO_NVLS, "CUDA_MPS_PIPE_DIRECTORY": "/run/mps"}, "MPS"),
        (["gloo", "mpi"], {}, "'mpi'"),
        (["ucc"], {}, "'ucc'"),
        (["gloo"], {"TORCH_DISTRIBUTED_DEBUG": "detail"}, "TORCH_DISTRIBUTED_DEBUG"),
    ],
)
def test_what_cannot_be_captured_is_named(
    backends: list[str], environment: dict[str, str], named: str
) -> None:
    found = support.unsupported_here(backends, environment)
    assert len(found) == 1
    with pytest.raises(SystemUnfit, match=named) as caught:
        support.refuse(found, 3)
    assert caught.value.details["unsupported"] == found
    assert caught.value.remedy


def test_everything_is_named_at_once() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "MIG-1", "CUDA_MPS_PIPE_DIRECTORY": "/run/mps"}
    assert len(support.unsupported_here(["nccl", "xccl"], environment)) == 4


def test_a_running_mps_is_seen_by_its_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "control").touch()
    monkeypatch.setattr(support, "_MPS_CONTROL", tmp_path / "control")
    assert support.unsupported_here(["nccl"], NO_NVLS) == ["MPS"]


def test_ranks_on_the_cpu_are_asked_for_nothing_of_a_gpu() -> None:
    environment = {"CUDA_MPS_PIPE_DIRECTORY": "/run/mps", "CUDA_VISIBLE_DEVICES": "MIG-1"}
    assert support.unsupported_here(["gloo"], environment) == []
    support.refuse([], 0)


@pytest.mark.parametrize(
    ("backend", "version", "expected"),
    [
        (Suspending(), (2, 29, 7), True),
        (Suspending(), (2, 30, 1), True),
        (Suspending(), (2, 29, 6), False),
        (Suspending(), (), False),
        (object(), (2, 30, 1), False),
    ],
)
def test_nccl_suspends_where_both_pytorch_and_the_library_can(
    backend: object, version: tuple[int, ...], expected: bool
) -> None:
    assert support.suspends(backend, version) is expected


def test_ranks_of_one_machine_are_in_one_place() -> None:
    assert support.place() == support.place()
    assert len(support.place().split()) == 3
