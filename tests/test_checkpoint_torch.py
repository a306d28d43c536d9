"""Files of ``torch.save``: what is read, in which order, and what is left out."""

from __future__ import annotations

import collections
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_file_support import OPTIMIZER, WEIGHTS, bits, names_in, saved

from uws_store.checkpoint import open_checkpoint
from uws_store.dtypes import DTYPES


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PT"])
def test_a_state_dict_is_read_in_its_order(tmp_path: Path, suffix: str, *, legacy: bool) -> None:
    state = collections.OrderedDict(
        z=torch.randn(3, 2), a=torch.arange(4), m=torch.nn.Parameter(torch.ones(2))
    )
    path = saved(tmp_path / f"model{suffix}", state, legacy=legacy)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["z", "a", "m"]
        assert checkpoint.notices == ()
        assert checkpoint.metadata == {}
        assert checkpoint.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        for name, tensor in state.items():
            assert bits(checkpoint.read(name)) == bits(tensor.detach())
            assert not checkpoint.read(name).requires_grad
            assert bits(checkpoint.read_rows(name, 1, 2)) == bits(tensor.detach()[1:2])


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    turned=st.booleans(),
    data=st.data(),
)
def test_every_bit_pattern_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    shape: tuple[int, ...],
    *,
    turned: bool,
    data: st.DataObject,
) -> None:
    dtype = DTYPES[name]
    count = 1
    for size in shape:
        count *= size
    content = data.draw(st.binary(min_size=count * dtype.size_bytes, max_size=count * dtype.size_bytes))
    flat = (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )
    tensor = flat.view(dtype.torch).reshape(shape)
    tensor = tensor.permute(tuple(reversed(range(tensor.dim())))) if turned else tensor
    path = saved(tmp_path_factory.mktemp("zoo") / "a.pt", {"w": tensor})
    with open_checkpoint(path) as checkpoint:
        info = checkpoint.tensors["w"]
        assert (info.dtype, info.shape) == (dtype, tuple(tensor.shape))
        read = checkpoint.read("w")
        assert read.is_contiguous()
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.size_bytes]
        assert bits(read) == bits(tensor.view(width).contiguous())


def test_what_is_read_is_nobody_elses_memory(tmp_path: Path) -> None:
    shared = torch.zeros(3)
    path = saved(tmp_path / "a.pt", {"a": shared, "b": shared})
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("a").add_(1)
        checkpoint.read_rows("a", 0, 2).add_(1)
        assert torch.equal(checkpoint.read("a"), torch.zeros(3))
        assert torch.equal(checkpoint.read("b"), torch.zeros(3))
        assert checkpoint.read_rows("a", 0, 1).untyped_storage().nbytes() == 4


@pytest.mark.parametrize("legacy", [False, True])
def test_names_of_one_storage_seen_alike_are_tied(tmp_path: Path, *, legacy: bool) -> None:
    table = torch.randn(4, 4)
    state = {
        "embed": table,
        "other": torch.zeros(4, 4),
        "head": table,
        "turned": table.t(),
        "part": table[1:],
        "same part": table[1:],
        "none": torch.empty(0),
        "also none": torch.empty(0),
    }
    with open_checkpoint(saved(tmp_path / "a.pt", state, legacy=legacy)) as checkpoint:
        assert checkpoint.tied == (("embed", "head"), ("part", "same part"))
        assert torch.equal(checkpoint.read("turned"), table.t())
        assert torch.equal(checkpoint.read("part"), table[1:])


def test_conjugated_tensors_are_read_as_their_values(tmp_path: Path) -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    with open_checkpoint(saved(tmp_path / "a.pt", {"w": tensor, "c": tensor.conj()})) as checkpoint:
        assert checkpoint.tied == ()
        assert torch.equal(checkpoint.read("c"), torch.tensor([1 - 2j, 3 + 4j]))
        assert not checkpoint.read("c").is_conj()


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": WEIGHTS, "optimizer": OPTIMIZER, "epoch": 3},
        {"model": WEIGHTS, "model_ema": dict(WEIGHTS), "epoch": 3},
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": OPTIMIZER},
        {"module": WEIGHTS, "lr_scheduler": {}},
        {"state_dict": WEIGHTS, "best_acc1": torch.tensor(76.1)},
        {"state_dict": WEIGHTS, "state_dict_ema": dict(WEIGHTS)},
        {"model": {"depth": 4, "width": 64}, "state_dict": WEIGHTS},
        {"model": {"state_dict": WEIGHTS}, "epoch": 1},
        {"net": WEIGHTS, "acc": 93.1},
        {"encoder": WEIGHTS, "optimizer": OPTIMIZER, "ema": dict(WEIGHTS)},
    ],
)
def test_wrappers_are_unwrapped_and_what_is_left_out_is_said(tmp_path: Path, content: object) -> None:
    with open_checkpoint(saved(tmp_path / "a.pt", content)) as checkpoint:
        assert list(checkpoint.tensors) == list(WEIGHTS)
        assert len(checkpoint.notices) == 1
        assert checkpoint.notices[0].startswith("left out: ")


