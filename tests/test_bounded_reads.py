"""What announces a gigabyte is refused within bounded memory, wherever it stands."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from uws_store.checkpoint import Renaming, open_checkpoint, scan_zoo
from uws_store.errors import UwsError

GIGABYTE = 1 << 30
MOST_BYTES = 150_000_000


@contextmanager
def bounded() -> Iterator[None]:
    """Hold what Python and NumPy allocate at a time below :data:`MOST_BYTES`."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def huge(path: Path, head: bytes = b"{") -> Path:
    """Write a sparse file of a gigabyte: zeros after a few bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head)
    os.truncate(path, GIGABYTE)
    return path


def _index(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "model-00001-of-00001.safetensors")
    open_checkpoint(huge(folder / "model.safetensors.index.json"))


def _adapter(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "adapter_model.safetensors")
    huge(folder / "adapter_config.json")
    open_checkpoint(folder)


def _torch_bomb(folder: Path) -> None:
    """Store a pickle of a gigabyte of zeros: a megabyte in the archive."""
    with (
        zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/data.pkl", "w") as record,
    ):
        for _ in range(GIGABYTE >> 24):
            record.write(bytes(1 << 24))
    open_checkpoint(folder / "a.pt")


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        pytest.param(_index, "format/checkpoint", id="an index of shards"),
        pytest.param(
            lambda folder: scan_zoo(huge(folder / "zoo.json", b"[")),
            "invalid-input/zoo-manifest",
            id="a manifest",
        ),
        pytest.param(
            lambda folder: Renaming.of(huge(folder / "map.json")), "invalid-input/rename", id="a map of names"
        ),
        pytest.param(_torch_bomb, "format/checkpoint", id="a compressed pickle"),
        pytest.param(
            lambda folder: open_checkpoint(
                huge(folder / "a.safetensors", (GIGABYTE - 8).to_bytes(8, "little") + b"{")
            ),
            "format/checkpoint",
            id="the header of a safetensors file",
        ),
        pytest.param(
            _adapter,
            "invalid-input/adapter-config",
            id="the configuration of an adapter",
        ),
    ],
)
def test_a_gigabyte_beside_weights_is_refused(
    tmp_path: Path, read: Callable[[Path], object], kind: str
) -> None:
    with bounded(), pytest.raises(UwsError) as caught:
        read(tmp_path)
    assert caught.value.kind == kind


def test_a_model_that_was_packed_is_read(tmp_path: Path) -> None:
    # Mostly zeros, as of a pruned model: it packs a hundred times smaller, and is small all the same.
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert not checkpoint.read("w").any()
