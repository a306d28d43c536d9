"""What a collection asks of an object store: pages of listing and deletions, and no request for each object."""

from __future__ import annotations

import http.server
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from remote_support import BUCKET, moto_server, open_s3, proxy
from storage_support import found_family, next_models

from uws_store.layout import model_prefix
from uws_store.registry import Registry, collect
from uws_store.storage import MemoryStorage, Storage, list_entries

pytest.importorskip("s3fs", reason="s3:// needs s3fs")
pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")

GARBAGE_MODELS = 12
OBJECTS_EACH = 3


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with moto_server() as address:
        yield address


def _upload_garbage(storage: Storage) -> None:
    for number in range(GARBAGE_MODELS):
        for part in ("zarr.json", "core/zarr.json", "core/c/0"):
            storage.put(f"{model_prefix('f', f'{number:064x}')}/{part}", b"x" * number)


def test_a_collection_over_s3_asks_for_pages_and_deletes(
    upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package gives the function the module's name.
    monkeypatch.setattr(sys.modules["uws_store.registry.collect"], "LEAST_GRACE_S", 0.0)
    asked: Counter[str] = Counter()

    def note(request: http.server.BaseHTTPRequestHandler, _: int) -> None:
        asked[request.command] += 1

    registry = Registry.over(open_s3(upstream, "gc"), create=True)
    registry.publish(found_family("f"))
    registry.publish(next_models("seven", family="f"))
    _upload_garbage(registry.storage)
    with proxy(upstream, answers=note) as address:
        watched = Registry.over(open_s3(address, "gc"))
        marked = collect(watched, grace_s=0.0)
        first, asked = asked.copy(), Counter()
        removed = collect(watched, grace_s=0.0)
    assert len(marked.marked) == GARBAGE_MODELS
    assert sum(one.size_bytes for one in marked.marked) == OBJECTS_EACH * sum(range(GARBAGE_MODELS))
    assert len(removed.removed) == GARBAGE_MODELS
    # Each with what opening, the clock, leases, tombstones and the mark of a sweep cost.
    assert first.total() <= 20
    assert asked["DELETE"] <= GARBAGE_MODELS * OBJECTS_EACH + 3
    assert asked.total() - asked["DELETE"] <= 25
    assert registry.resolve("f", "seven").version == 1


def test_what_a_listing_tells_is_what_the_objects_say(upstream: str) -> None:
    storage = open_s3(upstream, "told")
    near = MemoryStorage("told")
    for name, data in (("b/2", b""), ("b/1", b"four"), ("a", b"x")):
        storage.put(name, data)
        near.put(name, data)
    found = list(list_entries(storage, ""))
    assert [one.path for one in found] == ["a", "b/1", "b/2"] == [one.path for one in list_entries(near, "")]
    assert [one.size_bytes for one in found] == [storage.size(one.path) for one in found] == [1, 4, 0]
    assert [one.modified for one in found] == [storage.modified(one.path) for one in found]
    assert [one.path for one in list_entries(storage, "b")] == ["b/1", "b/2"]
    assert list(list_entries(storage, "c")) == []
    assert BUCKET not in found[0].path