@pytest.mark.parametrize("content", [{"state_dict": WEIGHTS}, {"state_dict": {"module": WEIGHTS}}, WEIGHTS])
def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, content: object) -> None:
    with open_checkpoint(saved(tmp_path / "a.pt", content)) as checkpoint:
        assert list(checkpoint.tensors) == list(WEIGHTS)
        assert checkpoint.notices == ()


def test_a_prefix_that_all_names_have_is_taken_off(tmp_path: Path) -> None:
    all_of_them = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    with open_checkpoint(saved(tmp_path / "a.pt", {"state_dict": all_of_them})) as checkpoint:
        assert list(checkpoint.tensors) == list(WEIGHTS)
        assert checkpoint.tensors["fc.bias"].name == "fc.bias"
        assert torch.equal(checkpoint.read("fc.weight"), WEIGHTS["fc.weight"])
        assert len(checkpoint.notices) == 1


def test_a_prefix_that_some_names_lack_is_kept(tmp_path: Path) -> None:
    assert names_in(saved(tmp_path / "a.pt", {"module.a": torch.zeros(1), "b": torch.zeros(1)})) == [
        "module.a",
        "b",
    ]
    assert names_in(saved(tmp_path / "b.pt", {"module.a": torch.zeros(1), "module.": torch.zeros(1)})) == [
        "module.a",
        "module.",
    ]


def test_tied_names_lose_the_prefix_too(tmp_path: Path) -> None:
    shared = torch.ones(2)
    with open_checkpoint(saved(tmp_path / "a.pt", {"module.a": shared, "module.b": shared})) as checkpoint:
        assert checkpoint.tied == (("a", "b"),)


def test_entries_that_are_not_tensors_are_left_out_and_said(tmp_path: Path) -> None:
    state = {**WEIGHTS, "version": 3, "layer._extra_state": None, "config": {"depth": 4}}
    with open_checkpoint(saved(tmp_path / "a.pt", state)) as checkpoint:
        assert list(checkpoint.tensors) == list(WEIGHTS)
        assert all(word in checkpoint.notices[0] for word in ("version", "layer._extra_state", "config"))


def test_an_average_among_the_weights_is_left_out_and_said(tmp_path: Path) -> None:
    state = {**WEIGHTS, "model_ema.decay": torch.tensor(0.9), "model_ema.fcweight": torch.zeros(2, 2)}
    with open_checkpoint(saved(tmp_path / "a.ckpt", {"state_dict": state})) as checkpoint:
        assert list(checkpoint.tensors) == list(WEIGHTS)
        assert "model_ema.decay" in checkpoint.notices[0]


def test_an_average_that_is_all_there_is_kept(tmp_path: Path) -> None:
    assert names_in(saved(tmp_path / "a.pt", {"ema_model.w": torch.zeros(1)})) == ["ema_model.w"]


def test_an_archive_with_compressed_records_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(1000)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert torch.equal(checkpoint.read("w"), torch.arange(1000))


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pt", WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(before)
    assert names_in(path) == list(WEIGHTS)


def test_a_torch_file_is_mapped_and_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[object] = []
    load = torch.load

    def recorded(*arguments: Any, **options: Any) -> Any:
        mapped.append(options["mmap"])
        assert options["weights_only"] is True
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", recorded)
    assert names_in(saved(tmp_path / "a.pt", WEIGHTS)) == list(WEIGHTS)
    assert names_in(saved(tmp_path / "b.pt", WEIGHTS, legacy=True)) == list(WEIGHTS)
    assert mapped == [True, False]
