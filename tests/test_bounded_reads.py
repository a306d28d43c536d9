"""What announces a gigabyte is refused within bounded memory, wherever it stands."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from remote_support import serving
from safetensors.torch import save_file

from uws_store.api import gc
from uws_store.checkpoint import Renaming, open_checkpoint, scan_zoo
from uws_store.errors import FormatError, UwsError
from uws_store.registry import Registry, read_verification
from uws_store.storage import open_storage
from uws_store.storage.bounded import Wanted

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a checkpoint, a signature, a note and a record of a verification."""
    source = ROOT / "spec" / "vectors" / "v1" / "verified" / "registry"
    return Path(shutil.copytree(source, tmp_path_factory.mktemp("bounded") / "registry"))


def _resolve(url: str) -> None:
    for family in Registry.open(url).state().families.values():
        assert family.tasks


def _verifications(url: str) -> None:
    opened = Registry.open(url)
    for family in opened.state().families.values():
        for entry in family.verifications:
            read_verification(opened.storage, family.name, entry)


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern))


PARTS: list[tuple[str, Callable[[str], object]]] = [
    ("uws.json", lambda url: Registry.open(url).document),
    ("_log/0*.json", _resolve),
    ("families/beta/verifications/*.json", _verifications),
]


@pytest.mark.parametrize(("pattern", "read"), PARTS, ids=[pattern for pattern, _ in PARTS])
def test_a_gigabyte_in_a_registry_is_refused(
    registry: Path, tmp_path: Path, pattern: str, read: Callable[[str], object]
) -> None:
    folder = Path(shutil.copytree(registry, tmp_path / "registry"))
    for path in folder.glob(pattern):
        huge(path)
    with bounded(), pytest.raises(FormatError) as caught:
        read(str(folder))
    assert caught.value.kind == "format/size"


def test_a_snapshot_or_a_hint_of_a_gigabyte_is_passed_over(registry: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(registry, tmp_path / "registry"))
    expected = Registry.open(str(registry)).state()
    for path in [*folder.glob("_log/snapshots/*.json"), folder / "_log" / "head"]:
        huge(path)
    with bounded():
        assert Registry.open(str(folder)).state() == expected


def test_a_note_of_a_gigabyte_ends_a_collection_and_removes_nothing(registry: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(registry, tmp_path / "registry"))
    huge(folder / "_pending" / f"lease-{'0' * 32}.json")
    before = sorted(folder.rglob("*"))
    with bounded(), pytest.raises(FormatError) as caught:
        gc(registry=str(folder))
    assert caught.value.kind == "format/size"
    assert sorted(folder.rglob("*")) == before


class _Boundless(http.server.BaseHTTPRequestHandler):
    """Sends a gigabyte for whatever is asked: announced, in chunks without a length, or packed."""

    protocol_version = "HTTP/1.1"
    way = ""
    sent = 0

    def do_GET(self) -> None:
        way = type(self).way
        self.send_response(206 if way == "as a part" and "Range" in self.headers else 200)
        if way == "packed":
            self.send_header("Content-Encoding", "gzip")
        if way == "without a length":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(GIGABYTE))
        self.end_headers()
        pack = zlib.compressobj(9, wbits=31)
        block = bytes(1 << 20)
        with contextlib.suppress(ConnectionError):
            for _ in range(GIGABYTE >> 20):
                piece = (pack.compress(block) + pack.flush(zlib.Z_SYNC_FLUSH)) if way == "packed" else block
                self.wfile.write(
                    b"%x\r\n%b\r\n" % (len(piece), piece) if way == "without a length" else piece
                )
                type(self).sent += len(piece)
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(GIGABYTE))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("way", ["announced", "as a part", "without a length", "packed"])
def test_a_server_that_sends_a_gigabyte_is_cut_off(way: str) -> None:
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp")
    handler = type("Boundless", (_Boundless,), {"way": way})
    with serving(handler) as address, bounded():
        with pytest.raises(UwsError) as caught:
            Registry.open(f"{address}/registry")
        assert caught.value.kind == ("storage/io" if way == "packed" else "format/size")
        if way != "packed":
            storage = open_storage(f"{address}/registry")
            assert storage.read("object", start=5, end=25) == bytes(20)
            with pytest.raises(FormatError):
                storage.read_at_most("object", 1000)
    assert handler.sent < GIGABYTE >> 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["announced", "as a part", "without a length", "packed"])
def test_a_hub_that_sends_a_gigabyte_is_cut_off(way: str) -> None:
    pytest.importorskip("huggingface_hub", reason="hf:// needs huggingface_hub")
    handler = type("Boundless", (_Boundless,), {"way": way})
    with serving(handler) as address, bounded():
        storage = open_storage("hf://org/name", storage_options={"endpoint": address, "token": False})
        with pytest.raises(UwsError) as caught:
            storage.read_at_most("uws.json", 1000)
        assert caught.value.kind == ("storage/io" if way == "packed" else "format/size")
    assert handler.sent < GIGABYTE >> 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("pieces", [1, 3, 7, 100])
def test_ranges_of_whole_answers_are_those_of_slices(pieces: int) -> None:
    data = bytes(range(100))
    for start, end in ((None, None), (0, 10), (5, 25), (90, None), (-7, None), (0, 1000), (0, None)):
        wanted = Wanted(start, end, is_part=False)
        for at in range(0, len(data), pieces):
            if not wanted.take(data[at : at + pieces]):
                break
        assert wanted.data() == data[slice(start, end)]
    part = Wanted(5, 25, is_part=True)
    assert not part.take(data)
    assert part.data() == data[:20]


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
