"""Files of ``torch.save`` that are refused: code, damage, and what no tensor can be made of."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from flipped_checkpoint import kind_of_reading_flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_file_support import OPTIMIZER, WEIGHTS, Bomb, refusal, saved

from uws_store.checkpoint import open_checkpoint
from uws_store.errors import FormatError, InvalidInputError, NotFoundError, UwsError


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
    kind = kind_of_reading_flipped(path, data)
    assert kind.split("/")[0] in {"format", "invalid-input", "memory-limit"}


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
