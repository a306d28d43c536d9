"""The independent reader against the package: families that were built and added to, and the arithmetic on its own."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import independent_arithmetic
import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from independent_documents import KINDS, Refusal
from independent_reader import Tensor, read_model

from uws_store import LazyStateDict, add, build, load_model
from uws_store.basis import TensorBasis
from uws_store.canonical import Side, Step, round_to_dtype
from uws_store.checkpoint import open_checkpoint, write_safetensors
from uws_store.dtypes import DTYPES, dtype_named
from uws_store.metadata.basis import TensorRecord
from uws_store.model import Tier
from uws_store.residual import apply_residual, residual_classes, residual_of
from uws_store.subspace import QuantisedSide, side_from_integers
from uws_store.tensor_bytes import bytes_of

FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_float]
TASKS = 10


def member(
    index: int, rng: np.random.Generator, shared: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, torch.Tensor]:
    """One network of a family with every kind of tensor a checkpoint may hold."""

    def near(name: str, *, noise: float = 0.02) -> torch.Tensor:
        base = shared[name]
        return torch.from_numpy(np.asarray(base + noise * rng.standard_normal(base.shape)))

    # Changes that lie in a subspace on both sides, so that factors pay for themselves.
    inner = rng.standard_normal((3, 3))
    wide = shared["wide"] + 0.1 * (shared["left"] @ inner @ shared["right"])
    tensors = {
        "wide.weight": torch.from_numpy(wide).to(torch.float32),
        "conv.weight": near("conv").to(torch.float32),
        "double.weight": near("double"),
        "half.weight": near("half").to(torch.float16),
        "brain.weight": near("brain").to(torch.bfloat16),
        "e4m3.weight": near("small").to(torch.float32).to(torch.float8_e4m3fn),
        "e5m2.weight": near("small").to(torch.float32).to(torch.float8_e5m2),
        "bias": near("bias").to(torch.float32),
        "scale": near("scale").to(torch.float32),
        "empty": torch.zeros(0, 5),
        "position_ids": torch.arange(9).reshape(1, 9),
        "mask": torch.tensor([True, False, True]),
        "counter": torch.tensor(index),
        "norm.running_var": near("bias").abs().to(torch.float32),
    }
    tensors["head.weight"] = tensors["wide.weight"].clone()
    if index == 3:
        tensors["conv.weight"][0, 0, 0, 0] = math.nan
        tensors["half.weight"][1, 1] = math.inf
    if index == 4:
        tensors["bias"] = tensors["bias"][:-1].clone()
        tensors["extra"] = torch.ones(2, 2, dtype=torch.int16)
        tensors["brain.weight"] = tensors["brain.weight"].to(torch.float32)
    if index == 5:
        del tensors["e5m2.weight"]
        tensors["bias"][:4] = torch.tensor([0.0, -0.0, 1e-42, 3e38])
    return tensors


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry built from eight of ten members, two of which were added later; the sources beside it."""
    folder = tmp_path_factory.mktemp("family")
    rng = np.random.default_rng(7)
    shapes = {"wide": (130, 24), "conv": (6, 3, 3, 3), "double": (7, 5), "half": (9, 11), "brain": (16, 12)}
    shared = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    shared |= {
        "small": rng.standard_normal((10, 6)),
        "bias": rng.standard_normal(33),
        "scale": rng.standard_normal(()),
    }
    shared |= {"left": rng.standard_normal((130, 3)), "right": rng.standard_normal((3, 24))}
    for name in ("zoo", "later"):
        (folder / name).mkdir()
    for index in range(TASKS):
        place = folder / ("zoo" if index < 8 else "later") / f"task-{index}.safetensors"
        write_safetensors(place, member(index, rng, shared))
    registry = str(folder / "registry")
    build(folder / "zoo", family="all", registry=registry, exact=True)
    for index in (8, 9):
        path = folder / "later" / f"task-{index}.safetensors"
        add(path, family="all", registry=registry, exact=index == 8)
    return folder


def as_tensors(weights: LazyStateDict) -> dict[str, Tensor]:
    made = weights.materialize()
    return {
        name: Tensor(weights.model.sources[name].dtype.name, tuple(tensor.shape), bytes_of(tensor))
        for name, tensor in made.items()
    }


