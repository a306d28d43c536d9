"""The golden vectors: registries that were written once, opened by both readers every time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import forging
import frozen
import make_vectors
import pytest
import torch
from spec_support import FAMILY, VECTORS, Outcome, ours, read_commits, theirs

from uws_store import layout, load_model, open_family, verify
from uws_store.basis import Basis
from uws_store.metadata.log import FamilyAction
from uws_store.model import Tier
from uws_store.storage import LocalStorage
from uws_store.tensor_bytes import digest_of

REGISTRY = VECTORS / "registry"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "expected.json").read_bytes())
MODELS: list[dict[str, Any]] = EXPECTED["models"]
GROUPS = VECTORS / "groups"
GROUPED: list[dict[str, Any]] = json.loads((GROUPS / "expected.json").read_bytes())["models"]


def tiers_of(model: dict[str, Any]) -> tuple[Tier, ...]:
    tensor = next(iter(model["tensors"].values()))
    return tuple(tier for tier in get_args(Tier) if tier in tensor)


READS = [
    pytest.param(model, tier, id=f"{model['task']}@{model['version']}-{tier}")
    for model in MODELS
    for tier in tiers_of(model)
]


def digests(outcome: Outcome) -> dict[str, tuple[str, list[int], str]]:
    assert outcome.refused is None
    return {
        name: (dtype, list(shape), hashlib.sha256(data).hexdigest())
        for name, (dtype, shape, data) in outcome.tensors.items()
    }


def expected(model: dict[str, Any], tier: Tier) -> dict[str, tuple[str, list[int], str]]:
    return {name: (row["dtype"], row["shape"], row[tier]) for name, row in model["tensors"].items()}


@pytest.mark.parametrize(("model", "tier"), READS)
def test_the_package_gives_the_bits_on_record(model: dict[str, Any], tier: Tier) -> None:
    found = digests(ours(REGISTRY, model["task"], tier=tier, revision=model["version"]))
    assert found == expected(model, tier)
    assert list(found) == list(model["tensors"])


@pytest.mark.parametrize(("model", "tier"), READS)
def test_the_independent_reader_gives_the_bits_on_record(model: dict[str, Any], tier: Tier) -> None:
    found = digests(theirs(REGISTRY, model["task"], tier=tier, revision=model["version"]))
    assert found == expected(model, tier)
    assert list(found) == list(model["tensors"])


@pytest.mark.parametrize("tier", get_args(Tier))
@pytest.mark.parametrize("model", GROUPED, ids=lambda model: model["task"])
def test_groups_kept_whole_are_read_by_both(model: dict[str, Any], tier: Tier) -> None:
    for read in (ours, theirs):
        found = digests(read(GROUPS / "registry", model["task"], tier=tier))
        assert found == expected(model, tier)
        assert list(found) == list(model["tensors"])


def test_the_vectors_of_groups_hold_every_feature() -> None:
    kinds = {model["task"]: {row["stored"] for row in model["tensors"].values()} for model in GROUPED}
    assert kinds["mixed"] >= {"coded", "private"}
    assert "coded" not in kinds["odd"] | kinds["all"]
    assert verify(FAMILY, registry=str(GROUPS / "registry")).ok


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("model", "tier"), READS)
def test_an_accelerator_gives_the_bits_on_record(model: dict[str, Any], tier: Tier) -> None:
    weights = load_model(
        FAMILY,
        model["task"],
        registry=str(REGISTRY),
        tier=tier,
        revision=model["version"],
        device="cuda",
        verify=False,
    )
    found = {name: digest_of(tensor).hex() for name, tensor in weights.items()}
    assert found == {name: row[tier] for name, row in model["tensors"].items()}


@pytest.mark.parametrize("alias", EXPECTED["aliases"], ids=lambda alias: alias["alias"])
def test_aliases_stand_for_the_versions_on_record(alias: dict[str, Any]) -> None:
    task, name, version = alias["task"], alias["alias"], alias["version"]
    assert ours(REGISTRY, task, revision=name).tensors == ours(REGISTRY, task, revision=version).tensors
    assert theirs(REGISTRY, task, revision=name).tensors == theirs(REGISTRY, task, revision=version).tensors
    assert open_family(FAMILY, registry=str(REGISTRY)).resolve(task, revision=name).version == version


def test_the_package_finds_nothing_wrong_with_the_vectors() -> None:
    result = verify(FAMILY, registry=str(REGISTRY))
    assert result.ok
    assert len(result.models) >= 5


def test_the_vectors_hold_every_feature() -> None:
    stored = {row["stored"] for model in MODELS for row in model["tensors"].values()}
    assert stored == {"coded", "shared", "private", "tied"}
    dtypes = {
        row["dtype"] for model in MODELS for row in model["tensors"].values() if row["stored"] == "coded"
    }
    assert dtypes == {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
    ranks = {len(row["shape"]) for model in MODELS for row in model["tensors"].values()}
    assert ranks >= {0, 1, 2, 4}
    actions = {action["op"] for commit in read_commits(REGISTRY) for action in commit["actions"]}
    assert actions == {"family", "basis", "model", "alias", "delete"}
    assert EXPECTED["commit"] == len(read_commits(REGISTRY))


def test_the_tiers_differ_where_a_tensor_is_coded_and_nowhere_else() -> None:
    for model in MODELS:
        for row in model["tensors"].values():
            if row["stored"] in ("shared", "private"):
                assert len({row[tier] for tier in tiers_of(model)}) == 1
        coded = [row for row in model["tensors"].values() if row["stored"] == "coded"]
        assert any(row["mean"] != row["compact"] for row in coded)
        if "exact" in tiers_of(model):
            assert any(row["compact"] != row["exact"] for row in coded)


def test_every_version_of_the_vectors_is_opened_here() -> None:
    assert [path.name for path in sorted(VECTORS.parent.iterdir()) if path.is_dir()] == ["v1"]


def test_the_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in VECTORS.rglob("*") if path.is_file()) < 500_000


def test_the_tool_writes_the_same_bytes_twice_and_both_readers_agree_on_them(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert make_vectors.main([str(first)]) == 0
    assert make_vectors.main([str(second)]) == 0
    assert make_vectors.main([str(second)]) == 2
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) > 60
    grouped = first / "groups"
    assert ours(grouped / "registry", "mixed").tensors == theirs(grouped / "registry", "mixed").tensors
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes()
    # Not compared with the frozen ones: another PCodec or another solver may write other bytes, and all are valid.
    for task in ("odd", "fine", "org/größe 🙂"):
        mine = ours(first / "registry", task)
        assert mine.refused is None
        assert mine.tensors == theirs(first / "registry", task).tensors


@pytest.mark.parametrize(("core_chunk", "array_chunk"), [(1, 7), (17, 1), (4096, 50)])
def test_any_chunks_are_read(core_chunk: int, array_chunk: int, tmp_path: Path) -> None:
    """Chunks of one element make many shards' worth of entries, and the last chunk of an array is seldom full."""
    forge = frozen.Forge(LocalStorage(tmp_path, create=True))
    source = (*forging.ROWS[1:3], *forging.ROWS[4:9], *forging.ROWS[13:17])
    rows = [replace(row, group=0) for row in source]
    forged = forging.forge_basis(rows, seed=3, core_chunk=core_chunk, array_chunk=array_chunk)
    action, basis = forge.basis(forged, revision=1)
    tensors = forging.forge_checkpoint(rows, forged, seed=4)
    model = forging.encode(basis, tensors, exact=True)
    forge.commit([_family(basis), action, forge.model("exact", model)])
    for tier in get_args(Tier):
        mine, other = ours(tmp_path, "exact", tier=tier), theirs(tmp_path, "exact", tier=tier)
        assert mine.refused is None
        assert mine.tensors == other.tensors


def test_arrays_of_several_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,001 private bytes in chunks of one: a second shard, most of whose entries are empty."""
    monkeypatch.setattr(layout, "PRIVATE_CHUNK", 1)
    forge = frozen.Forge(LocalStorage(tmp_path, create=True))
    rows = (*forging.ROWS[6:8], forging.Row("counts", (5001,), "U8", "private"))
    forged = forging.forge_basis(rows, seed=5)
    action, basis = forge.basis(forged, revision=1)
    model = forging.encode(basis, forging.forge_checkpoint(rows, forged, seed=6), exact=False)
    forge.commit([_family(basis), action, forge.model("exact", model)])
    assert model.document.private_bytes is not None
    assert len(model.document.private_bytes.shards) == 2
    mine = ours(tmp_path, "exact")
    assert mine.refused is None
    assert mine.tensors == theirs(tmp_path, "exact").tensors


def _family(basis: Basis) -> FamilyAction:
    return FamilyAction(family=FAMILY, architecture=basis.document.architecture)
