"""Tensors: the same as the safetensors library's, bit for bit; into modules; let go and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.engines import MODEL
from tests.weights.conftest import TorchSide

pytestmark = pytest.mark.engine


def test_every_dtype_is_loaded_as_the_library_does(torch_side: TorchSide, tmp_path: Path) -> None:
    found = torch_side.ask("every_dtype", folder=str(tmp_path))
    assert found["tensors"] >= 18 * 6
    assert found["same"] == [True] * 4
    assert found["in order"]


def test_a_real_model_is_loaded_as_the_library_does(torch_side: TorchSide) -> None:
    assert torch_side.ask("model_is_the_same", path=str(MODEL))


def test_each_tensor_has_memory_of_its_own(torch_side: TorchSide, tmp_path: Path) -> None:
    assert torch_side.ask("own_memory", folder=str(tmp_path)) == {"storages": 2, "bytes": [4000, 4000]}


def test_what_cannot_be_filled_is_told_and_nothing_is_written(torch_side: TorchSide, tmp_path: Path) -> None:
    raised, is_untouched = torch_side.ask("refuses", folder=str(tmp_path))
    words = [
        "sees no CUDA device", "cannot be loaded onto meta", "is no device",
        "lack 1 of the tensors to fill: c", "'a' is F32 [10] in the files", "'a' is F32 [10] in the files",
        "meta device", "not contiguous", "cannot be loaded into a int",
    ]  # fmt: skip
    assert [error[0] for error in raised] == ["invalid_input"] * len(words)
    for (_, message, has_remedy), expected in zip(raised, words, strict=True):
        assert expected in message
        assert has_remedy
    assert is_untouched


def test_a_module_is_filled_in_place_with_tied_weights_and_buffers(
    torch_side: TorchSide, tmp_path: Path
) -> None:
    found = torch_side.ask("into_a_module", folder=str(tmp_path))
    size_bytes = 4 * (50 * 16 + 16 * 16 + 16 + 16)
    assert found == {
        "filled": [4, size_bytes, []], "same objects": True, "still tied": True, "same": True, "trains": True,
    }  # fmt: skip


def test_names_can_be_translated_and_left_out(torch_side: TorchSide, tmp_path: Path) -> None:
    found = torch_side.ask("renamed", folder=str(tmp_path))
    assert found == {"a": [7.0] * 3, "b": [0.0], "unused": ["rope.inv"]}


def test_tensors_come_one_by_one_in_bounded_memory(torch_side: TorchSide, tmp_path: Path) -> None:
    assert torch_side.ask("bounded", folder=str(tmp_path)) == {"right": 49, "all": 49}


def test_weights_that_were_let_go_come_back_under_the_same_parameters(
    torch_side: TorchSide, tmp_path: Path
) -> None:
    assert torch_side.ask("released_and_refilled", folder=str(tmp_path)) == {
        "held": 0, "fails meanwhile": True, "same": True, "same objects": True, "tied": True, "again": True,
    }  # fmt: skip


def test_other_weights_than_those_that_were_let_go_are_refused(torch_side: TorchSide, tmp_path: Path) -> None:
    replaced, reshaped, cut, gone, changed = torch_side.ask(
        "refill_refuses_other_weights", folder=str(tmp_path)
    )
    for said in (replaced, reshaped, changed):
        assert said.startswith("invalid_input")
        assert "is not what the captured replica had" in said
    assert "cut off" in cut
    assert gone.startswith("not_found")


def test_memory_that_is_not_a_tensors_own_is_never_let_go(torch_side: TorchSide, tmp_path: Path) -> None:
    said = torch_side.ask("release_refuses_memory_of_others", folder=str(tmp_path))
    assert len(said) == 2
    for message in said:
        assert "cannot be left out of snapshots" in message


def test_a_model_that_was_dropped_is_not_kept_alive(torch_side: TorchSide, tmp_path: Path) -> None:
    assert torch_side.ask("dropped_models_are_forgotten", folder=str(tmp_path))


def test_one_changed_byte_changes_the_sum(torch_side: TorchSide, tmp_path: Path) -> None:
    assert all(torch_side.ask("pytorch_checksums", folder=str(tmp_path)))