@pytest.mark.parametrize("tier", ["compact", "mean"])
@pytest.mark.parametrize("index", range(TASKS))
def test_both_readers_give_the_same_bits(index: int, tier: Tier, family: Path) -> None:
    weights = load_model("all", f"task-{index}", registry=str(family / "registry"), tier=tier)
    assert read_model(family / "registry", "all", f"task-{index}", tier=tier) == as_tensors(weights)


@pytest.mark.parametrize("index", range(TASKS - 1))
def test_the_exact_tier_has_the_bytes_of_the_source(index: int, family: Path) -> None:
    found = read_model(family / "registry", "all", f"task-{index}", tier="exact")
    folder = "zoo" if index < 8 else "later"
    with open_checkpoint(family / folder / f"task-{index}.safetensors") as source:
        wanted = {
            name: Tensor(info.dtype.name, info.shape, bytes_of(source.read(name)))
            for name, info in source.tensors.items()
        }
    assert found == wanted


def test_the_exact_tier_is_refused_where_it_was_not_stored(family: Path) -> None:
    with pytest.raises(Refusal) as caught:
        read_model(family / "registry", "all", "task-9", tier="exact")
    assert caught.value.rule == "R-TIER-2"


def test_the_family_uses_factors_and_every_mode(family: Path) -> None:
    document = load_model("all", "task-0", registry=str(family / "registry")).model.basis.document
    assert {row.mode for row in document.tensors} == {"coded", "shared", "private", "tied"}
    assert any(row.left or row.right for row in document.tensors)


def test_the_independent_reader_imports_nothing_of_the_package() -> None:
    allowed = {
        "base64", "collections.abc", "contextlib", "dataclasses", "fractions", "hashlib", "json", "math", "pathlib", "re",
        "struct", "tempfile", "typing", "warnings",
        "numpy", "numpy.typing", "zarr", "__future__", "sys",
    }  # fmt: skip
    modules = {path.stem: path for path in Path(__file__).parent.glob("independent_*.py")}
    assert {"independent_reader", "independent_basis", "independent_signatures"} <= modules.keys()
    for path in modules.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert found <= allowed | modules.keys()
        assert found > {"__future__"}


# --- the arithmetic, number by number -------------------------------------------------------------------------------


def as_real(value: int, exponent: int) -> float:
    return math.ldexp(value, exponent)


@given(
    name=st.sampled_from(FLOATS),
    value=st.integers(-(2**53) + 1, 2**53 - 1),
    exponent=st.integers(-334, 256) | st.integers(-170, -40) | st.integers(-60, 10),
)
def test_rounding_agrees_on_every_number(name: str, value: int, exponent: int) -> None:
    mine = round_to_dtype(torch.tensor([as_real(value, exponent)], dtype=torch.float64), dtype_named(name))
    assert bytes_of(mine) == independent_arithmetic.round_to(value, exponent, name)


@given(name=st.sampled_from([name for name in FLOATS if name != "F64"]), data=st.data())
def test_rounding_agrees_at_every_tie(name: str, data: st.DataObject) -> None:
    """A number of the type, and half of its last place above and beside that."""
    kind = KINDS[name]
    significand = data.draw(st.integers(1 << (kind.precision - 1), (1 << kind.precision) - 1))
    least = kind.min_exponent - 2 * kind.precision - 2
    exponent = data.draw(st.integers(least, least + 60) | st.integers(-20, 20) | st.integers(90, 130))
    value = data.draw(st.sampled_from([-1, 1])) * (4 * significand + data.draw(st.integers(-2, 2)))
    mine = round_to_dtype(torch.tensor([as_real(value, exponent)], dtype=torch.float64), dtype_named(name))
    assert bytes_of(mine) == independent_arithmetic.round_to(value, exponent, name)


def test_the_dtype_tables_agree() -> None:
    assert {name: dtype.size_bytes for name, dtype in DTYPES.items()} == {
        n: kind.size for n, kind in KINDS.items()
    }
    for name, dtype in DTYPES.items():
        assert dtype.precision == KINDS[name].precision
        if dtype.is_float:
            assert dtype.min_exponent == KINDS[name].min_exponent
            largest = torch.tensor([dtype.max_finite], dtype=torch.float64).to(dtype.torch)
            assert int.from_bytes(bytes_of(largest), sys.byteorder) == KINDS[name].largest


