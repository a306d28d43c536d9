"""The golden vectors: both readers open every frozen registry, and refuse every damaged one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from independent_documents import Refusal
from independent_reader import read_model
from safetensors.torch import load_file
from zoo_support import make_zoo

import uws_store
from uws_store import layout
from uws_store.dtypes import dtype_of_torch
from uws_store.errors import UwsError
from uws_store.metadata.group import from_group_bytes, to_group_bytes
from uws_store.metadata.model import ModelDocument
from uws_store.store import encode_array
from uws_store.tensor_bytes import bytes_of, digest_of

if TYPE_CHECKING:
    from uws_store.model import Tier

VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors"
VERSIONS = sorted(path.name for path in VECTORS.iterdir() if path.is_dir())


def _cases() -> list[Any]:
    cases = []
    for version in VERSIONS:
        expected = json.loads((VECTORS / version / "expected.json").read_bytes())
        for model in expected["models"]:
            tiers = {tier for tensor in model["tensors"].values() for tier in tensor}
            for tier in sorted(tiers & {"mean", "compact", "exact"}):
                label = f"{version}-{model['task']}@{model['version']}-{tier}"
                cases.append(pytest.param(version, model, tier, id=label))
    return cases


CASES = _cases()


def test_there_are_vectors() -> None:
    assert "v1" in VERSIONS
    assert len(CASES) >= 15


@pytest.mark.parametrize(("version", "model", "tier"), CASES)
def test_both_readers_give_the_frozen_tensors(version: str, model: dict[str, Any], tier: str) -> None:
    registry = VECTORS / version / "registry"
    expected = {
        name: (row["dtype"], tuple(row["shape"]), row[tier]) for name, row in model["tensors"].items()
    }
    independent = read_model(registry, model["family"], model["task"], revision=model["version"], tier=tier)
    assert {
        name: (tensor.dtype, tensor.shape, hashlib.sha256(tensor.data).hexdigest())
        for name, tensor in independent.items()
    } == expected
    ours = uws_store.load_model(
        model["family"],
        model["task"],
        registry=str(registry),
        revision=model["version"],
        tier=cast("Tier", tier),
    ).materialize()
    assert {
        name: (dtype_of_torch(tensor.dtype).name, tuple(tensor.shape), digest_of(tensor).hex())
        for name, tensor in ours.items()
    } == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_the_frozen_registries_verify(version: str) -> None:
    registry = str(VECTORS / version / "registry")
    for family in {entry.family for entry in uws_store.list_models(registry=registry)}:
        assert uws_store.verify(family, registry=registry).ok


def test_a_registry_of_any_zoo_reads_the_same_both_ways(tmp_path: Path) -> None:
    def kinds(index: int, weights: dict[str, torch.Tensor]) -> None:
        source = torch.Generator().manual_seed(index)
        weights["half"] = (torch.linspace(-2, 2, 60) + 0.1 * torch.randn(60, generator=source)).to(
            torch.bfloat16
        )
        weights["steps"] = torch.tensor(index)
        weights["conv"] = torch.randn(6, 3, 2, 2, generator=source)

    zoo = make_zoo(tmp_path / "zoo", models=6, shapes={"a.weight": (20, 112), "b": (30,)}, change=kinds)
    registry = tmp_path / "registry"
    uws_store.build(zoo, family="f", registry=str(registry), exact=True, expect_models=10_000)
    for path in sorted(zoo.iterdir()):
        original = load_file(path)
        exact = read_model(registry, "f", path.stem, tier="exact")
        assert {name: tensor.data for name, tensor in exact.items()} == {
            name: bytes_of(tensor) for name, tensor in original.items()
        }
        compact = uws_store.load_model("f", path.stem, registry=str(registry)).materialize()
        independent = read_model(registry, "f", path.stem)
        assert all(bytes_of(compact[name]) == independent[name].data for name in compact)


# Damage: each change, the kind our reader gives it, and the rule by which the independent reader refuses.


def _only(registry: Path, pattern: str) -> Path:
    (found,) = registry.glob(pattern)
    return found


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _forge_document(registry: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the model's document and every digest that names it, as a hostile publisher would."""
    path = _only(registry, "families/f/models/*/zarr.json")
    group = json.loads(path.read_bytes())
    change(group["attributes"]["uws_store"])
    data = json.dumps(group, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    _rename(registry, path, data)


def _rename(registry: Path, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    old = path.parent.name
    if digest != old:
        path.parent.rename(path.parent.with_name(digest))
        _rewrite(_only(registry, "_log/*1.json"), lambda log: log.replace(old.encode(), digest.encode()))


def _forge_core(registry: Path, *, longer: int = 0) -> None:
    """Put a core of zeros in place of the model's, with digests to match."""
    path = _only(registry, "families/f/models/*/zarr.json")
    document = from_group_bytes(ModelDocument, path.read_bytes(), where="forged")
    assert document.core is not None
    length = document.core.length + longer
    core = encode_array(np.zeros(length, np.int16), chunk=length, page=document.core.page)
    for name, data in core.objects.items():
        (path.parent / "core" / name).write_bytes(data)
    forged = document.model_copy(update={"core": core.record})
    _rename(registry, path, to_group_bytes(forged))


def _flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


CORE = "families/f/models/*/core/c/0"
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a flipped bit in a core": (lambda r: _rewrite(_only(r, CORE), _flip(20)), "format/digest", "R-ARRAY"),
    "a core cut short": (lambda r: _rewrite(_only(r, CORE), lambda d: d[:-3]), "format/truncated", "R-ARRAY"),
    "a core that is missing": (lambda r: _only(r, CORE).unlink(), "format/missing-object", "R-ARRAY"),
    "an index of zeros": (
        lambda r: _rewrite(_only(r, CORE), lambda d: d[:-20] + bytes(16) + d[-4:]),
        "format/digest",
        "R-ARRAY",
    ),
    "a flipped bit in a mean": (
        lambda r: _rewrite(_only(r, "families/f/basis/*/mean/c/0"), _flip(9)),
        "format/digest",
        "R-ARRAY",
    ),
    "a basis document that was changed": (
        lambda r: _rewrite(
            _only(r, "families/f/basis/*/zarr.json"), lambda d: d.replace(b"coded", b"Coded", 1)
        ),
        "format/digest",
        "R-GROUP",
    ),
    "a model document that was changed": (
        lambda r: _rewrite(_only(r, "families/f/models/*/zarr.json"), lambda d: d + b" "),
        "format/digest",
        "R-GROUP",
    ),
    "an unknown field": (
        lambda r: _forge_document(r, lambda d: d.update(colour="red")),
        "format/document",
        "R-JSON-6",
    ),
    "a field of the wrong type": (
        lambda r: _forge_document(r, lambda d: d.update(rel_error="small")),
        "format/document",
        "R-JSON-7",
    ),
    "a missing field": (lambda r: _forge_document(r, lambda d: d.pop("step")), "format/document", "R-JSON-7"),
    "a newer version": (
        lambda r: _forge_document(r, lambda d: d.update(uws=2)),
        "format/newer-version",
        "R-",
    ),
    "another basis": (
        lambda r: _forge_document(r, lambda d: d.update(basis="0" * 64)),
        "format/model",
        "R-MODEL-1",
    ),
    "a tensor that is absent and unknown": (
        lambda r: _forge_document(r, lambda d: d.update(absent=["nobody"])),
        "format/model",
        "R-MODEL",
    ),
    "digests of too few tensors": (
        lambda r: _forge_document(r, lambda d: d["compact"].update(leaves="")),
        "format/model",
        "R-DIGEST-3",
    ),
    "a wrong leaf": (
        lambda r: _forge_document(
            r, lambda d: d["compact"].update(leaves="AAAAAAAAAAA" + d["compact"]["leaves"][11:])
        ),
        "format/tensor-digest",
        "R-DIGEST",
    ),
    "a wrong root": (
        lambda r: _forge_document(r, lambda d: d["compact"].update(root="0" * 64)),
        "format/tensor-digest",
        "R-DIGEST",
    ),
    "a core of another length": (lambda r: _forge_core(r, longer=100), "format/model", "R-CORE"),
    "a core of zeros where the digests say otherwise": (
        _forge_core,
        "format/tensor-digest",
        "R-DIGEST",
    ),
    "a duplicate key in the log": (
        lambda r: _rewrite(_only(r, "_log/*1.json"), lambda d: d.replace(b"{", b'{"uws":1,', 1)),
        "format/duplicate-key",
        "R-JSON-4",
    ),
    "a deeply nested log": (
        lambda r: _rewrite(_only(r, "_log/*1.json"), lambda d: b"[" * 100_000),
        "format/depth",
        "R-JSON-3",
    ),
    "a gap in the log": (
        lambda r: _only(r, "_log/*1.json").rename(r / layout.commit_path(2)),
        "format/log-gap",
        "R-LOG-6",
    ),
    "a commit under another number": (
        lambda r: shutil.copy(_only(r, "_log/*1.json"), r / layout.commit_path(2)),
        "format/log-number",
        "R-LOG-3",
    ),
    "a registry document of no registry": (
        lambda r: (r / "uws.json").write_bytes(b"{}"),
        "format/document",
        "R-",
    ),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    zoo = make_zoo(folder / "zoo", models=5)
    registry = folder / "registry"
    uws_store.build(zoo, family="f", registry=str(registry))
    # One model is enough, and lets a test forge the single commit that names it.
    commit = _only(registry, "_log/*1.json")
    log = json.loads(commit.read_bytes())
    kept = [action for action in log["actions"] if action.get("task") in (None, "task-00")]
    commit.write_bytes(json.dumps({**log, "actions": kept}, sort_keys=True, separators=(",", ":")).encode())
    digest = next(action["digest"] for action in kept if action["op"] == "model")
    for path in (registry / "families" / "f" / "models").iterdir():
        if path.is_dir() and path.name != digest:
            shutil.rmtree(path)
    return registry


def test_the_undamaged_registry_is_read_by_both(intact: Path) -> None:
    ours = uws_store.load_model("f", "task-00", registry=str(intact)).materialize()
    assert set(ours) == set(read_model(intact, "f", "task-00"))


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_by_kind_and_by_rule(what: str, intact: Path, tmp_path: Path) -> None:
    damage, kind, rule = DAMAGE[what]
    registry = tmp_path / "registry"
    shutil.copytree(intact, registry)
    damage(registry)
    with pytest.raises(UwsError) as ours:
        uws_store.load_model("f", "task-00", registry=str(registry)).materialize()
    assert ours.value.kind == kind
    with pytest.raises(Refusal) as theirs:
        read_model(registry, "f", "task-00")
    assert theirs.value.rule.startswith(rule)
