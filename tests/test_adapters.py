"""Families of adapters, from folders in PEFT's layout to the bits that come back."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_support import (
    BASE,
    Weights,
    config_of,
    make_adapters,
    name_of,
    products,
    relative_error,
    write_adapter,
)
from cli_support import run_well
from safetensors.torch import save_file
from zoo_support import same_bits

from uws_store import add, build, load_model, verify
from uws_store.api import open_family, show
from uws_store.builder.packing import pack, unpack
from uws_store.builder.products import FactorPlace
from uws_store.builder.survey import TensorSurvey
from uws_store.checkpoint import open_checkpoint
from uws_store.errors import IncompatibleError, InvalidInputError
from uws_store.model import Tier


def read(folder: Path) -> Weights:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def loaded(registry: Path, family: str, task: str, tier: Tier = "compact") -> Weights:
    return load_model(family, task, registry=str(registry), tier=tier).materialize()


def form_of(registry: Path, family: str) -> str | None:
    basis = open_family(family, registry=str(registry)).basis()
    return dict(basis.document.build.options).get("form")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(tmp_path_factory.mktemp("adapters") / "zoo", models=8)


@pytest.fixture(scope="module")
def registry(zoo: Path) -> Path:
    """A family of eight adapters, with the exact tier."""
    build(zoo, family="f", registry=str(zoo.parent / "registry"), rel_error=0.05, exact=True)
    return zoo.parent / "registry"


def test_adapters_of_several_ranks_are_one_family(zoo: Path, registry: Path) -> None:
    for task, rank in (("task-00", 4), ("task-01", 8)):
        weights, original = loaded(registry, "f", task), read(zoo / task)
        assert {name: (t.shape, t.dtype) for name, t in weights.items()} == {
            name: (t.shape, t.dtype) for name, t in original.items()
        }
        assert weights[name_of("layers.0.q_proj", "A")].shape == (rank, 32)
        assert 0.01 < relative_error(weights, original) <= 0.05


def test_compact_factors_are_balanced_and_not_the_original_ones(zoo: Path, registry: Path) -> None:
    weights, original = loaded(registry, "f", "task-01"), read(zoo / "task-01")
    for module in products(weights):
        b, a = (weights[name_of(module, letter)] for letter in "BA")
        torch.testing.assert_close(b.norm(), a.norm(), rtol=0.1, atol=0)
        assert float((a - original[name_of(module, "A")]).norm() / a.norm()) > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("form", ["balanced", "plain"])
def test_exact_gives_the_original_factors_bit_for_bit(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    zoo = make_adapters(tmp_path / "zoo", dtype=dtype, one_start=form == "plain", models=6)
    build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=0.1, exact=True)
    assert form_of(tmp_path / "r", "f") == form
    for task in ("task-00", "task-03"):
        original = read(zoo / task)
        weights = loaded(tmp_path / "r", "f", task, "exact")
        assert all(same_bits(weights[name], original[name]) for name in original)


def test_the_error_on_record_is_that_of_the_product(zoo: Path, registry: Path) -> None:
    family = open_family("f", registry=str(registry))
    model = family.model(family.resolve("task-02"))
    weights, original = loaded(registry, "f", "task-02"), read(zoo / "task-02")
    assert model.document.rel_error == pytest.approx(relative_error(weights, original), rel=1e-6)
    found, wanted = products(weights), products(original)
    recorded = dict(zip(model.sources, model.document.error_list(), strict=True))
    for module, product in wanted.items():
        error = float((found[module] - product).norm() / product.norm())
        for letter in "AB":
            assert recorded[name_of(module, letter)] == pytest.approx(error, rel=2e-3)


def test_verification_compares_products_and_finds_every_original_safe_to_delete(
    zoo: Path, registry: Path
) -> None:
    result = verify("f", registry=str(registry), against=zoo)
    assert result.ok
    assert all(model.safe_to_delete for model in result.models)
    comparison = result.models[0].report.comparison
    assert comparison is not None
    assert comparison.rel_error < 0.05 < comparison.mean_rel_error


def test_the_gauge_does_not_change_what_is_stored(tmp_path: Path) -> None:
    """The same products behind other gauges cost the same, since the balanced form does not know them."""

    def turn(_: int, weights: Weights) -> None:
        for module in products(weights):
            a, b = name_of(module, "A"), name_of(module, "B")
            weights[a], weights[b] = weights[a] * 16, weights[b] / 16

    sizes = []
    for name, change in (("as-is", None), ("turned", turn)):
        zoo = make_adapters(tmp_path / name, models=6, change=change)
        result = build(zoo, family=name, registry=str(tmp_path / "r"), rel_error=0.05)
        sizes.append(sum(model.compact_bytes for model in result.models))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_one_random_start_is_recognised_and_its_mean_taken_away(tmp_path: Path) -> None:
    zoo = make_adapters(tmp_path / "zoo", models=10, one_start=True, ranks=(8,))
    result = build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=0.05)
    assert any("10 of 10 adapters have nearly one factor A" in remark for remark in result.remarks)
    assert form_of(tmp_path / "r", "f") == "plain"


def test_one_frozen_factor_stands_in_the_basis_once(tmp_path: Path) -> None:
    start = torch.randn(8, 32, generator=torch.Generator().manual_seed(5))

    def freeze(_: int, weights: Weights) -> None:
        for module in products(weights):
            weights[name_of(module, "A")] = start.clone()

    zoo = make_adapters(tmp_path / "zoo", models=6, ranks=(8,), change=freeze)
    build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=0.05, exact=True)
    family = open_family("f", registry=str(tmp_path / "r"))
    rows = family.basis().table
    assert {row.mode for name, row in rows.items() if "lora_A" in name} == {"shared"}
    assert {row.mode for name, row in rows.items() if "lora_B" in name} == {"coded"}
    original = read(zoo / "task-00")
    weights = loaded(tmp_path / "r", "f", "task-00", "exact")
    assert all(same_bits(weights[name], original[name]) for name in original)


def test_equal_adapters_are_stored_once(tmp_path: Path) -> None:
    zoo = make_adapters(tmp_path / "zoo", models=6)
    shutil.copytree(zoo / "task-00", zoo / "copy")
    build(zoo, family="f", registry=str(tmp_path / "r"))
    family = open_family("f", registry=str(tmp_path / "r"))
    assert family.resolve("copy").digest == family.resolve("task-00").digest


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_an_adapter_of_any_rank_up_to_the_familys_is_added(rank: int, zoo: Path, tmp_path: Path) -> None:
    build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=0.05)
    newcomer = make_adapters(tmp_path / "new", models=1, ranks=(rank,), seed=3) / "task-00"
    result = add(newcomer, family="f", task="new", registry=str(tmp_path / "r"), exact=True)
    assert result.model.rel_error <= 0.05
    weights = loaded(tmp_path / "r", "f", "new", "exact")
    assert all(same_bits(weights[name], tensor) for name, tensor in read(newcomer).items())
    assert relative_error(loaded(tmp_path / "r", "f", "new"), read(newcomer)) <= 0.05


def test_a_rank_above_the_familys_is_refused(zoo: Path, registry: Path, tmp_path: Path) -> None:
    newcomer = make_adapters(tmp_path / "new", models=1, ranks=(9,)) / "task-00"
    with pytest.raises(IncompatibleError) as caught:
        add(newcomer, family="f", registry=str(registry))
    assert caught.value.kind == "incompatible/architecture"


def test_adapters_of_another_base_model_are_refused(zoo: Path, registry: Path, tmp_path: Path) -> None:
    config = config_of(4, base_model_name_or_path="org/other")
    other = write_adapter(tmp_path / "other", read(zoo / "task-00"), config)
    with pytest.raises(IncompatibleError) as caught:
        add(other, family="f", registry=str(registry))
    assert caught.value.kind == "incompatible/base-model"
    mixed = tmp_path / "zoo"
    shutil.copytree(zoo, mixed)
    shutil.copytree(other, mixed / "other")
    with pytest.raises(IncompatibleError) as caught:
        build(mixed, family="g", registry=str(tmp_path / "r"))
    assert caught.value.kind == "incompatible/base-model"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "text", ["{", "[" * 50_000, '{"peft_type": "LORA", "r": "8"}', '{"base_model_name_or_path": "../x"}']
)
def test_a_hostile_configuration_is_refused_before_anything_is_stored(
    text: str, zoo: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "zoo"
    shutil.copytree(zoo, bad)
    (bad / "task-03" / "adapter_config.json").write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        build(bad, family="f", registry=str(tmp_path / "r"))
    assert caught.value.kind == "invalid-input/adapter-config"
    assert not (tmp_path / "r").exists()


def test_what_cannot_be_balanced_is_kept_and_the_rest_is_coded(tmp_path: Path) -> None:
    q, v = "layers.0.q_proj", "layers.0.v_proj"

    def spoil(index: int, weights: Weights) -> None:
        if index == 1:
            weights[name_of(q, "A")][0, 0] = math.nan
        if index == 2:
            weights[name_of(q, "B")].zero_()  # as before its training
        if index == 4:
            weights[name_of(v, "A")] = weights[name_of(v, "A")].to(torch.float16)

    zoo = make_adapters(tmp_path / "zoo", models=8, change=spoil)
    build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=0.05, exact=True)
    for task in ("task-01", "task-02", "task-04", "task-05"):
        original = read(zoo / task)
        weights = loaded(tmp_path / "r", "f", task, "exact")
        assert all(same_bits(weights[name], original[name]) for name in original)
    family = open_family("f", registry=str(tmp_path / "r"))
    kept = family.model(family.resolve("task-01")).document.private
    assert {record.name for record in kept} == {name_of(q, "A"), name_of(q, "B")}
    untrained, trained = (products(loaded(tmp_path / "r", "f", task))[q] for task in ("task-02", "task-05"))
    assert float(untrained.norm()) < 1e-4 * float(trained.norm())
    compact = loaded(tmp_path / "r", "f", "task-04")
    assert compact[name_of(v, "A")].dtype == torch.float16


def test_files_of_other_programs_are_families_too(tmp_path: Path) -> None:
    """Other names, ranks 1 and 4, float16 beside float32, extra tokens and the alpha of each layer."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    source = torch.Generator().manual_seed(1)
    for index in range(6):
        rank, dtype = (1, torch.float32) if index % 2 else (4, torch.float16)
        tensors = {}
        for layer in range(3):
            tensors[f"unet:{layer}:down"] = torch.randn(rank, 40, generator=source).to(dtype)
            tensors[f"unet:{layer}:up"] = (torch.randn(30, rank, generator=source) * 0.1).to(dtype)
            tensors[f"unet:{layer}.alpha"] = torch.tensor(float(index + 1))
        if index == 3:
            tensors["<s1>"] = torch.randn(24, generator=source)
        save_file(tensors, zoo / f"style-{index}.safetensors", metadata={"unet:0:rank": str(rank)})
    build(zoo, family="styles", registry=str(tmp_path / "r"), exact=True)
    for path in zoo.iterdir():
        original, weights = read(path), loaded(tmp_path / "r", "styles", path.stem, "exact")
        assert all(same_bits(weights[name], original[name]) for name in original)
        compact = loaded(tmp_path / "r", "styles", path.stem)
        assert all(same_bits(compact[name], original[name]) for name in original if "alpha" in name)
    assert loaded(tmp_path / "r", "styles", "style-1")["unet:0:up"].shape == (30, 1)


