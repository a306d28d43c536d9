"""Which files of a folder are its checkpoint, and shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from uws_store.checkpoint import Checkpoint, open_checkpoint
from uws_store.errors import FormatError, InvalidInputError, UwsError

INDEX = "model.safetensors.index.json"


def put(path: Path, **tensors: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def put_index(folder: Path, weight_map: Mapping[str, object], name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def put_shards(folder: Path, suffix: str = "safetensors", stem: str = "model") -> None:
    put(folder / f"{stem}-00001-of-00002.{suffix}", b=torch.ones(2), a=torch.zeros(3))
    put(folder / f"{stem}-00002-of-00002.{suffix}", c=torch.arange(4))


def refusal(path: Path) -> UwsError:
    with pytest.raises(UwsError) as error:
        open_checkpoint(path)
    return error.value


def values(checkpoint: Checkpoint) -> dict[str, list[float]]:
    return {name: checkpoint.read(name).tolist() for name in checkpoint.tensors}


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "adapter_model.safetensors",
        "weights.safetensors",
        "pytorch_model.bin",
        "model.pt",
        "a.ckpt",
        "model-00001-of-00001.safetensors",
    ],
)
def test_the_one_weight_file_of_a_folder_is_its_checkpoint(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, w=torch.ones(2))
    for other in (
        "config.json",
        "README.md",
        "adapter_config.json",
        "tokenizer.model",
        ".hidden.safetensors",
    ):
        (tmp_path / other).write_text('{"peft_type": "LORA"}' if other == "adapter_config.json" else "{}")
    with open_checkpoint(tmp_path) as checkpoint:
        assert values(checkpoint) == {"w": [1, 1]}
        assert checkpoint.notices == ()
        assert checkpoint.sha256() == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("chosen", "other"),
    [
        ("model.safetensors", "ema.safetensors"),
        ("model.safetensors", "pytorch_model.bin"),
        ("odd.safetensors", "pytorch_model.bin"),
        ("adapter_model.safetensors", "more.safetensors"),
        ("pytorch_model.bin", "other.pt"),
    ],
)
def test_the_preferred_file_is_taken_and_the_other_said(tmp_path: Path, chosen: str, other: str) -> None:
    put(tmp_path / chosen, w=torch.ones(1))
    put(tmp_path / other, w=torch.zeros(1))
    with open_checkpoint(tmp_path) as checkpoint:
        assert values(checkpoint) == {"w": [1]}
        assert other in checkpoint.notices[0]


def test_the_state_of_training_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "weights.pt", w=torch.ones(1))
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "rng_state.pth"):
        put(tmp_path / name, w=torch.zeros(1))
    with open_checkpoint(tmp_path) as checkpoint:
        assert values(checkpoint) == {"w": [1]}
        assert checkpoint.notices == ()


@pytest.mark.parametrize("names", [("a.safetensors", "b.safetensors"), ("a.pt", "b.pth")])
def test_a_folder_of_several_checkpoints_is_ambiguous(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        put(tmp_path / name, w=torch.ones(1))
    error = refusal(tmp_path)
    assert error.kind == "invalid-input/ambiguous-checkpoint"
    assert all(name in str(error) for name in names)


@pytest.mark.parametrize(
    ("suffix", "index"), [("safetensors", INDEX), ("bin", "pytorch_model.bin.index.json")]
)
def test_shards_with_an_index_are_one_checkpoint(tmp_path: Path, suffix: str, index: str) -> None:
    stem = index.split(".", maxsplit=1)[0]
    put_shards(tmp_path, suffix, stem)
    first, second = f"{stem}-00001-of-00002.{suffix}", f"{stem}-00002-of-00002.{suffix}"
    put_index(tmp_path, {"a": first, "b": first, "c": second}, index)
    for path in (tmp_path, tmp_path / index):
        with open_checkpoint(path) as checkpoint:
            assert values(checkpoint) == {"a": [0, 0, 0], "b": [1, 1], "c": [0, 1, 2, 3]}
            assert checkpoint.read_rows("c", 1, 3).tolist() == [1, 2]
            content = (tmp_path / first).read_bytes() + (tmp_path / second).read_bytes()
            assert checkpoint.sha256() == hashlib.sha256(content).hexdigest()
            assert checkpoint.file_size_bytes == len(content)
            assert checkpoint.notices == ()


def test_shards_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    put_shards(tmp_path)
    put_shards(tmp_path / "other", stem="other")
    for path in (
        tmp_path,
        tmp_path / "model-00001-of-00002.safetensors",
        tmp_path / "model-00002-of-00002.safetensors",
    ):
        with open_checkpoint(path) as checkpoint:
            assert set(values(checkpoint)) == {"a", "b", "c"}


def test_a_prefix_is_taken_off_only_when_all_shards_have_it(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(1)}, tmp_path / "m-00001-of-00002.safetensors")
    save_file({"module.b": torch.ones(1)}, tmp_path / "m-00002-of-00002.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        assert checkpoint.read("b").tolist() == [1]
    save_file({"b": torch.ones(1)}, tmp_path / "m-00002-of-00002.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["module.a", "b"]


@pytest.mark.parametrize("with_index", [False, True])
def test_a_missing_shard_is_named(tmp_path: Path, *, with_index: bool) -> None:
    put_shards(tmp_path)
    if with_index:
        put_index(
            tmp_path, {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
        )
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    error = refusal(tmp_path)
    assert error.kind == "format/checkpoint"
    assert "2" in str(error)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    put_shards(tmp_path)
    put(tmp_path / "model-00002-of-00002.safetensors", a=torch.zeros(3), b=torch.zeros(2))
    error = refusal(tmp_path)
    assert error.kind == "format/checkpoint"
    assert [problem.loc for problem in error.problems] == ["a", "b"]


def test_shards_that_are_not_those_of_the_index_are_refused_with_every_problem(tmp_path: Path) -> None:
    put_shards(tmp_path)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    put_index(tmp_path, {"a": second, "b": first, "c": first, "gone": second})
    error = refusal(tmp_path)
    assert error.kind == "format/checkpoint"
    assert [problem.loc for problem in error.problems] == ["a", "c", "gone"]


def test_a_tensor_the_index_does_not_list_is_kept_and_said(tmp_path: Path) -> None:
    put_shards(tmp_path)
    put_index(tmp_path, {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert "b" in checkpoint.tensors
        assert "'b'" in checkpoint.notices[0]


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "..",
        "",
        "config.json",
        ".model.safetensors",
        7,
        None,
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, shard: object) -> None:
    put(tmp_path / "model.safetensors", a=torch.ones(1))
    put(tmp_path / "inner" / "sub" / "model.safetensors", a=torch.ones(1))
    put_index(tmp_path / "inner", {"a": shard})
    error = refusal(tmp_path / "inner" / INDEX)
    assert error.kind == "format/checkpoint"
    assert [problem.loc for problem in error.problems] == ["/weight_map/a"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": []}', b"\xff\xfe", b"[" * 100_000],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    put_shards(tmp_path)
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(FormatError) as error:
        open_checkpoint(tmp_path)
    assert error.value.kind == "format/checkpoint"


def test_a_shard_that_is_damaged_is_named_and_the_others_are_closed(tmp_path: Path) -> None:
    put_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"damaged")
    error = refusal(tmp_path)
    assert error.kind == "format/checkpoint"
    assert "model-00002-of-00002" in str(error)


def test_texts_in_the_header_that_shards_agree_on_are_kept(tmp_path: Path) -> None:
    save_file(
        {"a": torch.ones(1)}, tmp_path / "m-00001-of-00002.safetensors", {"licence": "MIT", "part": "1"}
    )
    save_file(
        {"b": torch.ones(1)}, tmp_path / "m-00002-of-00002.safetensors", {"licence": "MIT", "part": "2"}
    )
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata == {"licence": "MIT"}


def test_links_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "blobs" / "data.safetensors", w=torch.ones(1))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "data.safetensors")
    with open_checkpoint(tmp_path / "snapshot") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]


def test_an_empty_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(tmp_path)
    assert error.value.kind == "invalid-input/not-a-checkpoint"
