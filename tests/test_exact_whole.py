"""Arrays of one chunk and models that code nothing: what both readers, Zarr libraries and damages make of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zarr
from independent_arrays import read_array
from independent_documents import Refusal
from spec_support import (
    VECTORS,
    Json,
    crc,
    decoded,
    edit_shard,
    encoded,
    model_folder,
    ours,
    read_document,
    rewrite,
    theirs,
)
from zoo_support import make_zoo

import uws_store
from uws_store.model import Tier
from uws_store.store import encode_array

WHOLE = VECTORS / "whole"
MODELS: list[dict[str, Any]] = json.loads((WHOLE / "expected.json").read_bytes())["models"]


@pytest.mark.parametrize("tier", get_args(Tier))
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["task"])
def test_arrays_of_one_chunk_are_read_by_both(model: dict[str, Any], tier: Tier) -> None:
    for read in (ours, theirs):
        outcome = read(WHOLE / "registry", model["task"], tier=tier)
        assert outcome.refused is None
        found = {name: hashlib.sha256(tensor[2]).hexdigest() for name, tensor in outcome.tensors.items()}
        assert found == {name: row[tier] for name, row in model["tensors"].items()}
    assert uws_store.verify("vectors", registry=str(WHOLE / "registry")).ok


def test_the_vectors_hold_both_kinds_of_model() -> None:
    coded, lossless = (
        read_document(model_folder(WHOLE / "registry", task)) for task in ("coded", "lossless")
    )
    assert "chunk" not in coded["core"]
    assert {"exact", "residual32", "residual16"} <= coded.keys()
    assert lossless["lossless"] is True
    assert not {"exact", "core", "absent", "dtypes"} & lossless.keys()
    kinds = {model["task"]: {row["stored"] for row in model["tensors"].values()} for model in MODELS}
    assert "coded" in kinds["coded"]
    assert "coded" not in kinds["lossless"]


@pytest.mark.parametrize(
    "pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"]
)
def test_zarr_libraries_open_arrays_of_one_chunk(pipeline: str, tmp_path: Path) -> None:
    if pipeline.startswith("zarrs"):
        pytest.importorskip("zarrs", reason="the Rust implementation is not installed")
    for values in (np.arange(-900, 900, dtype=np.int16) % 7, np.arange(250, dtype=np.uint8)):
        array = encode_array(values, chunk=4096, page=None if values.dtype == np.uint8 else 4096)
        assert array.record.chunk is None
        for path, data in array.objects.items():
            place = tmp_path / str(values.dtype) / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            opened = zarr.open_array(str(tmp_path / str(values.dtype)), mode="r")
            np.testing.assert_array_equal(np.asarray(opened[:]), values)


def test_tensorstore_opens_bytes_of_one_chunk() -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    array = model_folder(WHOLE / "registry", "coded") / "private"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{array}/"}}
    found = tensorstore.open(spec, read=True).result().read().result()
    np.testing.assert_array_equal(found, np.asarray(zarr.open_array(str(array), mode="r")[:]))


def test_a_model_that_codes_nothing_says_its_digests_once(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=3)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="small", registry=registry, exact=True)
    opened = uws_store.open_family("small", registry=registry)
    documents = [
        opened.model(opened.resolve(path.stem)).document for path in sorted(zoo.glob("*.safetensors"))
    ]
    assert documents
    for document in documents:
        assert bool(document.lossless) == (document.core is None)
        assert document.exact_digests is not None


@dataclass(frozen=True)
class Damage:
    """An edit of one model's document and arrays."""

    name: str
    task: str
    edit: Callable[[Json, Path], object]
    kind: str
    rule: str


def _shard(name: str, change: Callable[[bytes], bytes]) -> Callable[[Json, Path], object]:
    return lambda document, folder: edit_shard(folder, name, document[name], change)


def _payload(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        payload = encoded(change(decoded(data[:-4])))
        return payload + crc(payload)

    return edit


def _index(data: bytes) -> bytes:
    entry = (0).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    return data + entry + crc(entry)


def _lossless(document: Json, _: Path) -> None:
    document.update(lossless=True)
    document.pop("exact")
    for name in ("residual16", "residual32", "residual64"):
        document.pop(name, None)


def _without_errors(document: Json, folder: Path) -> None:
    _lossless(document, folder)
    document.update(errors="")


DAMAGES = [
    Damage("a chunk's CRC", "coded", _shard("core", lambda data: data[:-1] + bytes([data[-1] ^ 1])), "format/crc", "R-ARRAY-8"),
    Damage("a chunk without a CRC", "coded", _shard("core", lambda data: data[:3]), "format/crc", "R-ARRAY-8"),
    Damage("an index behind a chunk", "coded", _shard("core", _index), "format/crc", "R-ARRAY-8"),
    Damage("a stream too short", "coded", _shard("core", _payload(lambda v: v[:-1])), "format/entropy", "R-ARRAY-8"),
    Damage("a number changed", "coded", _shard("core", _payload(lambda v: v + 1)), "format/tensor-digest", "R-DIGEST-4"),
    Damage("a longer chunk than there are", "coded", lambda d, _: d["core"].update(length=2**24 + 1), "format/document", "R-CORE-3"),
    Damage("a second shard", "coded", lambda d, _: d["core"]["shards"].append(d["core"]["shards"][0]), "format/document", "R-ARRAY-1"),
    Damage("shards called one chunk", "coded", lambda d, _: d["core"].update(chunk=d["core"]["length"]), "format/shard-index", "R-ARRAY-3"),
    Damage("lossless, and coded", "coded", _lossless, "format/document", "R-TIER-4"),
    Damage("lossless, coded, without errors", "coded", _without_errors, "format/model", "R-MODEL-8"),
    Damage("lossless, with digests of its own", "lossless", lambda d, _: d.update(exact=d["compact"]), "format/document", "R-TIER-4"),
    Damage("not lossless", "lossless", lambda d, _: d.update(lossless=False), "format/document", "R-JSON-7"),
    Damage("neither tier", "lossless", lambda d, _: d.pop("lossless"), "fidelity/no-exact-tier", "R-TIER-2"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_both_readers_refuse_damaged_chunks(damage: Damage, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(WHOLE / "registry", registry)

    def edit(document: Json, folder: Path) -> None:
        damage.edit(document, folder)

    rewrite(registry, damage.task, model=edit)
    assert ours(registry, damage.task, tier="exact").refused == damage.kind
    assert theirs(registry, damage.task, tier="exact").refused == damage.rule


def test_a_record_of_one_chunk_that_is_too_long_is_refused() -> None:
    record = encode_array(np.zeros(300, np.int16), chunk=4096, page=256).record
    with pytest.raises(ValueError, match="16777216"):
        type(record).model_validate({**record.model_dump(), "length": 2**24 + 1})
    chunk = {"dtype": "int16", "length": 2**24 + 1, "page": 256, "shards": []}
    with pytest.raises(Refusal) as refused:
        read_array(Path(), "core", chunk)
    assert refused.value.rule == "R-ARRAY-11"
