"""Decoding while bytes arrive: it begins before the last one, asks for little more, and gives nothing out too early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_support import CountingStorage
from zoo_support import make_zoo, same_bits

from uws_store import api
from uws_store.api import family as family_module
from uws_store.api.family import Family
from uws_store.errors import FormatError, StorageError
from uws_store.loader import workers
from uws_store.metadata.arrays import ObjectRecord
from uws_store.model import Model
from uws_store.registry import Registry
from uws_store.storage import CachedStorage, CacheFolder, LocalStorage, MemoryStorage
from uws_store.store import ArrayReader, Arriving, arriving, encode_array

SHAPES = {"a.weight": (384, 352), "b.weight": (512, 300), "c.weight": (300, 512), "d.bias": (20,)}
WAIT_S = 120


class Server(CountingStorage):
    """Calls a hook with each range that is asked for, and may change what is sent."""

    hook: Callable[[str, int, bytes], bytes] = staticmethod(lambda _path, _start, data: data)

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        return self.hook(path, start or 0, super().read(path, start=start, end=end))

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        data = super().read_at_most(path, limit_bytes)
        return None if data is None else self.hook(path, 0, data)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            owner, last = name.split(".")
            self.add_module(owner, torch.nn.Module())
            self.get_submodule(owner).register_parameter(last, torch.nn.Parameter(torch.zeros(shape)))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"), models=3, shapes=SHAPES)
    url = str(tmp_path_factory.mktemp("registry"))
    api.build(zoo, family="nets", registry=url, rel_error=0.02, exact=True, exact_overhead=1.0)
    return url


@pytest.fixture
def server(local: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose objects come in pieces, however small they are, and are decoded in two threads."""
    monkeypatch.setattr(arriving, "LEAST_PIECE_BYTES", 256)
    monkeypatch.setattr(arriving, "_LEAST_WHOLE_PIECE_BYTES", 256)
    monkeypatch.setattr(workers, "_PARALLEL_COEFFICIENTS", 0)
    monkeypatch.setattr(family_module, "_BASES", family_module._BasisCache())
    yield Server(LocalStorage(Path(local)))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("uws-fetch")]


def _expected(local: str, task: str, tier: str = "compact") -> dict[str, torch.Tensor]:
    weights = api.open_family("nets", registry=local).load(task, tier=tier)  # type: ignore[arg-type]
    return weights.materialize()


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        same_bits(found[name], expected[name]) for name in expected
    )


