"""Safetensors files: read bit by bit, and refused when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from flipped_checkpoint import kind_of_reading_flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from uws_store.checkpoint import TensorInfo, open_checkpoint, scan_zoo, write_safetensors
from uws_store.checkpoint.safetensors_file import SafetensorsFile
from uws_store.dtypes import DTYPES, DType
from uws_store.errors import FormatError, InvalidInputError, NotFoundError, StorageError, UwsError

ZOOS = Path(__file__).parents[2] / "shared" / "zoos"


def bits(tensor: torch.Tensor) -> bytes:
    return (
        bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""
    )


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@st.composite
def typed_bits(draw: st.DrawFn) -> tuple[DType, tuple[int, ...], bytes]:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = TensorInfo("", dtype, shape).size_bytes
    return dtype, shape, draw(st.binary(min_size=size, max_size=size))


@settings(deadline=None)
@given(st.lists(typed_bits(), min_size=1, max_size=5), st.data())
def test_every_bit_pattern_of_every_dtype_makes_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[DType, tuple[int, ...], bytes]],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("zoo") / "a.safetensors"
    tensors = {}
    for number, (dtype, shape, content) in enumerate(rows):
        flat = (
            torch.frombuffer(bytearray(content), dtype=torch.uint8)
            if content
            else torch.empty(0, dtype=torch.uint8)
        )
        tensors[f"t{number}"] = flat.view(dtype.torch).reshape(shape)
    size = write_safetensors(path, tensors)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.file_size_bytes == size == path.stat().st_size
        assert checkpoint.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert set(checkpoint.tensors) == set(tensors)
        for number, (dtype, shape, content) in enumerate(rows):
            name = f"t{number}"
            info = checkpoint.tensors[name]
            assert info == TensorInfo(name, dtype, shape)
            assert info.size_bytes == len(content)
            tensor = checkpoint.read(name)
            assert (tensor.dtype, tuple(tensor.shape), tensor.is_contiguous()) == (dtype.torch, shape, True)
            assert bits(tensor) == content
            if shape:
                start = data.draw(st.integers(0, shape[0]))
                stop = data.draw(st.integers(start, shape[0]))
                part = checkpoint.read_rows(name, start, stop)
                assert tuple(part.shape) == (stop - start, *shape[1:])
                assert bits(part) == bits(tensors[name][start:stop])


def test_nan_payloads_and_odd_booleans_are_kept(tmp_path: Path) -> None:
    header = {
        "nan": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "yes": {"dtype": "BOOL", "shape": [1], "data_offsets": [4, 5]},
    }
    path = raw_file(tmp_path / "a.safetensors", header, b"\x01\x00\xa0\x7f\x07")
    with open_checkpoint(path) as checkpoint:
        assert bits(checkpoint.read("nan")) == b"\x01\x00\xa0\x7f"
        assert bits(checkpoint.read("yes")) == b"\x07"
        assert bits(checkpoint.read_rows("yes", 0, 1)) == b"\x07"


def test_rows_of_a_large_tensor_are_read_without_the_rest(tmp_path: Path) -> None:
    rows, columns = 1 << 16, 1 << 13
    header = {"w": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}}
    path = raw_file(tmp_path / "a.safetensors", header)
    start = path.stat().st_size
    # Two gigabytes, of which the disk keeps a few bytes.
    with path.open("r+b") as file:
        file.truncate(start + 4 * rows * columns)
        file.seek(start + 4 * columns * 40_000)
        file.write(b"\x00\x00\x80\x3f")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_checkpoint(path) as checkpoint:
        part = checkpoint.read_rows("w", 40_000, 40_002)
    assert part.sum() == part[0, 0] == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


def test_what_is_read_is_nobody_elses_memory(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(4, 2)})
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        first, rows = checkpoint.read("w"), checkpoint.read_rows("w", 1, 3)
        first += 1
        rows += 2
        assert torch.equal(checkpoint.read("w"), torch.zeros(4, 2))
        assert rows.untyped_storage().nbytes() == 2 * 2 * 4
    assert torch.equal(first, torch.ones(4, 2))
    assert not first.requires_grad


def test_tensors_stand_in_file_order_and_empty_ones_by_name(tmp_path: Path) -> None:
    empty = {f"e{number}": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]} for number in range(9)}
    header = {
        "z": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        **empty,
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [4, 5]},
    }
    path = raw_file(tmp_path / "a.safetensors", header, bytes(5))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["z", *sorted(empty), "a"]
        assert checkpoint.shapes()["e3"] == (0,)
        assert checkpoint.tied == ()


def test_metadata_of_the_header_is_kept(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"licence": "MIT"})
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.metadata == {"licence": "MIT"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\x00" * 8,
        b"<!doctype html><html>not found</html>",
        b"PK\x03\x04" + bytes(100),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        (100).to_bytes(8, "little") + b"{}",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{]",
        (2).to_bytes(8, "little") + b"{}trailing",
        (4).to_bytes(8, "little") + b"[1] ",
    ],
)
def test_what_is_not_a_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        open_checkpoint(path)
    assert error.value.kind == "format/checkpoint"
    assert str(path) in str(error.value)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.arange(6.0), "v": torch.zeros(2, dtype=torch.int64)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError) as error:
            open_checkpoint(path)
        assert error.value.kind == "format/checkpoint"


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 1]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "U8", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        [],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, entry: object) -> None:
    path = raw_file(tmp_path / "a.safetensors", {"w": entry}, bytes(4))
    with pytest.raises(FormatError) as error:
        open_checkpoint(path)
    assert error.value.kind == "format/checkpoint"


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    path = raw_file(tmp_path / "a.safetensors", {"a": entry, "b": entry}, bytes(4))
    with pytest.raises(FormatError):
        open_checkpoint(path)


@settings(deadline=None)
@given(st.data())
def test_flipped_bytes_never_let_an_untyped_error_out(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("zoo") / "a.safetensors"
    write_safetensors(path, {"w": torch.arange(6.0).reshape(2, 3), "v": torch.zeros(0)})
    kind = kind_of_reading_flipped(path, data)
    assert kind.split("/")[0] in {"format", "invalid-input"}


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E4M3FNUZ", "F4"])
def test_a_dtype_we_do_not_know_is_refused_by_the_tensors_name(tmp_path: Path, dtype: str) -> None:
    size = {"F4": 1}.get(dtype, 2)
    path = raw_file(
        tmp_path / "a.safetensors",
        {"odd.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}},
        bytes(size),
    )
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(path)
    assert error.value.kind == "invalid-input/dtype"
    assert "odd.weight" in str(error.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidInputError) as error:
        open_checkpoint(tmp_path / "a.safetensors")
    assert error.value.kind == "invalid-input/no-tensors"


def test_a_checkpoint_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path / "no" / "folder", tmp_path / "a\x00b.safetensors"):
        with pytest.raises(UwsError) as error:
            open_checkpoint(path)
        assert error.value.kind == "not-found/checkpoint"


def test_a_file_as_a_folder_is_not_found(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(NotFoundError):
        open_checkpoint(tmp_path / "a.safetensors" / "b.safetensors")


def test_a_checkpoint_that_vanishes_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": torch.zeros(3)})
    with open_checkpoint(path) as checkpoint:
        path.unlink()
        calls: list[Any] = [
            lambda: checkpoint.read("w"),
            lambda: checkpoint.read_rows("w", 0, 1),
            checkpoint.sha256,
        ]
        for call in calls:
            with pytest.raises(NotFoundError) as error:
                call()
            assert error.value.kind == "not-found/checkpoint"


def test_a_checkpoint_that_changes_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": torch.zeros(3)})
    with open_checkpoint(path) as checkpoint:
        write_safetensors(path, {"w": torch.ones(3)}, overwrite=True)
        calls: list[Any] = [
            lambda: checkpoint.read("w"),
            lambda: checkpoint.read_rows("w", 0, 1),
            checkpoint.sha256,
        ]
        for call in calls:
            with pytest.raises(InvalidInputError) as error:
                call()
            assert error.value.kind == "invalid-input/checkpoint-changed"


def test_a_checkpoint_that_changes_while_its_digest_is_made_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": torch.zeros(3)})
    digest: Any = types.SimpleNamespace(update=lambda _: path.write_bytes(b"other"))
    file = SafetensorsFile(path)
    with pytest.raises(InvalidInputError) as error:
        file.update_digest(digest)
    assert error.value.kind == "invalid-input/checkpoint-changed"
    file.close()


def test_a_closed_checkpoint_does_not_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(3)})
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    checkpoint.close()
    checkpoint.close()
    calls: list[Any] = [
        lambda: checkpoint.read("w"),
        lambda: checkpoint.read_rows("w", 0, 1),
        checkpoint.sha256,
    ]
    for call in calls:
        with pytest.raises(InvalidInputError) as error:
            call()
        assert error.value.kind == "invalid-input/closed"


def test_a_tensor_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(3)})
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        calls: list[Any] = [lambda: checkpoint.read("x"), lambda: checkpoint.read_rows("x", 0, 1)]
        for call in calls:
            with pytest.raises(NotFoundError) as error:
                call()
            assert error.value.kind == "not-found/tensor"


@pytest.mark.parametrize(
    ("name", "start", "stop"), [("w", 0, 4), ("w", -1, 2), ("w", 2, 1), ("s", 0, 0), ("s", 0, 1)]
)
def test_rows_outside_the_tensor_are_refused(tmp_path: Path, name: str, start: int, stop: int) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(3, 2), "s": torch.tensor(1.0)})
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        with pytest.raises(InvalidInputError) as error:
            checkpoint.read_rows(name, start, stop)
        assert error.value.kind == "invalid-input/rows"


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("notes.txt", "empty", "pipe.safetensors"):
        with pytest.raises(InvalidInputError) as error:
            open_checkpoint(tmp_path / name)
        assert error.value.kind == "invalid-input/not-a-checkpoint"


def test_too_many_open_files_are_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(3)})

    def full_table(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("uws_store.checkpoint.safetensors_file.safe_open", full_table)
    with pytest.raises(StorageError) as error:
        open_checkpoint(tmp_path / "a.safetensors")
    assert error.value.kind == "storage/open-files"


def test_threads_read_one_checkpoint(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((64, 16), float(number)) for number in range(32)}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    wrong: list[str] = []
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:

        def read_all() -> None:
            wrong.extend(name for name in tensors if not torch.equal(checkpoint.read(name), tensors[name]))

        threads = [threading.Thread(target=read_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "name", ["acasxu", "ani_1x_1ccx", "hexells", "wakewords", "sb3_agents", "lora_sd15_r4"]
)
def test_real_zoos_open_and_read(name: str) -> None:
    if not (ZOOS / name).is_dir():
        pytest.skip(f"the zoo {name} is not on this machine")
    for member in scan_zoo(ZOOS / name)[:8]:
        with open_checkpoint(member.path) as checkpoint:
            assert checkpoint.sha256() == hashlib.sha256(member.path.read_bytes()).hexdigest()
            assert sum(info.size_bytes for info in checkpoint.tensors.values()) < checkpoint.file_size_bytes
            for tensor_name, info in checkpoint.tensors.items():
                tensor = checkpoint.read(tensor_name)
                assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype.torch)
