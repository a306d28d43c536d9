"""Packed arrays: what zarr writes we read, every byte range, and no damage passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_support import CountingStorage

from uws_store import layout
from uws_store.errors import FormatError, StorageError
from uws_store.pages import page_sizes
from uws_store.storage import LocalStorage, MemoryStorage
from uws_store.store import ArrayReader, EncodedArray, encode_array, put_verified

DTYPES = ["int16", "int32", "uint16", "uint32", "uint64", "uint8"]


def _store(array: EncodedArray) -> CountingStorage:
    storage = MemoryStorage("arrays")
    for path, data in array.objects.items():
        storage.put_if_absent(f"group/core/{path}", data)
    return CountingStorage(storage)


def _reader(array: EncodedArray) -> tuple[ArrayReader, CountingStorage]:
    storage = _store(array)
    return ArrayReader(storage, "group", name="core", record=array.record), storage


def _values(rng: np.random.Generator, dtype: str, length: int) -> npt.NDArray[np.integer]:
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -50), 50, length).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    length=st.integers(1, 400),
    chunk=st.integers(1, 150),
    ends=st.tuples(st.integers(0, 400), st.integers(0, 400)),
)
def test_every_range_comes_back(
    seed: int, dtype: str, length: int, chunk: int, ends: tuple[int, int]
) -> None:
    values = _values(np.random.default_rng(seed), dtype, length)
    array = encode_array(values, chunk=chunk, page=None if dtype == "uint8" else 256)
    reader, _ = _reader(array)
    assert np.array_equal(reader.read(), values)
    start, stop = sorted(min(end, length) for end in ends)
    assert np.array_equal(reader.read(start, stop), values[start:stop])


def test_several_shards_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "uws_store.store.writing",
        "uws_store.store.reading",
        "uws_store.layout",
        "uws_store.metadata.arrays",
    ):
        monkeypatch.setattr(f"{module}.SHARD_CHUNKS", 4)
    values = np.arange(1000, dtype=np.int32)
    array = encode_array(values, chunk=60, page=256)
    assert len(array.record.shards) == 5
    reader, _ = _reader(array)
    assert np.array_equal(reader.read(), values)
    assert np.array_equal(reader.read(230, 490), values[230:490])


def test_zarr_opens_the_arrays(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("zarr")
    storage = LocalStorage(folder)
    values = np.arange(-300, 300, dtype=np.int16)
    for path, data in encode_array(values, chunk=100, page=256).objects.items():
        storage.put_if_absent(f"core/{path}", data)
    opened = zarr.open_array(str(folder / "core"), mode="r")
    assert np.array_equal(np.asarray(opened[:]), values)


def test_zarr_opens_pages_of_several_sizes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.integers(-900, 900, 9000), random.integers(-1, 2, 41_000)]).astype(
        np.int32
    )
    assert len(page_sizes(values[:30_000])) > 1
    for path, data in encode_array(values, chunk=30_000, page=4096).objects.items():
        LocalStorage(tmp_path).put_if_absent(f"core/{path}", data)
    assert np.array_equal(np.asarray(zarr.open_array(str(tmp_path / "core"), mode="r")[:]), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_zeros_are_stored(dtype: str) -> None:
    array = encode_array(np.zeros(500, dtype), chunk=50, page=None if dtype == "uint8" else 256)
    reader, _ = _reader(array)
    assert not reader.read().any()
    index = np.frombuffer(array.objects["c/0"][-(16 * 10 + 4) : -4], "<u8")
    assert not (index == 2**64 - 1).any(), "an absent chunk must always mean damage"


def test_metadata_is_what_zarr_itself_understands() -> None:
    array = encode_array(np.arange(10, dtype=np.int16), chunk=4, page=256)
    document = json.loads(array.objects[layout.GROUP_PATH])
    assert document["shape"] == [10]
    assert document["codecs"][0]["name"] == "sharding_indexed"


def test_a_part_costs_the_index_once_and_then_one_range() -> None:
    values = np.random.default_rng(0).laplace(0, 3, 10_000).round().astype(np.int16)
    reader, storage = _reader(encode_array(values, chunk=500, page=256))
    assert np.array_equal(reader.read(1200, 1900), values[1200:1900])
    assert len(storage.reads) == 2
    assert np.array_equal(reader.read(7000, 7001), values[7000:7001])
    assert len(storage.reads) == 3
    size = reader.record.shards[0].size
    read = sum((request.end or 0) - (request.start or 0) for request in storage.reads)
    assert read < size / 2


def test_the_whole_costs_one_request() -> None:
    reader, storage = _reader(encode_array(np.arange(10_000, dtype=np.int32), chunk=500, page=256))
    reader.read()
    assert len(storage.requests) == 1


def test_every_flipped_byte_is_caught_whole_and_in_part() -> None:
    values = np.random.default_rng(1).laplace(0, 3, 600).round().astype(np.int16)
    array = encode_array(values, chunk=200, page=256)
    good = array.objects["c/0"]
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        objects = {**array.objects, "c/0": bytes(bad)}
        reader, _ = _reader(EncodedArray(array.record, objects))
        with pytest.raises(FormatError) as caught:
            reader.read()
        assert caught.value.kind == "format/digest"
        # A part is guarded by checksums instead: bytes outside the range may be damaged, the values may not.
        try:
            found = reader.read(0, 200)
        except FormatError as error:
            assert error.kind.startswith("format/")
        else:
            assert np.array_equal(found, values[:200])


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda data: data[:-1], "format/truncated"),
        (lambda data: b"", "format/truncated"),
        (lambda data: data[:-68] + b"\xff" * 64 + data[-4:], "format/digest"),
    ],
)
def test_damaged_shards_are_refused(damage: Callable[[bytes], bytes], kind: str) -> None:
    array = encode_array(np.arange(800, dtype=np.int16), chunk=200, page=256)
    objects = {**array.objects, "c/0": damage(array.objects["c/0"])}
    reader, _ = _reader(EncodedArray(array.record, objects))
    with pytest.raises(FormatError) as caught:
        reader.read()
    assert caught.value.kind == kind


def test_a_missing_shard_is_an_error_and_not_zeros() -> None:
    array = encode_array(np.arange(800, dtype=np.int16), chunk=200, page=256)
    reader = ArrayReader(MemoryStorage("empty"), "group", name="core", record=array.record)
    for stop in (None, 10):
        with pytest.raises(FormatError) as caught:
            reader.read(0, stop)
        assert caught.value.kind == "format/missing-object"


def test_another_content_at_a_digest_is_refused() -> None:
    storage = MemoryStorage("objects")
    put_verified(storage, "a/b", b"first")
    put_verified(storage, "a/b", b"first")
    with pytest.raises(StorageError) as caught:
        put_verified(storage, "a/b", b"other")
    assert caught.value.kind == "storage/conflict"
    assert storage.read("a/b") == b"first"
