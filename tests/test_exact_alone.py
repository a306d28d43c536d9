"""Tensors stored alone: chosen where they are smaller so, read by both readers, and exact at every tier."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_support import VECTORS, edit_values, model_folder, ours, read_document, rewrite, theirs

import uws_store
from uws_store import api
from uws_store.api.encoding import overhead_of
from uws_store.builder import DEFAULT_FIDELITY, BasisBuilder, Members
from uws_store.builder.alone import cheaper_alone, pack_private
from uws_store.checkpoint import scan_zoo, write_safetensors
from uws_store.dtypes import DTYPES
from uws_store.metadata.plan import PlanDocument
from uws_store.model import Tier
from uws_store.registry import ModelEntry
from uws_store.tensor_bytes import bytes_of, from_rotated, rotated

GROUPS = VECTORS / "groups"
Json = dict[str, Any]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=0, max_size=64), width=st.sampled_from([16, 32, 64]))
def test_words_are_turned_and_turned_back(data: bytes, width: int) -> None:
    data = data[: len(data) // (width // 8) * (width // 8)]
    words = rotated(data, width=width)
    assert from_rotated(words).tobytes() == data
    for word, turned in zip(np.frombuffer(data, f"<u{width // 8}").tolist(), words.tolist(), strict=True):
        assert turned == (2 * word) % 2**width + word // 2 ** (width - 1)


def _write(folder: Path, members: dict[str, dict[str, torch.Tensor]]) -> Path:
    folder.mkdir(parents=True)
    for task, tensors in members.items():
        write_safetensors(folder / f"{task}.safetensors", tensors, {})
    return folder


def _family(folder: Path, *, seeds: int = 6, size: int = 96) -> tuple[list[dict[str, torch.Tensor]], Path]:
    """A zoo whose large tensor shares nothing, and takes 32 values only."""
    members = []
    for seed in range(seeds):
        random = torch.Generator().manual_seed(seed)
        grid = torch.randint(-16, 16, (size, size), generator=random) * 0.173
        members.append({"layer.weight": grid, "layer.bias": torch.randn(size, generator=random)})
    return members, _write(folder / "zoo", {f"t{i}": member for i, member in enumerate(members)})


def test_weights_of_few_values_are_stored_alone_and_exact_at_every_tier(tmp_path: Path) -> None:
    members, zoo = _family(tmp_path)
    registry = str(tmp_path / "registry")
    built = uws_store.build(zoo, family="grid", registry=registry, exact=True)
    for index, member in enumerate(members):
        tiers: tuple[Tier, ...] = ("compact", "exact")
        for tier in tiers:
            weights = uws_store.load_model("grid", f"t{index}", registry=registry, tier=tier)
            assert all(bytes_of(weights[name]) == bytes_of(tensor) for name, tensor in member.items())
    opened = uws_store.open_family("grid", registry=registry)
    model = opened.model(opened.resolve("t0"))
    assert model.document.private_groups == (0,)
    assert {source.kind for source in model.sources.values()} == {"private"}
    assert model.document.core is None
    assert model.document.rel_error == 0.0
    raw = 4 * sum(tensor.numel() for tensor in members[0].values())
    assert all(result.size_bytes < raw / 3 for result in built.models)
    assert uws_store.verify("grid", registry=registry).ok


def _centred(zoo: Path) -> PlanDocument:
    """A plan in which every tensor has a mean, whether it pays or not."""
    plan = api.plan(zoo)
    rows = tuple(row.model_copy(update={"centred": True, "ordered": False}) for row in plan.tensors)
    return plan.model_copy(update={"tensors": rows})


def _one_value(weights: dict[str, torch.Tensor], task: str) -> dict[str, object]:
    return {
        "metric": "first",
        "value": float(weights["layer.weight"][0, 0]),
        "higher_is_better": True,
        "n": 1,
    }


def test_the_control_of_what_is_stored_alone_is_the_family_mean(tmp_path: Path) -> None:
    """What shares nothing is stored alone; its control must not be the model itself."""
    members, zoo = _family(tmp_path)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="grid", registry=registry, exact=True, plan=_centred(zoo))
    opened = uws_store.open_family("grid", registry=registry)
    assert opened.model(opened.resolve("t0")).document.private_groups == (0,)
    means = {name: torch.stack([member[name] for member in members]).mean(0) for name in members[0]}
    lazy = opened.load("t0", tier="mean")
    whole = opened.load("t0", tier="mean").materialize()
    for name, mean in means.items():
        torch.testing.assert_close(lazy[name], mean, rtol=0.0, atol=0.5)
        assert not torch.allclose(lazy[name], members[0][name])
        assert torch.equal(whole[name], lazy[name])
        assert torch.equal(opened.load("t1", tier="mean")[name], lazy[name])
    verdict = uws_store.verify("grid", "t0", registry=registry, against=zoo, evaluate=_one_value)
    assert verdict.ok
    found = verdict.models[0]
    assert found.report.comparison is not None
    assert found.report.comparison.rel_error == 0.0
    assert found.report.comparison.mean_rel_error > 0.5
    original, mean_side = (found.scores[0].side(name) for name in ("original", "mean"))
    assert original is not None
    assert mean_side is not None
    assert original.value != mean_side.value


def test_a_zoo_that_shares_no_mean_has_zeros_for_a_control(tmp_path: Path) -> None:
    _, zoo = _family(tmp_path)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="grid", registry=registry, exact=True)
    control = uws_store.load_model("grid", "t0", registry=registry, tier="mean")
    assert not control["layer.weight"].any()
    comparison = uws_store.verify("grid", "t0", registry=registry, against=zoo).models[0].report.comparison
    assert comparison is not None
    assert comparison.mean_rel_error > 0.9


@pytest.mark.parametrize("task", ["mixed", "odd", "all"])
def test_both_readers_take_the_mean_for_private_groups_and_for_nothing_else_private(task: str) -> None:
    mine, other = ours(GROUPS / "registry", task, tier="mean"), theirs(GROUPS / "registry", task, tier="mean")
    assert mine.refused is None
    assert mine.tensors == other.tensors
    compact = ours(GROUPS / "registry", task).tensors
    document = read_document(model_folder(GROUPS / "registry", task))
    named = {record["name"] for record in document.get("private", [])}
    assert document["private_groups"]
    for name in mine.tensors:
        assert name not in named or mine.tensors[name] == compact[name]
    assert mine.tensors["embed.weight"] != compact["embed.weight"]


def test_who_asks_for_bits_gets_them_at_the_compact_tier(tmp_path: Path) -> None:
    _, zoo = _family(tmp_path)
    registry = str(tmp_path / "registry")
    built = uws_store.build(zoo, family="grid", registry=registry, exact=True, bits=4.0)
    opened = uws_store.open_family("grid", registry=registry)
    assert opened.model(opened.resolve("t0")).document.private_groups == ()
    assert all(result.bits_per_parameter < 4.5 for result in built.models)


def test_without_the_exact_tier_nothing_is_stored_alone(tmp_path: Path) -> None:
    _, zoo = _family(tmp_path)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="grid", registry=registry)
    opened = uws_store.open_family("grid", registry=registry)
    assert opened.model(opened.resolve("t0")).document.private_groups == ()


def test_a_group_stays_while_it_is_no_larger_than_asked() -> None:
    values = torch.arange(4096, dtype=torch.float32)
    tensors = [("F32", bytes_of(values))]
    stream = np.random.default_rng(0).integers(0, 256, 1 << 14).astype(np.uint32)
    assert cheaper_alone(tensors, [stream], overhead=0.0)
    assert not cheaper_alone(tensors, [stream], overhead=100.0)
    assert not cheaper_alone(tensors, [np.zeros(4096, np.uint32)], overhead=0.0)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_private_tensors_of_every_dtype_come_back(dtype: Any, tmp_path: Path) -> None:
    """Many like values, and every special one: NaN with a payload, infinities, both zeros, subnormals."""
    pattern = np.arange(4096, dtype=np.uint64) * (2**64 // 4096 + 1)
    words = (pattern >> np.uint64(64 - dtype.bits)).astype(f"<u{dtype.size_bytes}")
    special = torch.from_numpy(words.view(np.uint8).copy())
    if dtype.name == "BOOL":
        special = special & 1
    tensor = special.view(dtype.torch)
    members = {
        f"t{index}": {"shared": torch.ones(200_000), "own": tensor.roll(index) if dtype.bits < 16 else tensor}
        for index in range(3)
    }
    zoo = _write(tmp_path / "zoo", members)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry, exact=True)
    odd = {"shared": torch.zeros(200_000), "own": torch.cat([tensor, tensor])}
    write_safetensors(tmp_path / "odd.safetensors", odd, {})
    uws_store.add(tmp_path / "odd.safetensors", family="f", task="odd", registry=registry, exact=True)
    for task, member in {**members, "odd": odd}.items():
        weights = uws_store.load_model("f", task, registry=registry, tier="exact")
        assert bytes_of(weights["own"]) == bytes_of(member["own"])


def test_words_that_compress_leave_the_bytes_behind() -> None:
    likely = bytes_of(torch.ones(20_000))
    noise = np.random.default_rng(1).bytes(4096)
    arrays = pack_private([("F32", likely), ("U8", noise), ("I64", noise)])
    assert set(arrays) == {"private", "private32"}
    assert arrays["private"].record.length == 2 * len(noise)
    assert arrays["private32"].record.size_bytes < 1000


@dataclass(frozen=True)
class Damage:
    """An edit of the model document, or of its arrays."""

    name: str
    edit: Callable[[Json, Path], object]
    kind: str
    rule: str


def _values(name: str, change: Callable[[Any], Any]) -> Callable[[Json, Path], object]:
    return lambda document, folder: edit_values(folder, name, document[name], change)


DAMAGES = [
    Damage("a group of no basis", lambda d, _: d.update(private_groups=[1, 9]), "format/model", "R-MODEL-10"),
    Damage("a group twice", lambda d, _: d.update(private_groups=[1, 1]), "format/document", "R-MODEL-10"),
    Damage("groups that fall", lambda d, _: d.update(private_groups=[2, 1]), "format/document", "R-MODEL-10"),
    Damage("a negative group", lambda d, _: d.update(private_groups=[-1]), "format/document", "R-JSON-7"),
    Damage("another group", lambda d, _: d.update(private_groups=[2]), "format/model", "R-MODEL-3"),
    Damage("integers in a group", lambda d, _: d.update(dtypes=[["brain.weight", "I16"]]), "format/model", "R-MODEL-7"),
    Damage("no group", lambda d, _: d.update(private_groups=[]), "format/document", "R-MODEL-3"),
    Damage("no words", lambda d, _: d.pop("private32"), "format/document", "R-MODEL-3"),
    Damage("all groups, and a core", lambda d, _: d.update(private_groups=[0, 1, 2]), "format/model", "R-MODEL-3"),
    Damage("words of another width", lambda d, _: d["private32"].update(dtype="uint16"), "format/document", "R-ARRAY-2"),
    Damage("words without pages", lambda d, _: d["private32"].pop("page"), "format/document", "R-ARRAY-1"),
    Damage("a word changed", _values("private32", lambda v: v.__setitem__(0, v[0] ^ 1)), "format/tensor-digest", "R-DIGEST-4"),
    Damage("words turned the other way", _values("private32", lambda v: (v >> 2) | (v << 30)), "format/tensor-digest", "R-DIGEST-4"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_both_readers_refuse_damaged_groups(damage: Damage, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(GROUPS / "registry", registry)

    def edit(document: Json, folder: Path) -> None:
        damage.edit(document, folder)

    rewrite(registry, "mixed", model=edit)
    assert ours(registry, "mixed").refused == damage.kind
    assert theirs(registry, "mixed").refused == damage.rule


def test_a_core_where_every_group_is_private_is_refused(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(GROUPS / "registry", registry)

    def edit(document: Json, folder: Path) -> None:
        document["core"] = {**document["private16"], "dtype": "int16"}
        shutil.copytree(folder / "private16", folder / "core")

    rewrite(registry, "all", model=edit)
    assert ours(registry, "all").refused == "format/model"
    assert theirs(registry, "all").refused == "R-CORE-3"


def test_the_overhead_that_is_asked_for_decides(tmp_path: Path) -> None:
    _, zoo = _family(tmp_path)
    groups = {}
    for overhead in (0.0, 100.0):
        registry = str(tmp_path / str(overhead))
        uws_store.build(zoo, family="grid", registry=registry, exact=True, exact_overhead=overhead)
        opened = uws_store.open_family("grid", registry=registry)
        groups[overhead] = opened.model(opened.resolve("t0")).document.private_groups
    assert groups[0.0] != ()
    assert groups[100.0] == ()


def _entry(registry: str, task: str) -> ModelEntry:
    return uws_store.open_family("grid", registry=registry).resolve(task)


def _stored_groups(registry: str, task: str) -> tuple[int, ...]:
    opened = uws_store.open_family("grid", registry=registry)
    return opened.model(_entry(registry, task)).document.private_groups


def test_a_model_that_is_added_keeps_the_overhead_of_its_family(tmp_path: Path) -> None:
    _, zoo = _family(tmp_path)
    new = zoo / "t0.safetensors"
    for overhead, kept in ((100.0, ()), (None, (0,))):
        registry = str(tmp_path / str(overhead))
        uws_store.build(zoo, family="grid", registry=registry, exact=True, exact_overhead=overhead)
        uws_store.add(new, family="grid", task="as-built", registry=registry, exact=True)
        assert _stored_groups(registry, "as-built") == kept
        uws_store.add(new, family="grid", task="asked", registry=registry, exact=True, exact_overhead=0.0)
        assert _stored_groups(registry, "asked") == (0,)
        basis = uws_store.open_family("grid", registry=registry).model(_entry(registry, "t0")).basis
        written = dict(basis.document.build.options).get("exact-overhead")
        assert written == (str(overhead) if overhead is not None else None)


def test_an_extended_family_and_a_model_moved_onto_it_keep_the_overhead(tmp_path: Path) -> None:
    _, zoo = _family(tmp_path)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="grid", registry=registry, exact=True, exact_overhead=100.0)
    shutil.copytree(zoo, tmp_path / "more")
    for path in (tmp_path / "more").iterdir():
        path.rename(path.with_name("new-" + path.name))
    api.extend("grid", [tmp_path / "more"], registry=registry, exact=True)
    assert _stored_groups(registry, "new-t0") == ()
    api.rebase("grid", "t0", registry=registry)
    assert _entry(registry, "t0").version == 2
    assert _stored_groups(registry, "t0") == ()


@pytest.mark.parametrize("text", ["much", "nan", "-1", "inf"])
def test_a_basis_that_remembers_no_share_is_refused(text: str, tmp_path: Path) -> None:
    _, zoo = _family(tmp_path, seeds=2)
    with Members(scan_zoo(zoo)) as members:
        options = (("exact-overhead", text),)
        built = BasisBuilder(members, fidelity=DEFAULT_FIDELITY, options=options).build()
    with pytest.raises(uws_store.UwsError) as caught:
        overhead_of(built.basis)
    assert caught.value.kind == "format/document"
    assert overhead_of(built.basis, 0.25) == 0.25


@pytest.mark.parametrize("overhead", [-0.1, float("nan"), float("inf"), "0.1"])
def test_an_overhead_that_is_no_share_is_refused(overhead: Any, tmp_path: Path) -> None:
    _, zoo = _family(tmp_path)
    with pytest.raises(uws_store.UwsError) as caught:
        uws_store.build(zoo, family="grid", registry=str(tmp_path / "r"), exact=True, exact_overhead=overhead)
    assert caught.value.kind == "invalid-input/exact-overhead"
    assert not (tmp_path / "r").exists()
