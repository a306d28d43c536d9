"""Opening a registry of 100,000 models in 200 families: what resolving one costs, opening included."""

from __future__ import annotations

import hashlib
from functools import partial

import pytest
from storage_support import CountingStorage, found_family

from uws_store.metadata.log import ModelAction, PackPlace
from uws_store.registry import Registry, RegistryState
from uws_store.storage import MemoryStorage

FAMILIES = 200
MODELS_EACH = 500
MOST_BYTES = 1_000_000


class Measured(CountingStorage):
    """Adds up what is fetched."""

    size_bytes = 0

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        data = super().read_at_most(path, limit_bytes)
        self.size_bytes += len(data or b"")
        return data


def _models(family: str, _: RegistryState, *, packed: bool) -> list[ModelAction]:
    pack = hashlib.sha256(f"pack of {family}".encode()).hexdigest()
    return [
        ModelAction(
            family=family,
            task=f"task-{number:05d}",
            version=1,
            basis_revision=1,
            digest=hashlib.sha256(f"{family} {number}".encode()).hexdigest(),
            size_bytes=1000,
            exact=False,
            pack=PackPlace(digest=pack, offset=1000 * number, document=700, length=1000) if packed else None,
        )
        for number in range(MODELS_EACH)
    ]


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "packs"])
def test_a_cold_resolve_takes_four_requests_and_below_a_megabyte(*, packed: bool) -> None:
    storage = MemoryStorage("scale")
    registry = Registry.over(storage, create=True)
    for number in range(FAMILIES):
        family = f"family-{number:03d}"
        registry.publish(found_family(family))
        registry.publish(partial(_models, family, packed=packed))
    measured = Measured(storage)
    found = Registry.over(measured).resolve("family-077", "task-00123")
    assert found.task == "task-00123"
    assert (found.pack is not None) == packed
    # The hint, the newest commit, one look beyond it, and the family's snapshot; no uws.json: see rule R-LOG-1.
    paths = [request.path for request in measured.requests]
    assert [path.rpartition("/")[0] for path in paths] == ["_log", "_log", "_log", "_log/snapshots"]
    assert measured.size_bytes < MOST_BYTES