@given(name=st.sampled_from(FLOATS), seed=st.integers(0, 2**32 - 1))
def test_residuals_agree_on_any_bits(name: str, seed: int) -> None:
    """Sources of any bits, NaN too: what the type is does not matter to the residual."""
    dtype = dtype_named(name)
    rng = np.random.default_rng(seed)
    source, prediction = (
        torch.from_numpy(rng.integers(0, 256, 6 * dtype.size_bytes, dtype=np.uint8)).view(dtype.torch)
        for _ in range(2)
    )
    residual = residual_of(source, prediction, dtype)
    assert independent_arithmetic.correct(bytes_of(prediction), residual, name) == bytes_of(source)
    assert bytes_of(apply_residual(prediction, residual, dtype)) == bytes_of(source)


@given(name=st.sampled_from(FLOATS), value=st.integers(-(2**20), 2**20), exponent=st.integers(-160, 20))
def test_the_classes_of_residuals_agree(name: str, value: int, exponent: int) -> None:
    prediction = round_to_dtype(
        torch.tensor([as_real(value, exponent)], dtype=torch.float64), dtype_named(name)
    )
    (mine,) = residual_classes(prediction, 0)
    (other,) = independent_arithmetic.exponents(bytes_of(prediction), name)
    assert int(mine) == (-32768 if other is None else other)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    blocks=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    ranks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    widest=st.sampled_from([1, 40, 2**15, 2**27]),
    exponent=st.integers(-200, 100),
    mean_grid=st.integers(-256, 256) | st.integers(0, 30),
)
def test_what_the_encoder_holds_to_be_exact_is_exact(
    seed: int,
    size: tuple[int, int],
    blocks: tuple[int, int],
    ranks: tuple[int, int],
    widest: int,
    exponent: int,
    mean_grid: int,
) -> None:
    """The encoder's proof implies the other reader's check, and then both predict the same bits in every dtype."""
    rng = np.random.default_rng(seed)
    mine: list[Side | None] = []
    other: list[independent_arithmetic.Side | None] = []
    columns = list(size)
    for axis in (0, 1):
        block, extent = min(blocks[axis], size[axis]), size[axis]
        if not block:
            mine.append(None)
            other.append(None)
            continue
        record = {"block": block, "rank": min(ranks[axis], block)}
        count, columns[axis] = independent_arithmetic.side_counts(record, extent)
        stored = rng.integers(-63, 64, count)
        exponents = rng.integers(-3, 14, columns[axis])
        other.append(independent_arithmetic.make_side(record, extent, stored, exponents))
        mine.append(_side(record, extent, stored, exponents))
    mean = rng.integers(-(2**31) + 1, 2**31, size) >> int(rng.integers(0, 32))
    core = rng.integers(-widest, widest + 1, columns)
    row = {"name": "x", "mean_grid": mean_grid, "shift": 3}
    coded = independent_arithmetic.Coded(
        row, size, (columns[0], columns[1]), mean, other[0], other[1], np.zeros(0, np.int64)
    )
    table_row = TensorRecord(
        name="x", shape=size, dtype="F32", mode="coded", group=0, mean_grid=mean_grid, shift=3
    )
    numbers = TensorBasis(table_row, torch.from_numpy(mean.astype(np.int32)), mine[0], mine[1])
    real_core = torch.from_numpy(core.astype(np.float64))
    proved = numbers.is_exact(real_core, step=Step(200, exponent))
    event(f"proved: {proved}")
    if not proved:
        return
    for name in FLOATS:
        found = numbers.predict(real_core, step=Step(200, exponent), dtype=dtype_named(name))
        step = {"mantissa": 200, "exponent": exponent}
        assert bytes_of(found) == independent_arithmetic.predict(coded, core, step, name)


def _side(
    record: dict[str, int], extent: int, stored: np.ndarray[Any, Any], exponents: np.ndarray[Any, Any]
) -> Side:
    """The package's factor from the numbers as stored."""
    return side_from_integers(
        QuantisedSide(
            extent,
            record["block"],
            record["rank"],
            torch.from_numpy(stored.astype(np.int16)),
            torch.from_numpy(exponents.astype(np.int16)),
        )
    )
