"""Speed of the codec on one core: entropy coding, canonical reconstruction, encoding against decoding.

Owns the pieces that are measured, which have the shapes of a ViT-B (Dosovitskiy et al. 2021, arXiv:2010.11929). Every
time stands beside a baseline that was measured in turn with it, so that ratios hold on a busy machine: the medians of
repeats. Knows nothing of zoos.
"""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from codec_report import setting
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

import uws_store
from uws_store import layout
from uws_store.basis.digits import byte_products_are_exact
from uws_store.basis.stack import Stack, rounded
from uws_store.basis.tensor import StoredTensor
from uws_store.basis.wide import WideTensor
from uws_store.canonical import Step
from uws_store.dtypes import DTYPES
from uws_store.entropy import decode_integers, encode_integers, significance_order
from uws_store.metadata.basis import SideRecord, TensorRecord
from uws_store.quantize import quantise
from uws_store.storage import MemoryStorage
from uws_store.store import ArrayReader, encode_array
from uws_store.subspace import QuantisedSide, quantise_side

__all__ = ["SpeedRow", "measure_speed", "show_speed", "speed_document", "speed_markdown"]

WIDTH = 768
SHAPES = ((WIDTH, WIDTH), (3 * WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
"""The matrices of one ViT-B block."""

_BLOCK = 256
_FULL = 1024
_MEMBERS = 5
_CORE_BITS = (0.3, 1.0)


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """One measurement.

    Attributes
    ----------
    what : str
        What was timed.
    value : float
        The number.
    unit : str
        Its unit.
    goal : str
        What the project set itself.
    met : bool or None
        Whether it is met; None for baselines.
    """

    what: str
    value: float
    unit: str
    goal: str = ""
    met: bool | None = None


def measure_speed(*, quick: bool = False) -> list[SpeedRow]:
    """Measure on one thread; takes about two minutes, a quick run a quarter of it.

    Parameters
    ----------
    quick : bool
        Fewer repeats and smaller pieces.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        repeats = 3 if quick else 9
        rows = [row for bits in _CORE_BITS for row in _coding(bits, repeats=repeats, quick=quick)]
        return rows + _reconstruction(repeats=repeats) + _whole_model(repeats=3, quick=quick)
    finally:
        torch.set_num_threads(threads)


def _medians(tasks: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Seconds of each task: the median of repeats that take turns, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for index in range(repeats + 1):
        for name, task in tasks.items():
            started_s = time.perf_counter()
            task()
            if index:
                taken[name].append(time.perf_counter() - started_s)
    return {name: statistics.median(values) for name, values in taken.items()}


def _coding(bits: float, *, repeats: int, quick: bool) -> list[SpeedRow]:
    core = _sorted_core(WIDTH, WIDTH if quick else 4 * WIDTH, bits)
    count = len(core)
    chunk = layout.core_chunk_for(count)
    page = layout.page_for(chunk)
    pieces = [core[start : start + chunk] for start in range(0, count, chunk)]
    streams = [encode_integers(piece) for piece in pieces]
    array = encode_array(core, chunk=chunk, page=page)
    storage = MemoryStorage("speed")
    for path, data in array.objects.items():
        storage.put_if_absent(f"model/core/{path}", data)
    reader = ArrayReader(storage, "model", name="core", record=array.record)
    assert np.array_equal(reader.read(), core)

    def decode() -> None:
        for stream, piece in zip(streams, pieces, strict=True):
            decode_integers(stream, dtype=core.dtype, count=len(piece))

    taken = _medians(
        {
            "in alone": lambda: [encode_integers(piece) for piece in pieces],
            "in": lambda: encode_array(core, chunk=chunk, page=page),
            "out alone": decode,
            "out": reader.read,
        },
        repeats=repeats,
    )
    rate = {name: count / seconds / 1e6 for name, seconds in taken.items()}
    real = 8 * sum(map(len, streams)) / count
    unit = "M coefficients/s"
    return [
        SpeedRow(f"entropy coding in, PCodec alone, {real:.2f} bits", rate["in alone"], unit),
        SpeedRow(f"entropy coding in, as stored, {real:.2f} bits", rate["in"], unit, "20", rate["in"] >= 20),
        SpeedRow(f"entropy coding out, PCodec alone, {real:.2f} bits", rate["out alone"], unit),
        SpeedRow(
            f"entropy coding out, as read and checked, {real:.2f} bits",
            rate["out"],
            unit,
            "200",
            rate["out"] >= 200,
        ),
    ]


def _sorted_core(rows: int, columns: int, bits: float) -> npt.NDArray[np.int32]:
    """Quantised Laplace coefficients under a separable profile, in significance order, at about so many bits."""
    random = np.random.default_rng(0)
    # Standard deviations that fall over four octaves along each side, as eigenvalues of fine-tunes do.
    profile = [np.linspace(8, -8, count).round().astype(np.int16) for count in (rows, columns)]
    order = significance_order([(profile[0], profile[1])])
    scales = np.exp2((profile[0][:, None] + profile[1][None, :]) / 4.0).reshape(-1)[order]
    real = torch.from_numpy(random.laplace(size=len(order)) * scales)
    low, high = 1e-3, 1e3
    for _ in range(20):
        step = math.sqrt(low * high)
        whole = quantise(real, step).to(torch.int32).numpy()
        taken = 8 * len(encode_integers(whole)) / len(whole)
        low, high = (step, high) if taken > bits else (low, step)
        if abs(taken - bits) < 0.02 * bits:
            break
    return whole


def _reconstruction(*, repeats: int) -> list[SpeedRow]:
    """The two arithmetics as a decoder of the CPU runs them, over their products at this machine's rates."""
    rows: list[SpeedRow] = []
    names = ("canonical", "fast", "float64 products", "float32 products")
    total = dict.fromkeys(names, 0.0)
    for m, n in SHAPES:
        random = torch.Generator().manual_seed(0)
        core = torch.randn(m, n, generator=random, dtype=torch.float64)
        core = torch.round(core * (core.abs() > 1))
        tensor = _stored(m, n, random)
        step = Step.nearest(2.0**-11)
        byte_products = WideTensor(tensor) if byte_products_are_exact() else None
        canonical_stack = Stack([tensor], device=torch.device("cpu"), decode="canonical")
        fast_stack = Stack([tensor], device=torch.device("cpu"), decode="fast")
        run: dict[str, Callable[[], object]] = {
            "canonical": functools.partial(
                _reconstruct, core.to(torch.int8), byte_products or canonical_stack, step=step
            ),
            # A decoder takes byte products for fast decoding, too; this is what it does where there are none.
            "fast": functools.partial(_reconstruct, core.to(torch.int8), fast_stack, step=step),
            "float64 products": _products(core, m, n, torch.float64),
            "float32 products": _products(core, m, n, torch.float32),
        }
        taken = _medians(run, repeats=repeats)
        for name, seconds in taken.items():
            total[name] += seconds
        ratio = taken["canonical"] / taken["float64 products"]
        rows.append(SpeedRow(f"canonical reconstruction, {m} x {n}, over its float64 products", ratio, "x"))
    block = "one ViT-B block"
    for name, products in (("canonical", "float64 products"), ("fast", "float32 products")):
        ratio = total[name] / total[products]
        what = f"{name} reconstruction, {block}, over its {products}"
        rows.append(SpeedRow(what, ratio, "x", "1.5", ratio <= 1.5))
    rows.append(
        SpeedRow(
            f"canonical reconstruction, {block}, over float32 products",
            total["canonical"] / total["float32 products"],
            "x",
        )
    )
    return [*rows, *(SpeedRow(f"{name}, {block}", total[name] * 1e3, "ms") for name in names)]


def _reconstruct(core: Tensor, numbers: WideTensor | Stack, *, step: Step) -> Tensor:
    """What a decoder does with a tensor of its own, from integers to the tensor's dtype."""
    if isinstance(numbers, WideTensor):
        made = numbers.predict(core, step=step, dtype=DTYPES["F32"])
        assert made is not None
        return made
    return rounded(numbers.predict(core[None], step=step), DTYPES["F32"], decode=numbers.decode)[0]


def _stored(m: int, n: int, random: torch.Generator) -> StoredTensor:
    record = TensorRecord(
        name="weight",
        shape=(m, n),
        dtype="F32",
        mode="coded",
        left=SideRecord(block=_block_of(m), rank=_block_of(m)),
        right=SideRecord(block=_block_of(n), rank=_block_of(n)),
        mean_grid=12,
        shift=0,
        group=0,
    )
    mean = torch.round(100 * torch.randn(m, n, generator=random)).to(torch.int16)
    return StoredTensor(record, mean, _side(m), _side(n))


def _block_of(size: int) -> int:
    return size if size <= _FULL else _BLOCK


def _side(size: int) -> QuantisedSide:
    """A factor as the planner chooses it for such a side: full, or in blocks where it is wide."""
    random = torch.Generator().manual_seed(size)
    block = _block_of(size)
    blocks = [
        torch.linalg.qr(torch.randn(block, block, generator=random, dtype=torch.float64))[0]
        for _ in range(size // block)
    ]
    return quantise_side(blocks, size=size, block=block, rank=block)


def _products(core: Tensor, m: int, n: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The two matrix products of a reconstruction and nothing else, on matrices that lie ready."""
    left, right = _block_of(m), _block_of(n)
    lefts = torch.randn(m // left, left, left, dtype=dtype)
    rights = torch.randn(n // right, right, right, dtype=dtype)
    values = core.to(dtype)

    def run() -> Tensor:
        if right == n:
            first = values @ rights[0]
        else:
            blocks = values.reshape(m, n // right, right).transpose(0, 1)
            first = torch.bmm(blocks, rights).transpose(0, 1).reshape(m, n)
        if left == m:
            return lefts[0] @ first
        return torch.bmm(lefts, first.reshape(m // left, left, n)).reshape(m, n)

    return run


def _whole_model(*, repeats: int, quick: bool) -> list[SpeedRow]:
    width = WIDTH // 4 if quick else WIDTH
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as name:
        folder = Path(name)
        zoo = folder / "zoo"
        zoo.mkdir()
        size = 0
        for index, model in enumerate(_synthetic_models(width, _MEMBERS + 1)):
            path = zoo / f"m{index}.safetensors" if index < _MEMBERS else folder / "held.safetensors"
            save_file(model, path)
            size = sum(tensor.numel() for tensor in model.values())
        registry = str(folder / "registry")
        started_s = time.perf_counter()
        uws_store.build(zoo, family="speed", registry=registry, bits=0.5)
        build_s = time.perf_counter() - started_s
        counter = iter(range(1000))

        def encode() -> None:
            uws_store.add(
                folder / "held.safetensors", family="speed", task=f"held-{next(counter)}", registry=registry
            )

        started_s = time.perf_counter()
        encode()
        first_s = time.perf_counter() - started_s
        taken = _medians(
            {
                "encode": encode,
                "decode": lambda: uws_store.load_model("speed", "held-0", registry=registry).materialize(),
                "unchecked": lambda: uws_store.load_model(
                    "speed", "held-0", registry=registry, verify=False
                ).materialize(),
            },
            repeats=repeats,
        )
    ratio = taken["encode"] / taken["decode"]
    blocks = 12 * (WIDTH / width) ** 2
    per_model = f"one block of {size:,} parameters"
    return [
        SpeedRow(f"encode {per_model} (add, basis open)", taken["encode"], "s"),
        SpeedRow(f"encode {per_model} (first add: basis read, factors inverted)", first_s, "s"),
        SpeedRow(f"decode {per_model} (load, digests checked)", taken["decode"], "s"),
        SpeedRow(f"decode {per_model} (load, unchecked)", taken["unchecked"], "s"),
        SpeedRow("encoding over decoding, basis open for both", ratio, "x", "5", ratio <= 5),
        SpeedRow("encoding over decoding, first add", first_s / taken["decode"], "x"),
        SpeedRow("load of a ViT-B's 12 blocks, one core, basis cached", blocks * taken["decode"], "s"),
        SpeedRow(f"build from {_MEMBERS} such models", build_s, "s"),
    ]


def _synthetic_models(width: int, count: int) -> Sequence[dict[str, Tensor]]:
    """Fine-tunes of one random block: changes with a common separable profile in common directions."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc2.weight": (width, 4 * width),
    }
    models: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, (m, n) in shapes.items():
        base = torch.randn(m, n, generator=random) * n**-0.5
        turn = torch.linalg.qr(torch.randn(min(m, n), min(m, n), generator=random))[0]
        fall = torch.exp2(torch.linspace(0, -4, min(m, n)))
        for model in models:
            change = torch.randn(m, n, generator=random)
            change = change @ (fall[:, None] * turn) if n <= m else (turn * fall) @ change
            model[name] = base + 0.02 * n**-0.5 * change
    return models


def show_speed(rows: Sequence[SpeedRow], console: Console) -> None:
    """Print the table."""
    table = Table(title="speed on one core: medians, each beside its baseline", box=box.SIMPLE_HEAD)
    for head in ("what", "measured", "", "goal", ""):
        table.add_column(head, justify="right" if head in {"measured", "goal"} else "left")
    for row in rows:
        table.add_row(row.what, f"{row.value:,.3g}", row.unit, row.goal, _met(row))
    console.print(table)


def speed_markdown(rows: Sequence[SpeedRow]) -> str:
    """The table as a Markdown document."""
    parts = ["# Speed on one core", "", "`python tools/bench codec --speed`", ""]
    parts += ["Medians of repeats that take turns with their baselines.", ""]
    parts += [", ".join(f"{name} {value}" for name, value in setting().items()), ""]
    parts += ["| what | measured | | goal | |", "|---|---:|---|---:|---|"]
    parts += [f"| {row.what} | {row.value:,.3g} | {row.unit} | {row.goal} | {_met(row)} |" for row in rows]
    return "\n".join(parts) + "\n"


def _met(row: SpeedRow) -> str:
    return "" if row.met is None else "met" if row.met else "missed"


def speed_document(rows: Sequence[SpeedRow]) -> dict[str, Any]:
    """All numbers, for JSON."""
    return {
        "setting": setting(),
        "rows": [
            {"what": row.what, "value": row.value, "unit": row.unit, "goal": row.goal, "met": row.met}
            for row in rows
        ],
    }
