"""Writing safetensors: all or nothing, and the same bytes every time."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from uws_store.checkpoint import open_checkpoint, scan_zoo, write, write_safetensors
from uws_store.dtypes import DTYPES
from uws_store.errors import AlreadyExistsError, InvalidInputError, NotFoundError, StorageError

ZOOS = Path(__file__).parents[2] / "shared" / "zoos"
LIMIT_BYTES = 1 << 20


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow beyond a megabyte: a real failure of a real write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3).map(tuple)),
        max_size=6,
    )
)
def test_the_bytes_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    path = tmp_path_factory.mktemp("out") / "a.safetensors"
    tensors = {name: torch.ones(shape).to(DTYPES[dtype].torch) for name, (dtype, shape) in rows.items()}
    size = write_safetensors(path, tensors)
    assert path.read_bytes() == save(tensors, metadata={"format": "pt"})
    assert size == path.stat().st_size
    assert write_safetensors(path, tensors, {}, overwrite=True) < size
    assert path.read_bytes() == save(tensors)


@pytest.mark.parametrize("name", ["acasxu", "ani_1x_1ccx", "hexells", "wakewords", "sb3_agents"])
def test_a_real_file_of_the_library_is_written_again_as_it_was(tmp_path: Path, name: str) -> None:
    if not (ZOOS / name).is_dir():
        pytest.skip(f"the zoo {name} is not on this machine")
    member = scan_zoo(ZOOS / name)[0]
    with open_checkpoint(member.path) as checkpoint:
        tensors = {tensor: checkpoint.read(tensor) for tensor in checkpoint.tensors}
        write_safetensors(tmp_path / "again", tensors, checkpoint.metadata)
    before, after = member.path.read_bytes(), (tmp_path / "again").read_bytes()
    end = 8 + int.from_bytes(before[:8], "little")
    # All but the order of the metadata, which the library takes from a hash with a random seed.
    assert (before[:8], before[end:]) == (after[:8], after[end:])
    headers = [json.loads(content[8:end]) for content in (before, after)]
    assert headers[0] == headers[1]
    assert [name for name in headers[0] if name != "__metadata__"] == list(headers[1])[1:]


def test_every_dtype_has_its_place_in_the_file() -> None:
    assert sorted(write._DTYPE_ORDER) == sorted(DTYPES)
    widths = [DTYPES[name].size_bytes for name in write._DTYPE_ORDER]
    assert widths[:4] == [8] * 4
    assert sorted(widths, reverse=True) == widths


def test_the_format_is_as_published(tmp_path: Path) -> None:
    write_safetensors(
        tmp_path / "a",
        {"b": torch.tensor([1], dtype=torch.uint8), "a": torch.tensor(1.0)},
        {"k": "é", "a": "1"},
    )
    header = (
        '{"__metadata__":{"a":"1","k":"é"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        '"b":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + b"\x00\x00\x80\x3f" + b"\x01"
    assert (tmp_path / "a").read_bytes() == expected


def test_the_same_input_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((3,), number) for number in range(9)}
    metadata = {f"k{number}": str(number) for number in range(9)}
    write_safetensors(tmp_path / "a", tensors, metadata)
    write_safetensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("metadata", [{}, {"licence": "MIT"}, {"format": "np", "é": '"'}])
def test_metadata_comes_back_as_it_was(tmp_path: Path, metadata: dict[str, str]) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)}, metadata)
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.metadata == metadata


def test_tied_turned_and_learned_tensors_are_full_copies(tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "a": table,
        "b": table,
        "turned": table.t(),
        "part": table[:, 1],
        "learned": torch.nn.Parameter(table),
        "wide": torch.ones(1).expand(2, 2),
        "conjugated": torch.tensor([1 + 2j]).conj(),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors)
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor.detach())


def test_a_file_that_is_there_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": torch.ones(1)})
    before = contents(tmp_path)
    with pytest.raises(AlreadyExistsError) as error:
        write_safetensors(path, {"w": torch.zeros(1)})
    assert error.value.kind == "already-exists/file"
    assert contents(tmp_path) == before
    write_safetensors(path, {"w": torch.zeros(1)}, overwrite=True)
    assert load_file(path)["w"].tolist() == [0]
    assert names(tmp_path) == [path.name]


def test_a_file_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    sync = os.fsync

    def other_writer(descriptor: int) -> None:
        path.write_bytes(b"theirs")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", other_writer)
    with pytest.raises(AlreadyExistsError):
        write_safetensors(path, {"w": torch.ones(1)})
    assert contents(tmp_path) == {path.name: b"theirs"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)})
    assert names(tmp_path) == ["a.safetensors"]
    with pytest.raises(AlreadyExistsError):
        write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)})


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    outcomes: list[str] = []

    def write(value: float) -> None:
        try:
            write_safetensors(path, {"w": torch.full((1000,), value)})
        except AlreadyExistsError as error:
            outcomes.append(error.kind)
        else:
            outcomes.append("won")

    threads = [threading.Thread(target=write, args=(float(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["already-exists/file"] * 7 + ["won"]
    assert names(tmp_path) == [path.name]
    assert len(set(load_file(path)["w"].tolist())) == 1


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_no_part_behind(tmp_path: Path, *, overwrite: bool) -> None:
    path = tmp_path / "a.safetensors"
    if overwrite:
        path.write_bytes(b"before")
    before = contents(tmp_path)
    with pytest.raises(StorageError) as error:
        write_safetensors(path, {"w": torch.zeros(LIMIT_BYTES)}, overwrite=overwrite)
    assert error.value.kind == "storage/no-space"
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, "storage/no-space"), (errno.EDQUOT, "storage/no-space"), (errno.EIO, "storage/io")],
)
def test_a_disk_that_fails_at_the_end_leaves_no_part_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str
) -> None:
    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError) as error:
        write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)})
    assert error.value.kind == kind
    assert isinstance(error.value.__cause__, OSError)
    assert names(tmp_path) == []


def test_an_interrupt_leaves_no_part_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)})
    assert names(tmp_path) == []


def test_a_killed_writer_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, torch\n"
        "from uws_store.checkpoint import write_safetensors\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_safetensors(sys.argv[1], {'w': torch.ones(1000)})\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.safetensors")],
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == -9
    assert not (tmp_path / "a.safetensors").exists()
    # The name is free, and what the killed one left is hidden from every reader of zoos.
    assert all(name.startswith(".") for name in names(tmp_path))
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)})


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as error:
        write_safetensors(tmp_path / "none" / "a.safetensors", {"w": torch.ones(1)})
    assert error.value.kind == "not-found/folder"


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"__metadata__": torch.ones(1)}, "invalid-input/tensor-name"),
        ({"\ud800": torch.ones(1)}, "invalid-input/tensor-name"),
        ({7: torch.ones(1)}, "invalid-input/tensor-name"),
        ({"w": 1.0}, "invalid-input/tensor-kind"),
        ({"w": torch.eye(2).to_sparse()}, "invalid-input/tensor-kind"),
        ({"w": torch.ones(1, device="meta")}, "invalid-input/tensor-kind"),
        ({"w": torch.ones(1, dtype=torch.complex128)}, "invalid-input/dtype"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, tensors: Any, kind: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        write_safetensors(
            tmp_path / "a.safetensors", {"good": torch.ones(1), **tensors} if kind[-4:] != "name" else tensors
        )
    assert error.value.kind == kind
    assert names(tmp_path) == []


@pytest.mark.parametrize("metadata", [{"k": 1}, {1: "v"}, {"k": None}, {"k": "\ud800"}])
def test_metadata_that_is_not_text_is_refused(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(InvalidInputError) as error:
        write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)}, metadata)
    assert error.value.kind == "invalid-input/metadata"
    assert names(tmp_path) == []


def test_a_path_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        write_safetensors(tmp_path / "a\x00b", {"w": torch.ones(1)})
    assert error.value.kind == "invalid-input/path"


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(1)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