def test_workers_in_other_processes_write_the_same_bytes(tmp_path: Path) -> None:
    zoo = make_adapters(tmp_path / "zoo", models=5)
    digests = []
    for name, executor, workers in (("one", "serial", 1), ("two", "processes", 2)):
        build(zoo, family="f", registry=str(tmp_path / name), executor=executor, workers=workers)
        family = open_family("f", registry=str(tmp_path / name))
        digests.append([family.basis().digest, *(family.resolve(task).digest for task in family.tasks())])
    assert digests[0] == digests[1]


def test_the_command_line_builds_adds_shows_and_verifies(zoo: Path, tmp_path: Path) -> None:
    place = ["--registry", str(tmp_path / "r")]
    base = tmp_path / "base.safetensors"
    save_file({"w": torch.ones(3)}, base)
    run_well("build", zoo, "--family", "f", "--base", base, "--exact", *place)
    newcomer = make_adapters(tmp_path / "new", models=1, ranks=(2,), seed=9) / "task-00"
    run_well("add", newcomer, "--family", "f", "--task", "new", *place)
    assert BASE in run_well("show", "f", *place).stdout
    shown = run_well("show", "f/new", *place).stdout
    assert BASE in shown
    assert "rank 2" in shown
    (model,) = run_well("show", "f/new", "--json", *place).document["families"][0]["models"]
    assert model["adapter"]["ranks"] == [2]
    with open_checkpoint(base) as checkpoint:
        assert model["adapter"]["base_sha256"] == checkpoint.sha256()
    run_well("verify", "f", "--against", zoo, *place)
    _, (summary,) = show("f", "task-01", registry=str(tmp_path / "r"))
    assert summary.adapter is not None
    assert summary.adapter.ranks == (8,)
    assert summary.adapter.products == 3


def test_what_is_kept_of_an_interrupted_build_knows_products() -> None:
    survey = TensorSurvey(
        "a", (4, 9), "F32", "coded", None, ("t",), 1.0, 0.5, FactorPlace(("b", "a"), "right", 4), 2.0
    )
    assert unpack(pack(survey), TensorSurvey) == survey
    with pytest.raises(ValueError, match="TensorSurvey"):
        unpack(pack(replace(survey, place=FactorPlace(("b", "a"), "up", 4))), TensorSurvey)  # type: ignore[arg-type]
