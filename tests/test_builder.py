"""Building and encoding: fidelity that was asked for, tensors of every kind, the planner's choices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.builder import BuiltBasis, Fidelity, Members, build_basis, encode_model, search
from uws_store.checkpoint import open_checkpoint, scan_zoo
from uws_store.dtypes import DTYPES
from uws_store.errors import FidelityError, InvalidInputError
from uws_store.model import Model
from uws_store.plan import choose_sides, step_shift
from uws_store.storage import MemoryStorage

Kind = Literal["bits", "rel-error", "change-error"]
WIDE = {"a.weight": (96, 64), "b.weight": (64, 96), "norm.weight": (64,), "norm.bias": (64,)}


def _built(
    zoo: Path, *, kind: Kind = "change-error", value: float = 0.1, expect: int | None = None
) -> BuiltBasis:
    with Members(scan_zoo(zoo)) as members:
        return build_basis(members, fidelity=Fidelity(kind, value), expect_models=expect)


@pytest.mark.parametrize("bits", [1.5, 3.0, 6.0])
def test_bits_are_met_metadata_and_all(tmp_path: Path, bits: float) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes={"a.weight": (256, 192), "b.weight": (192, 256)})
    result = uws_store.build(zoo, family="f", registry=str(tmp_path / "r"), bits=bits)
    mean = sum(model.bits_per_parameter for model in result.models) / len(result.models)
    assert 0.95 * bits <= mean <= 1.001 * bits


@pytest.mark.parametrize("error", [0.1, 0.01, 0.0001])
def test_relative_error_is_met_by_every_model(tmp_path: Path, error: float) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE)
    result = uws_store.build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=error)
    assert all(error / 4 < model.rel_error <= error for model in result.models)
    stranger = make_zoo(tmp_path / "more", shapes=WIDE, models=2, seed=9)
    added = uws_store.add(
        stranger / "task-00.safetensors", family="f", task="new", registry=str(tmp_path / "r")
    )
    assert added.model.rel_error <= error, "a promise holds for models that are added later"


def test_the_same_zoo_gives_the_same_bytes(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE)
    first, second = _built(zoo), _built(zoo)
    assert first.basis.digest == second.basis.digest
    assert first.objects == second.objects
    with open_checkpoint(zoo / "task-00.safetensors") as source:
        assert (
            encode_model(first.basis, source, exact=True).digest
            == encode_model(second.basis, source, exact=True).digest
        )


def test_a_shared_subspace_gets_factors_and_independent_networks_get_none(tmp_path: Path) -> None:
    shared = _built(make_zoo(tmp_path / "shared", shapes=WIDE, models=12), expect=1000)
    assert any(fit.left or fit.right for fit in shared.fits)

    def scramble(index: int, weights: dict[str, torch.Tensor]) -> None:
        source = torch.Generator().manual_seed(100 + index)
        for name, value in weights.items():
            weights[name] = torch.randn(value.shape, generator=source)

    independent = _built(
        make_zoo(tmp_path / "independent", shapes=WIDE, models=12, change=scramble), expect=1000
    )
    assert not any(fit.left or fit.right for fit in independent.fits)


def test_the_planner_charges_factors_to_the_models_they_serve() -> None:
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    left, right = normal(48, 3), normal(3, 48)
    changes = [left @ torch.diag(normal(3)) @ right + 0.02 * normal(48, 48) for _ in range(12)]
    few = choose_sides(changes, step=0.05, models=1)
    many = choose_sides(changes, step=0.05, models=10_000)
    assert many.candidate.left or many.candidate.right
    assert many.basis_bits > few.basis_bits
    assert many.bits_per_model < few.bits_per_model


def test_without_models_to_keep_out_no_factor_is_chosen() -> None:
    changes = [torch.ones(8, 8), -torch.ones(8, 8)]
    choice = choose_sides(changes, step=0.1, models=100)
    assert choice.candidate.left is None
    assert choice.candidate.right is None


def test_steps_follow_the_change_and_rare_tensors_are_finer() -> None:
    assert step_shift(own_energy=4.0, own_parameters=4, energy=4.0, parameters=4) == 0
    assert step_shift(own_energy=4e6, own_parameters=10**6, energy=8e6, parameters=2 * 10**6) == 0
    small = step_shift(own_energy=1.0, own_parameters=10**6, energy=65.0, parameters=2 * 10**6)
    assert small == 3
    assert step_shift(own_energy=4e-6, own_parameters=1, energy=4.0, parameters=10**6) > 8


def _every_kind(index: int, weights: dict[str, torch.Tensor]) -> None:
    source = torch.Generator().manual_seed(50 + index)
    base = torch.linspace(-1, 1, 24).reshape(4, 6)
    for dtype in DTYPES.values():
        if dtype.is_float:
            weights[f"float.{dtype.name}"] = (base + 0.1 * torch.randn(4, 6, generator=source)).to(
                dtype.torch
            )
    weights["scalar"] = torch.tensor(float(index))
    weights["empty"] = torch.zeros(0, 5)
    weights["flag"] = torch.tensor([True, False, index % 2 == 0])
    weights["steps"] = torch.tensor(index, dtype=torch.int64)
    weights["constant"] = torch.full((300,), 0.5)
    weights["conv"] = torch.randn(8, 3, 3, 3, generator=source)
    weights["bn.running_var"] = torch.rand(6, generator=source) * 1e-3
    weights["bn.running_mean"] = torch.randn(6, generator=source)
    holes = torch.randn(5, generator=source)
    if index == 1:
        holes[2] = torch.nan
        holes[3] = -torch.inf
    weights["holes"] = holes
    weights["head"] = torch.randn(2 + index % 3, 7, generator=source)
    weights["zeros"] = torch.zeros(64) if index else -torch.zeros(64)
    if index == 2:
        weights["extra"] = torch.arange(3.0)
    if index == 3:
        del weights["conv"]


def test_every_kind_of_tensor_is_bit_identical_at_the_exact_tier(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=6, change=_every_kind, shapes={"body": (80, 90)})
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="all", registry=registry, exact=True)
    for path in sorted(zoo.glob("*.safetensors")):
        original = load_file(path)
        exact = uws_store.load_model("all", path.stem, registry=registry, tier="exact").materialize()
        assert set(exact) == set(original)
        assert [name for name in original if not same_bits(exact[name], original[name])] == []
    verdict = uws_store.verify("all", registry=registry, against=zoo)
    assert verdict.ok
    assert all(model.safe_to_delete for model in verdict.models)


def test_lossy_tiers_keep_statistics_integers_and_non_finite_values_exact(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=6, change=_every_kind, shapes={"body": (80, 90)})
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="all", registry=registry, change_error=0.9)
    for index in range(6):
        original = load_file(zoo / f"task-{index:02d}.safetensors")
        compact = uws_store.load_model("all", f"task-{index:02d}", registry=registry).materialize()
        kept = ["bn.running_var", "bn.running_mean", "steps", "flag", "empty", "constant", "head"]
        kept += ["holes"] if index == 1 else []
        for name in kept:
            assert same_bits(compact[name], original[name]), name
        assert all(
            bool(torch.isfinite(value.double()).all()) for name, value in compact.items() if name != "holes"
        )
        assert bool((compact["bn.running_var"] > 0).all())


def test_what_all_models_share_costs_a_model_nothing(tmp_path: Path) -> None:
    def freeze(index: int, weights: dict[str, torch.Tensor]) -> None:
        weights["frozen"] = torch.linspace(0, 1, 100_000)

    plain = _built(make_zoo(tmp_path / "plain", shapes=WIDE))
    frozen = _built(make_zoo(tmp_path / "frozen", shapes=WIDE, change=freeze))
    sizes = []
    for built, name in ((plain, "plain"), (frozen, "frozen")):
        with open_checkpoint(tmp_path / name / "task-00.safetensors") as source:
            sizes.append(encode_model(built.basis, source).compact_bytes)
    assert sizes[1] - sizes[0] < 100


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    def tie(index: int, weights: dict[str, torch.Tensor]) -> None:
        weights["embed.weight"] = weights["a.weight"] * 2
        weights["head.weight"] = weights["embed.weight"].clone()

    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, change=tie)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="tied", registry=registry, exact=True)
    weights = uws_store.load_model("tied", "task-00", registry=registry)
    assert weights["embed.weight"] is weights["head.weight"]
    # A model that unties them is added and keeps its own.
    untied = load_file(zoo / "task-00.safetensors")
    untied["head.weight"] = untied["head.weight"] + 1
    save_file(untied, tmp_path / "untied.safetensors")
    result = uws_store.add(tmp_path / "untied.safetensors", family="tied", registry=registry, exact=True)
    assert any("not tied" in notice for notice in result.model.notices)
    exact = uws_store.load_model("tied", "untied", registry=registry, tier="exact").materialize()
    assert all(same_bits(exact[name], untied[name]) for name in untied)


def test_models_of_other_dtypes_join_a_family(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        weights = {name: value.to(dtype) for name, value in load_file(zoo / "task-01.safetensors").items()}
        path = tmp_path / f"as-{str(dtype).split('.')[1]}.safetensors"
        save_file(weights, path)
        uws_store.add(path, family="f", registry=registry, exact=True)
        exact = uws_store.load_model("f", path.stem, registry=registry, tier="exact").materialize()
        assert all(same_bits(exact[name], weights[name]) for name in weights)


@pytest.mark.parametrize("value", [3e10, 1e30, 3e38])
def test_values_far_out_of_scale_are_kept_exact_and_loaded(tmp_path: Path, value: float) -> None:
    registry = str(tmp_path / "registry")
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE)
    uws_store.build(zoo, family="f", registry=registry)
    weights = load_file(zoo / "task-00.safetensors")
    weights["a.weight"][3, 4] = value
    save_file(weights, tmp_path / "outlier.safetensors")
    uws_store.add(tmp_path / "outlier.safetensors", family="f", registry=registry, exact=True)
    for tier in ("compact", "exact"):
        found = uws_store.load_model("f", "outlier", registry=registry, tier=tier)["a.weight"]
        assert float(found[3, 4]) == pytest.approx(value, rel=1e-3)
    assert same_bits(found, weights["a.weight"])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["bits", "rel-error", "change-error"]),
    value=st.floats(0.001, 0.9),
)
def test_what_was_digested_is_what_is_decoded(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: Kind, value: float
) -> None:
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"), models=5, seed=seed)
    built = _built(zoo, kind=kind, value=value + (26 if kind == "bits" else 0))
    storage = MemoryStorage("model")
    with open_checkpoint(zoo / "task-02.safetensors") as source:
        encoded = encode_model(built.basis, source, exact=True)
    for path, data in encoded.objects.items():
        storage.put_if_absent(f"m/{path}", data)
    model = Model.open(storage, "m", digest=encoded.digest, basis=built.basis)
    original = load_file(zoo / "task-02.safetensors")
    for name in original:
        assert same_bits(model.tensor(name, tier="exact", device=torch.device("cpu")), original[name])


def test_bits_that_would_not_pay_for_the_metadata_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FidelityError) as caught:
        uws_store.build(make_zoo(tmp_path / "zoo"), family="f", registry=str(tmp_path / "r"), bits=1.0)
    assert caught.value.kind == "fidelity/bits"


@pytest.mark.parametrize(
    ("kind", "value"), [("bits", 0.0), ("bits", -1.0), ("rel-error", 1.5), ("change-error", float("nan"))]
)
def test_impossible_fidelities_are_refused(kind: Kind, value: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Fidelity(kind, value)
    assert caught.value.kind == "invalid-input/fidelity"


def test_one_member_of_huge_norm_stays_out_of_the_fit_and_comes_back(tmp_path: Path) -> None:
    def huge(index: int, weights: dict[str, torch.Tensor]) -> None:
        if index == 3:
            weights["a.weight"] = weights["a.weight"] * 3e10

    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, change=huge)
    registry = str(tmp_path / "registry")
    result = uws_store.build(zoo, family="f", registry=registry, exact=True)
    without = uws_store.build(make_zoo(tmp_path / "plain", shapes=WIDE), family="g", registry=registry)
    ordinary = {model.task: model for model in without.models}
    for model in result.models:
        if model.task != "task-03":
            assert model.rel_error < 1.2 * ordinary[model.task].rel_error, "nobody else is worse for it"
    original = load_file(zoo / "task-03.safetensors")
    exact = uws_store.load_model("f", "task-03", registry=registry, tier="exact").materialize()
    assert all(same_bits(exact[name], original[name]) for name in original)
    with Members(scan_zoo(zoo)) as members:
        list(members.survey())
        assert dict(members.outliers) == {"task-03": ("a.weight",)}


def test_duplicates_cost_no_object(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE)
    (zoo / "copy.safetensors").write_bytes((zoo / "task-00.safetensors").read_bytes())
    registry = str(tmp_path / "registry")
    result = uws_store.build(zoo, family="f", registry=registry)
    summary, models = uws_store.show("f", registry=registry)
    digests = {model.task: model.digest for model in models}
    assert digests["copy"] == digests["task-00"]
    assert summary.models_bytes == sum({model.digest: model.size_bytes for model in models}.values())
    assert len(result.models) == 9


@pytest.mark.parametrize("kind", ["bits", "change-error"])
def test_the_search_tries_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["bits", "change-error"]
) -> None:
    searches: list[list[float]] = []
    whole = search._scorer

    def scorer(*arguments: Any, **more: Any) -> Callable[[float], float]:
        tried: list[float] = []
        searches.append(tried)
        score = whole(*arguments, **more)

        def noted(step: float) -> float:
            tried.append(step)
            return score(step)

        return noted

    monkeypatch.setattr(search, "_scorer", scorer)
    _built(make_zoo(tmp_path / "zoo", shapes=WIDE), kind=kind, value=4.0 if kind == "bits" else 0.1)
    assert searches
    assert all(len(tried) == len(set(tried)) > 1 for tried in searches)
