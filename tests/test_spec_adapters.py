"""The vectors of a family of adapters, read by both readers, and damages to them that break a rule each."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_adapter_vectors
import numpy as np
import pytest
from spec_support import VECTORS, Json, edit_values, ours, rewrite, theirs

from uws_store.model import Tier

ADAPTERS = VECTORS.parent / "v1" / "adapters"
REGISTRY = ADAPTERS / "registry"
EXPECTED: dict[str, Any] = json.loads((ADAPTERS / "expected.json").read_bytes())
TIERS: tuple[Tier, ...] = ("mean", "compact", "exact")
READS = [
    pytest.param(model, tier, id=f"{model['task']}-{tier}")
    for model in EXPECTED["models"]
    for tier in TIERS
    if tier in next(iter(model["tensors"].values()))
]


def expected(model: dict[str, Any], tier: Tier) -> dict[str, tuple[str, list[int], str]]:
    return {name: (row["dtype"], row["shape"], row[tier]) for name, row in model["tensors"].items()}


@pytest.mark.parametrize(("model", "tier"), READS)
@pytest.mark.parametrize("read", [ours, theirs])
def test_both_readers_give_the_bits_on_record(read: Any, model: dict[str, Any], tier: Tier) -> None:
    outcome = read(REGISTRY, model["task"], tier=tier)
    assert outcome.refused is None
    found = {
        name: (dtype, list(shape), hashlib.sha256(data).hexdigest())
        for name, (dtype, shape, data) in outcome.tensors.items()
    }
    assert found == expected(model, tier)
    assert list(found) == list(model["tensors"])


def test_the_vectors_hold_ranks_scales_gauges_and_what_is_kept() -> None:
    shapes = {
        model["task"]: [row["shape"] for row in model["tensors"].values()] for model in EXPECTED["models"]
    }
    assert [12, 2] in shapes["small"]
    assert [12, 4] in shapes["exact"]
    kept = [
        name
        for model in EXPECTED["models"]
        for name, row in model["tensors"].items()
        if row["stored"] == "private"
    ]
    assert len(kept) == 2
    dtypes = {row["dtype"] for model in EXPECTED["models"] for row in model["tensors"].values()}
    assert dtypes == {"F32", "F16", "BF16"}


def test_the_tool_writes_what_both_readers_read_alike(tmp_path: Path) -> None:
    assert make_adapter_vectors.main([str(tmp_path / "made")]) == 0
    assert make_adapter_vectors.main([str(tmp_path / "made")]) == 2
    for tier in TIERS:
        mine = ours(tmp_path / "made" / "registry", "exact", tier=tier)
        assert mine.refused is None
        assert mine.tensors == theirs(tmp_path / "made" / "registry", "exact", tier=tier).tensors


def rows(document: Json) -> dict[tuple[int, str], Json]:
    return {
        (row["low_rank"]["product"], row["low_rank"]["side"]): row
        for row in document["tensors"]
        if "low_rank" in row
    }


def signed(*values: int) -> str:
    return base64.b64encode(np.array(values, np.int8).tobytes()).decode()


def in_model(edit: Callable[[Json], object]) -> Callable[[Path], None]:
    return lambda registry: rewrite(registry, "exact", model=lambda document, _: (edit(document), None)[1])


def in_basis(edit: Callable[[Json], object]) -> Callable[[Path], None]:
    return lambda registry: rewrite(registry, "exact", basis=lambda document, _: (edit(document), None)[1])


def in_gauge(index: int, value: int) -> Callable[[Path], None]:
    def change(values: np.ndarray[Any, Any]) -> None:
        values[index] = value

    return lambda registry: rewrite(
        registry, "exact", model=lambda d, folder: edit_values(folder, "gauge", d["gauge"], change)
    )


DAMAGES: list[tuple[str, Callable[[Path], None], str, str, Tier]] = [
    ("a row that is not coded", in_basis(lambda d: d["tensors"].append({"name": "x", "shape": [2, 2], "dtype": "F32", "mode": "private", "low_rank": {"product": 3, "side": "left"}})), "format/document", "R-RANK-1", "compact"),
    ("a product with one factor", in_basis(lambda d: rows(d)[2, "left"].pop("low_rank")), "format/document", "R-RANK-1", "compact"),
    ("a side twice", in_basis(lambda d: rows(d)[2, "left"]["low_rank"].update(side="right")), "format/document", "R-RANK-1", "compact"),
    ("a gap in the numbers", in_basis(lambda d: [rows(d)[2, side]["low_rank"].update(product=7) for side in ("left", "right")]), "format/document", "R-RANK-1", "compact"),
    ("factors of two ranks", in_basis(lambda d: rows(d)[0, "left"].update(shape=[9, 12])), "format/document", "R-RANK-1", "compact"),
    ("a factor with one size", in_basis(lambda d: rows(d)[0, "left"].update(shape=[48])), "format/document", "R-RANK-1", "compact"),
    ("a left factor with a kernel", in_basis(lambda d: rows(d)[0, "left"].update(shape=[6, 4, 2])), "format/document", "R-RANK-1", "compact"),
    ("an unknown side", in_basis(lambda d: rows(d)[0, "left"]["low_rank"].update(side="up")), "format/document", "R-JSON-7", "compact"),
    ("a factor that is absent", in_model(lambda d: d.update(absent=["base_model.model.attention.lora_A.weight"])), "format/model", "R-RANK-2", "compact"),
    ("a private group with factors", in_model(lambda d: d.update(private_groups=[0])), "format/model", "R-RANK-2", "compact"),
    ("a rank above the table's", in_model(lambda d: d.update(ranks=[5])), "format/model", "R-RANK-2", "compact"),
    ("two ranks of three", in_model(lambda d: d.update(ranks=[4, 4])), "format/model", "R-RANK-2", "compact"),
    ("a rank of nothing", in_model(lambda d: d.update(ranks=[0])), "format/document", "R-JSON-7", "compact"),
    ("no ranks in an array", in_model(lambda d: d.update(ranks=[])), "format/document", "R-JSON-7", "compact"),
    ("a scale too few", in_model(lambda d: d.update(scales=signed(*[1] * 11))), "format/model", "R-RANK-3", "compact"),
    ("a scale out of range", in_model(lambda d: d.update(scales=signed(65, *[1] * 11))), "format/document", "R-RANK-3", "compact"),
    ("scales that are no base64", in_model(lambda d: d.update(scales="!")), "format/document", "R-RANK-3", "compact"),
    ("other scales", in_model(lambda d: d.update(scales=signed(*[1] * 12))), "format/tensor-digest", "R-DIGEST-4", "compact"),
    ("a gauge without the tier", in_model(lambda d: [d.pop(name) for name in ("exact", "residual32", "residual16") if name in d]), "format/document", "R-RANK-4", "compact"),
    ("a gauge of another dtype", in_model(lambda d: d["gauge"].update(dtype="int32")), "format/document", "R-ARRAY-2", "compact"),
    ("a gauge of another length", in_model(lambda d: d.update(ranks=[3, 4, 4], scales=signed(*[1] * 11))), "format/model", "R-RANK-4", "compact"),
    ("a grid out of range", in_gauge(0, 257), "format/model", "R-RANK-4", "exact"),
    ("another gauge", in_gauge(2, 17), "format/tensor-digest", "R-DIGEST-4", "exact"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage[0])
def test_both_readers_refuse_an_adapter(
    damage: tuple[str, Callable[[Path], None], str, str, Tier], tmp_path: Path
) -> None:
    _, change, kind, rule, tier = damage
    registry = tmp_path / "registry"
    shutil.copytree(REGISTRY, registry)
    change(registry)
    assert ours(registry, "exact", tier=tier).refused == kind
    assert theirs(registry, "exact", tier=tier).refused == rule