def test_decoding_begins_before_the_last_bytes_came(
    local: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _expected(local, "task-01")
    family = Family(Registry.over(server), "nets")
    family.load("task-00").materialize()
    begun, last = threading.Event(), []
    whole = Model.decode_job

    def decode(self: Model, *args: object, **options: object) -> dict[str, torch.Tensor]:
        begun.set()
        return whole(self, *args, **options)  # type: ignore[arg-type]

    def hold_back(path: str, start: int, data: bytes) -> bytes:
        pieces = [request for request in server.reads if request.path == path]
        if "/core/" in path and len(pieces) == 4:
            last.append(begun.wait(WAIT_S))
        del start
        return data

    monkeypatch.setattr(Model, "decode_job", decode)
    server.hook = hold_back
    server.requests.clear()
    assert _same(family.load("task-01").materialize(), expected)
    assert last == [True]


@pytest.mark.parametrize(("tier", "most"), [("compact", 6), ("exact", 10)])
def test_pieces_stay_within_the_promised_requests(local: str, server: Server, tier: str, most: int) -> None:
    expected = _expected(local, "task-01", tier)
    family = Family(Registry.over(server), "nets")
    cold = family.load("task-00", tier=tier).materialize()  # type: ignore[arg-type]
    assert len(server.requests) <= 40
    assert _same(cold, _expected(local, "task-00", tier))
    server.requests.clear()
    assert _same(family.load("task-01", tier=tier).materialize(), expected)  # type: ignore[arg-type]
    assert len(server.requests) <= most
    core = [request for request in server.requests if "/core/" in request.path]
    assert len(core) > 1, "in pieces"
    switched = Net()
    server.requests.clear()
    family.switch(switched, "task-02")
    assert len(server.requests) <= 6
    compact = _expected(local, "task-02")
    assert all(same_bits(value, compact[name]) for name, value in switched.state_dict().items())


@pytest.mark.parametrize("piece", [1, 2, 3, 4])
def test_a_damaged_piece_leaves_the_module_and_is_not_kept(
    local: str, server: Server, tmp_path: Path, piece: int
) -> None:
    cached = CachedStorage(server, CacheFolder(tmp_path / "cache", limit_bytes=1 << 24))
    family = Family(Registry.over(cached), "nets")
    family.load("task-00").materialize()
    module, seen = Net(), 0

    def spoil(path: str, start: int, data: bytes) -> bytes:
        nonlocal seen
        del start
        seen += "/core/" in path
        if "/core/" in path and seen == piece:
            return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        return data

    server.hook = spoil
    for load in (lambda: family.switch(module, "task-01"), lambda: family.load("task-01").materialize()):
        seen = 0
        with pytest.raises(FormatError):
            load()
    assert not any(bool(value.any()) for value in module.state_dict().values())
    server.hook = Server.hook
    assert _same(family.load("task-01").materialize(), _expected(local, "task-01"))
    server.requests.clear()
    family.load("task-01").materialize()
    assert not [request for request in server.requests if request.path.startswith("families/")]


def test_a_connection_that_breaks_is_typed_and_the_next_load_begins_anew(local: str, server: Server) -> None:
    family = Family(Registry.over(server), "nets")
    family.load("task-00").materialize()

    def broken(path: str, start: int, data: bytes) -> bytes:
        if "/core/" in path and start == 0:
            raise StorageError("the line is dead", kind="storage/io")
        return data

    server.hook = broken
    weights = family.load("task-01")
    with pytest.raises(StorageError) as caught:
        weights.materialize()
    assert caught.value.kind == "storage/io"
    assert "0 reconstructed" in repr(weights)
    server.hook = Server.hook
    assert _same(weights.materialize(), _expected(local, "task-01"))


def test_an_object_that_a_server_spoiled_once_is_asked_for_again(local: str, tmp_path: Path) -> None:
    server = Server(LocalStorage(Path(local)))
    cached = CachedStorage(server, CacheFolder(tmp_path / "cache", limit_bytes=1 << 24))
    server.hook = lambda path, _start, data: data[:-1] + b"!" if path.startswith("families/") else data
    for _ in range(2):
        with pytest.raises(FormatError):
            Family(Registry.over(cached), "nets").load("task-00").materialize()
    server.hook = Server.hook
    assert _same(
        Family(Registry.over(cached), "nets").load("task-00").materialize(), _expected(local, "task-00")
    )


def _reader(values: np.ndarray, chunk: int) -> tuple[ArrayReader, CountingStorage]:
    array, storage = encode_array(values, chunk=chunk, page=256), MemoryStorage("arrays")
    for path, data in array.objects.items():
        storage.put_if_absent(f"group/core/{path}", data)
    counting = CountingStorage(storage)
    return ArrayReader(counting, "group", name="core", record=array.record), counting


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 600),
    chunk=st.integers(1, 150),
    pieces=st.integers(1, 9),
    ends=st.tuples(st.integers(0, 600), st.integers(0, 600)),
)
def test_every_range_comes_back_from_pieces(
    seed: int, length: int, chunk: int, pieces: int, ends: tuple[int, int]
) -> None:
    values = np.random.default_rng(seed).integers(-40000, 40000, length).astype(np.int32)
    reader, storage = _reader(values, chunk)
    start, stop = sorted(min(end, length) for end in ends)
    reader.begin(pieces)
    reader.fetch()
    assert reader.wait(start, stop)
    assert np.array_equal(reader.read(start, stop), values[start:stop])
    assert np.array_equal(reader.read(narrow=True), values)
    assert len(storage.requests) <= pieces
    small = reader.read(narrow=True)
    assert small.dtype == (np.int16 if length > chunk and np.abs(values).max() < 1 << 15 else np.int32)


def test_another_object_of_valid_chunks_is_found_by_its_digest() -> None:
    values = np.arange(5000, dtype=np.int32)
    _, storage = _reader(values, 100)
    record = encode_array(values, chunk=100, page=256).record
    other = ObjectRecord(size=record.shards[0].size, sha256="0" * 64)
    reader = ArrayReader(storage, "group", name="core", record=record.model_copy(update={"shards": (other,)}))
    with pytest.raises(FormatError) as caught, Arriving([reader], requests=4) as coming:
        coming.finish()
    assert caught.value.kind == "format/digest"


def test_a_fetch_that_is_given_up_keeps_no_one_waiting() -> None:
    values = np.arange(5000, dtype=np.int32)
    reader, storage = _reader(values, 100)
    asked = 0

    def stop_after_one() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    reader.begin(4)
    waiting = threading.Thread(target=reader.fetch, args=(stop_after_one,))
    waiting.start()
    assert np.array_equal(reader.read(0, 5000), values), "asked for anew"
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    storage.requests.clear()
    reader.hold()
    assert np.array_equal(reader.read(), values)
    assert len(storage.requests) == 1
