"""Files of torch.save: weights found, never unpickled."""

from __future__ import annotations

import collections
import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uws_store.checkpoint import open_checkpoint
from uws_store.dtypes import DTYPES
from uws_store.errors import FormatError, InvalidInputError, NotFoundError, UwsError


class Bomb:
    """Runs when it is unpickled."""

    exploded = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "exploded", True))


def bits(tensor: torch.Tensor) -> bytes:
    return (
        bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""
    )


def saved(path: Path, content: object, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def names_in(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return list(checkpoint.tensors)


def refusal(path: Path) -> str:
    with pytest.raises(UwsError) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)
    return error.value.kind


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


WEIGHTS = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


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


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (torch.zeros(3), "invalid-input/no-tensors"),
        ([torch.zeros(3)], "invalid-input/no-tensors"),
        (None, "invalid-input/no-tensors"),
        ({}, "invalid-input/no-tensors"),
        ({"epoch": 3}, "invalid-input/no-tensors"),
        ({"optimizer": OPTIMIZER}, "invalid-input/no-tensors"),
        ({"state_dict": {}}, "invalid-input/no-tensors"),
        ({"model": WEIGHTS, "state_dict": WEIGHTS}, "invalid-input/ambiguous-checkpoint"),
        ({"generator": WEIGHTS, "discriminator": WEIGHTS}, "invalid-input/ambiguous-checkpoint"),
        ({0: torch.zeros(3)}, "invalid-input/tensor-name"),
        ({"a": torch.zeros(1), 0: torch.zeros(3)}, "invalid-input/tensor-name"),
        ({"\ud800": torch.zeros(3)}, "invalid-input/tensor-name"),
        ({"__metadata__": torch.zeros(3)}, "invalid-input/tensor-name"),
        ({"module.__metadata__": torch.zeros(3)}, "invalid-input/tensor-name"),
    ],
)
def test_what_has_no_single_set_of_named_weights_is_refused(
    tmp_path: Path, content: object, kind: str
) -> None:
    assert refusal(saved(tmp_path / "a.pt", content)) == kind


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("content", [{"w": torch.zeros(1), "x": Bomb()}, Bomb()])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(
    tmp_path: Path,
    content: object,
    *,
    legacy: bool,
) -> None:
    path = saved(tmp_path / "a.pt", content, legacy=legacy)
    assert refusal(path) == "invalid-input/pickle"
    assert not Bomb.exploded


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(saved(tmp_path / "a.pt", torch.nn.Linear(2, 2)))
    assert error.value.kind == "invalid-input/pickle"
    assert "torch.nn.modules.linear.Linear" in str(error.value)
    assert "safetensors" in str(error.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps({"w": [1.0]}, protocol=protocol))
    assert refusal(path) == "invalid-input/pickle"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_pickle_protocol_is_refused(tmp_path: Path, protocol: int, *, legacy: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save(WEIGHTS, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert refusal(path) == "invalid-input/pickle"


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/model.py"):
            archive.writestr(f"model/{name}", b"\x80\x02}.")
    assert refusal(path) == "invalid-input/pickle"


@pytest.mark.parametrize("legacy", [False, True])
def test_sparse_tensors_are_refused_by_name(tmp_path: Path, *, legacy: bool) -> None:
    state = {"dense": torch.zeros(2), "odd.weight": torch.eye(3).to_sparse()}
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(saved(tmp_path / "a.pt", state, legacy=legacy))
    assert error.value.kind == "invalid-input/tensor-kind"
    assert "odd.weight" in str(error.value)


def test_quantised_tensors_are_refused_by_name(tmp_path: Path) -> None:
    # Written by hand: torch warns when it makes one. Its pickle names the constructor, which is not called.
    path = tmp_path / "a.pt"
    content = pickle.dumps({"dense": 1, "odd.weight": 2}, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", content.replace(b"K\x02", b"ctorch._utils\n_rebuild_qtensor\n(tR"))
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(path)
    assert error.value.kind == "invalid-input/tensor-kind"
    assert "odd.weight" in str(error.value)


def test_tensors_without_data_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(saved(tmp_path / "a.pt", {"odd.weight": torch.zeros(3, device="meta")}))
    assert error.value.kind == "invalid-input/tensor-kind"
    assert "odd.weight" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e4m3fnuz])
def test_a_dtype_we_do_not_know_is_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(saved(tmp_path / "a.pt", {"odd.weight": torch.zeros(3).to(dtype)}))
    assert error.value.kind == "invalid-input/dtype"
    assert "odd.weight" in str(error.value)


def test_a_broadcast_tensor_is_read_and_a_huge_one_is_refused(tmp_path: Path) -> None:
    with open_checkpoint(saved(tmp_path / "a.pt", {"w": torch.ones(1).expand(3, 2)})) as checkpoint:
        assert torch.equal(checkpoint.read("w"), torch.ones(3, 2))
    assert (
        refusal(saved(tmp_path / "b.pt", {"w": torch.ones(1).expand(10**15)})) == "invalid-input/tensor-kind"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world" * 10,
        b"<!doctype html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        b"PK\x03\x04" + bytes(100),
        b"\x1f\x8b" + bytes(50),
    ],
)
def test_what_is_not_a_torch_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert refusal(path) == "format/checkpoint"


def test_another_zip_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("notes/a.txt", "hello")
    assert refusal(tmp_path / "a.pt") == "format/checkpoint"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_short_is_refused(tmp_path: Path, *, legacy: bool) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.arange(1000), "v": torch.ones(3)}, legacy=legacy)
    whole = path.read_bytes()
    for length in range(1, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(UwsError) as error:
            open_checkpoint(path)
        assert error.value.kind in (
            {"format/checkpoint"} if length > 32 else {"format/checkpoint", "invalid-input/pickle"}
        )


@settings(deadline=None)
@given(legacy=st.booleans(), data=st.data())
def test_flipped_bytes_never_let_an_untyped_error_out(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    legacy: bool,
    data: st.DataObject,
) -> None:
    path = saved(tmp_path_factory.mktemp("zoo") / "a.pt", WEIGHTS, legacy=legacy)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except UwsError as error:
        kind = error.kind
    else:
        kind = "format/none"
    assert kind.split("/")[0] in {"format", "invalid-input", "memory-limit"}


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


def test_a_checkpoint_that_vanishes_or_changes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", WEIGHTS)
    with open_checkpoint(path) as checkpoint:
        saved(tmp_path / "b.pt", WEIGHTS).replace(path)
        with pytest.raises(InvalidInputError) as changed:
            checkpoint.read("fc.bias")
        assert changed.value.kind == "invalid-input/checkpoint-changed"
        path.unlink()
        with pytest.raises(NotFoundError):
            checkpoint.read("fc.bias")
    with pytest.raises(NotFoundError):
        open_checkpoint(path)


def test_no_memory_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pt", WEIGHTS)

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", no_memory)
    assert refusal(path) == "memory-limit/checkpoint"


def test_damage_is_a_format_error_with_its_cause(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}X\x03\x00\x00\x00abc")
    with pytest.raises(FormatError) as error:
        open_checkpoint(path)
    assert error.value.kind == "format/checkpoint"
    assert error.value.__cause__ is not None
