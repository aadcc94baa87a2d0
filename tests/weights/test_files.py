"""Which files a model is made of, and which of them are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.weights.files import tensor, write, write_shards

from glowplug.types.errors import InvalidInput, NotFound, Unavailable
from glowplug.weights.files import find_weights, unreadable

SHARDS = [{f"layer.{n}": tensor("F32", [2], seed=n)} for n in range(3)]


def names(source: Any) -> list[str]:
    return [file.path.name for file in find_weights(source).files]


def test_one_file_is_a_model(tmp_path: Path) -> None:
    file = write(tmp_path / "any.safetensors", SHARDS[0])
    assert names(file) == names(str(file)) == ["any.safetensors"]


def test_a_folder_is_read_by_its_index(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    write(tmp_path / "consolidated.safetensors", SHARDS[0])
    assert names(tmp_path) == [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]


def test_a_folder_without_an_index_is_read_whole_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write(tmp_path / f"part-{number}.safetensors", {f"t{number}": tensor("U8", [1])})
    assert names(tmp_path) == ["part-1.safetensors", "part-2.safetensors", "part-10.safetensors"]


def test_several_files_are_taken_as_they_are_given(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    given = [tmp_path / f"model-{n:05}-of-00003.safetensors" for n in (3, 1)]
    assert names(given) == [file.name for file in given]


def test_a_hubs_model_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    revision = tmp_path / "models--org--name" / "snapshots" / "abc"
    revision.mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc\n")
    write(revision / "model.safetensors", SHARDS[0])
    assert names("org/name") == ["model.safetensors"]
    with pytest.raises(NotFound):
        find_weights("org/other")


@pytest.mark.parametrize("source", ["missing", "/nowhere/at/all", [], ["/nowhere/x.safetensors"]])
def test_what_is_not_there_is_not_found(source: Any) -> None:
    with pytest.raises(NotFound) as refused:
        find_weights(source)
    assert refused.value.remedy


def test_a_folder_without_weights_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no \*\.safetensors"):
        find_weights(tmp_path)


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [SHARDS[0], SHARDS[0]], with_index=False)
    with pytest.raises(InvalidInput, match="is in model-00001-of-00002"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        b"", b"{", b"[]", b"{}", b'{"weight_map": 1}', b'{"weight_map": {"a": 1}}', b'{"weight_map": {}}',
        b'{"weight_map": {"a": "../secret.safetensors"}}', b'{"weight_map": {"a": "/etc/passwd"}}',
        b'{"weight_map": {"a": ".."}}', b'{"weight_map": {"a": ""}}', b'{"weight_map": {"a": "a\\u0000b"}}',
        b'{"a":' * 100_000,
    ],
    ids=range(13),
)  # fmt: skip
def test_a_hostile_index_is_refused(tmp_path: Path, index: bytes) -> None:
    write(tmp_path / "secret.safetensors", SHARDS[0])
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(InvalidInput, match="no usable index"):
        find_weights(folder)


def test_an_index_that_names_a_missing_file_is_told(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(NotFound, match="model-00002"):
        find_weights(tmp_path)


def test_chosen_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    write_shards(tmp_path, [{"b": tensor("U8", [1]), "a": tensor("U8", [2])}, {"c": tensor("U8", [3])}])
    weights = find_weights(tmp_path)
    assert [(file, entry.name) for file, entry in weights.chosen()] == [(0, "b"), (0, "a"), (1, "c")]
    assert [entry.name for _, entry in weights.chosen(lambda name: name != "a")] == ["b", "c"]


def test_an_index_larger_than_any_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors.index.json").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(InvalidInput, match="larger than"):
        find_weights(tmp_path)


def test_a_failing_disk_is_unavailable_and_names_the_place() -> None:
    error = unreadable(Path("/models/a.safetensors"), OSError(5, "Input/output error"), 17)
    assert isinstance(error, Unavailable)
    assert error.message == "/models/a.safetensors cannot be read at byte 17: Input/output error."
    assert json.dumps(error.to_dict())
