"""Registries that break one rule each: both readers refuse, ours with the kind and the other with the rule."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from damage_support import (
    PAIRED,
    SCORE,
    Case,
    Damage,
    basis,
    core_shard,
    core_values,
    first_chunk,
    flip,
    in_place_of,
    model,
    newest,
    private_shard,
    rows,
    shard,
    with_fields,
)
from spec_damages import CASES
from spec_support import (
    FAMILY,
    VECTORS,
    Json,
    encoded,
    model_folder,
    ours,
    payloads_of,
    theirs,
    with_chunks,
)

from uws_store import verify
from uws_store.model import Tier


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    shutil.copytree(VECTORS / "registry", folder)
    return folder


def problems(registry: Path) -> set[str]:
    """What the package's verification of the model finds."""
    result = verify(FAMILY, registry=str(registry), task="exact")
    return {problem.kind for verdict in result.models for problem in verdict.report.problems}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_readers_refuse(case: Case, registry: Path) -> None:
    case.damage(registry)
    assert ours(registry, "exact", tier=case.tier).refused == case.kind
    assert theirs(registry, "exact", tier=case.tier).refused == case.rule


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda registry: flip(registry / "families" / FAMILY / "models" / "zarr.json"),
        model(lambda document: None),
        model(lambda document: [document.pop(name) for name in ("absent", "dtypes", "scores")]),
        model(
            lambda document: document.update(
                scores=[SCORE, {**SCORE, "n": 9, "max_drop": 0, "paired": PAIRED}]
            )
        ),
        basis(lambda document: document.update(build={**document["build"], "tool": "another"})),
        core_values(lambda values: None),
        private_shard(lambda data, slots: with_chunks(payloads_of(data, slots))),
        lambda registry: flip(registry / "_log" / "head", 1),
        lambda registry: with_fields(registry, writers="one"),
        lambda registry: (registry / "_log" / "head").write_bytes(b"{"),
        lambda registry: (registry / "_log" / "head").write_bytes(b'{"number":3,"uws":1}'),
        lambda registry: flip(registry / "families" / FAMILY / "zarr.json"),
        lambda registry: (registry / "_log" / ".tmp-123").write_bytes(b"half"),
        newest(in_place_of(b":08Z", b":59Z")),
        newest(lambda data: json.dumps(json.loads(data), indent=2).encode()),
    ],
)
@pytest.mark.parametrize("tier", ["compact", "exact"])
def test_what_breaks_no_rule_is_read(damage: Damage, tier: Tier, registry: Path) -> None:
    damage(registry)
    mine, other = ours(registry, "exact", tier=tier), theirs(registry, "exact", tier=tier)
    assert mine.refused is None
    assert other.refused is None
    assert mine.tensors == other.tensors == theirs(VECTORS / "registry", "exact", tier=tier).tensors


def test_other_array_metadata_is_refused_where_it_is_read(registry: Path) -> None:
    path = model_folder(registry, "exact") / "core" / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"fill_value":0', b'"fill_value":1'))
    assert theirs(registry, "exact").refused == "R-ARRAY-3"
    assert problems(registry) == {"format/array-metadata"}
    # The record says all that the metadata does, so a reader of ranges never asks for it.
    assert ours(registry, "exact").refused is None


def test_a_shard_with_bytes_behind_its_index_is_found_by_who_reads_it_whole(registry: Path) -> None:
    path = shard(registry)
    path.write_bytes(path.read_bytes() + b"x")
    assert theirs(registry, "exact").refused == "R-ARRAY-5"
    assert problems(registry) == {"format/size"}


def test_a_stream_that_claims_millions_is_refused_without_room_for_them(registry: Path) -> None:
    claim = encoded(np.zeros(1 << 24, np.int16))
    assert len(claim) < 10_000
    core_shard(first_chunk(lambda _: claim))(registry)
    tracemalloc.start()
    try:
        assert ours(registry, "exact").refused == "format/entropy"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_stream_of_another_dtype_is_refused(registry: Path) -> None:
    core_values(lambda values: values.astype(np.int32))(registry)
    assert ours(registry, "exact").refused == "format/entropy"
    # A library that converts gives the same weights.
    assert theirs(registry, "exact").tensors == ours(VECTORS / "registry", "exact").tensors


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_table_of_a_trillion_blocks_is_refused_without_a_list_of_them(side: str, registry: Path) -> None:
    def edit(document: Json) -> None:
        shape = [2**41, 1] if side == "left" else [2**41]
        rows(document)["conv.bias"].update({"shape": shape, side: {"block": 1, "rank": 1}})

    basis(edit)(registry)
    tracemalloc.start()
    try:
        assert ours(registry, "exact").refused == "format/table"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert theirs(registry, "exact").refused == "R-BASIS-6"


@pytest.mark.parametrize(
    ("task", "revision", "kind"),
    [
        ("no", None, "not-found/task"),
        ("plain", 9, "not-found/version"),
        ("plain", "old", "not-found/version"),
        ("gone", None, "not-found/version"),
        ("gone", 1, "not-found/version"),
    ],
)
def test_a_name_that_resolves_to_nothing_is_refused(
    task: str, revision: int | str | None, kind: str, registry: Path
) -> None:
    assert ours(registry, task, revision=revision).refused == kind
    assert theirs(registry, task, revision=revision).refused == "R-FOLD-10"
