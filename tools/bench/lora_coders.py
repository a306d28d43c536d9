"""Baselines for adapters: rounding, zstd, joint diagonalisation, directions over adapters, vlora-dev.

Owns the methods and the counting of their bytes: everything that one adapter needs, and what all share. Every method is
fitted on the training adapters and codes others. Factors are given per module as (B, A), rank 4 or 8.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from coding import FLOAT16_BYTES, through_float16
from numcodecs.zstd import Zstd
from torch import Tensor

__all__ = ["Adapter", "AdapterMethod", "baselines", "vlora_absent"]

Adapter = Mapping[str, tuple[Tensor, Tensor]]
"""Per module, B (m x r) and A (r x n), float32."""

Coded = tuple[dict[str, Tensor], int]
"""Per module the product that is restored, and the bytes."""


@dataclass(frozen=True, slots=True)
class AdapterMethod:
    """A fitted method at one setting.

    Attributes
    ----------
    name, setting, source : str
        For the table.
    shared_bytes : int
        What all adapters share.
    code : callable
        Codes one adapter.
    """

    name: str
    setting: str
    source: str
    shared_bytes: int
    code: Callable[[Adapter], Coded]


def vlora_absent() -> str | None:
    """Why vlora-dev is left out, or None."""
    return None if importlib.util.find_spec("vlora") else "vlora-dev is not installed (pip install vlora-dev)"


def baselines(training: Sequence[Adapter]) -> list[AdapterMethod]:
    """Fit every baseline at its settings."""
    methods = [_lossless(), *(_rounding(bits) for bits in (2, 3, 4, 8))]
    methods += [_joint(training, rank, diagonal=False) for rank in (4, 8, 16, 32)]
    methods += [_joint(training, rank, diagonal=True) for rank in (16, 64)]
    methods.append(_directions(training, 16))
    if vlora_absent() is None:
        methods += [_vlora(training, count) for count in (8, 16)]
    return methods


def _lossless() -> AdapterMethod:
    codec = Zstd(level=19)

    def code(adapter: Adapter) -> Coded:
        data = b"".join(part.contiguous().numpy().tobytes() for pair in adapter.values() for part in pair)
        return {name: b @ a for name, (b, a) in adapter.items()}, len(codec.encode(data))

    return AdapterMethod("zstd 19", "float32, lossless", "RFC 8878", 0, code)


def _rounding(bits: int) -> AdapterMethod:
    def rounded(rows: Tensor) -> Tensor:
        low = through_float16(rows.amin(1, keepdim=True))
        step = through_float16((rows.amax(1, keepdim=True) - low) / (2**bits - 1))
        step = step.clamp(min=torch.finfo(torch.float16).smallest_normal)
        return low + torch.round((rows - low) / step).clamp(0, 2**bits - 1) * step

    def code(adapter: Adapter) -> Coded:
        found, size_bits = {}, 0
        for name, (b, a) in adapter.items():
            found[name] = rounded(b.T).T @ rounded(a)
            size_bits += bits * (b.numel() + a.numel()) + 8 * 2 * FLOAT16_BYTES * 2 * len(a)
        return found, math.ceil(size_bits / 8)

    return AdapterMethod("round to nearest", f"{bits} bit", "uniform, per slice", 0, code)


def _joint(training: Sequence[Adapter], rank: int, *, diagonal: bool) -> AdapterMethod:
    """Joint diagonalisation (Gabrielsson et al. 2024, arXiv:2407.00066): U S_i V^T with U and V shared.

    Full cores by alternating eigenvectors; diagonal ones by alternating least squares from there, as in the paper's
    sections on JD-Full and JD-Diag. Float16 throughout.
    """
    sides: dict[str, tuple[Tensor, Tensor]] = {}
    shared = 0
    for name in training[0]:
        products = [(b @ a).to(torch.float64) for b, a in (adapter[name] for adapter in training)]
        products = [product / product.norm().clamp(min=1e-12) for product in products]
        k = min(rank, *products[0].shape)
        v = torch.linalg.eigh(sum((p.T @ p for p in products), torch.zeros(())))[1].flip(1)[:, :k]
        for _ in range(10):
            u = torch.linalg.eigh(sum((p @ v @ v.T @ p.T for p in products), torch.zeros(())))[1].flip(1)[
                :, :k
            ]
            v = torch.linalg.eigh(sum((p.T @ u @ u.T @ p for p in products), torch.zeros(())))[1].flip(1)[
                :, :k
            ]
        if diagonal:
            for _ in range(20):
                cores = [_diagonal(p, u, v) for p in products]
                u = _solve([(p, v * c) for p, c in zip(products, cores, strict=True)])
                cores = [_diagonal(p, u, v) for p in products]
                v = _solve([(p.T, u * c) for p, c in zip(products, cores, strict=True)])
        sides[name] = (through_float16(u.to(torch.float32)), through_float16(v.to(torch.float32)))
        shared += FLOAT16_BYTES * (u.numel() + v.numel())

    def code(adapter: Adapter) -> Coded:
        found, size = {}, 0
        for name, (b, a) in adapter.items():
            u, v = sides[name]
            if diagonal:
                core = torch.diag(through_float16(_diagonal(b @ a, u, v)))
                size += FLOAT16_BYTES * len(core)
            else:
                core = through_float16(torch.linalg.pinv(u) @ b @ (a @ torch.linalg.pinv(v).T))
                size += FLOAT16_BYTES * core.numel()
            found[name] = u @ core @ v.T
        return found, size

    kind = "diagonal" if diagonal else "full"
    return AdapterMethod("joint diagonalisation", f"{kind}, rank {rank}", "arXiv:2407.00066", shared, code)


def _diagonal(product: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The core c that makes U diag(c) V^T nearest to a product."""
    gram = (u.T @ u) * (v.T @ v)
    wanted = ((u.T @ product) * v.T).sum(1)
    solved: Tensor = torch.linalg.pinv(gram) @ wanted
    return solved


def _solve(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The side X that makes X Y_i^T nearest to all P_i; columns of norm 1."""
    gram = sum((y.T @ y for _, y in pairs), torch.zeros(()))
    wanted = sum((p @ y for p, y in pairs), torch.zeros(()))
    side: Tensor = wanted @ torch.linalg.pinv(gram)
    lengths: Tensor = side.norm(dim=0, keepdim=True)
    return side / lengths.clamp(min=1e-12)


def _directions(training: Sequence[Adapter], count: int) -> AdapterMethod:
    """Principal directions over adapters of all A and B, zero-padded to rank 8 (arXiv:2512.05117); float16."""
    rank = max(len(a) for adapter in training for _, a in adapter.values())

    def flat(adapter: Adapter) -> Tensor:
        parts = []
        for b, a in adapter.values():
            wide = torch.zeros(len(b), rank)
            wide[:, : b.shape[1]] = b
            tall = torch.zeros(rank, a.shape[1])
            tall[: len(a)] = a
            parts += [wide.reshape(-1), tall.reshape(-1)]
        return torch.cat(parts)

    rows = torch.stack([flat(adapter) for adapter in training])
    mean = through_float16(rows.mean(0))
    basis = through_float16(torch.linalg.svd(rows - mean, full_matrices=False)[2][:count])

    def code(adapter: Adapter) -> Coded:
        coefficients = through_float16(basis @ (flat(adapter) - mean))
        values, found, at = mean + coefficients @ basis, {}, 0
        for name, (b, a) in adapter.items():
            wide = values[at : at + len(b) * rank].reshape(len(b), rank)
            at += wide.numel()
            tall = values[at : at + rank * a.shape[1]].reshape(rank, -1)
            at += tall.numel()
            found[name] = wide @ tall
        return found, FLOAT16_BYTES * count

    shared = FLOAT16_BYTES * (mean.numel() + basis.numel())
    return AdapterMethod("PCA over adapters", f"{count} directions", "arXiv:2512.05117", shared, code)


def _vlora(training: Sequence[Adapter], count: int) -> AdapterMethod:
    """The package vlora-dev by its own calls, at rank 8 for all (zero-padded: it takes one rank); float32 as it saves."""
    from vlora import LoRAWeights, SharedSubspace  # noqa: PLC0415 - optional

    rank = max(len(a) for adapter in training for _, a in adapter.values())
    names = list(training[0])

    def given(adapter: Adapter) -> LoRAWeights:
        lefts, rights = {}, {}
        for name, (b, a) in adapter.items():
            lefts[name] = torch.zeros(len(b), rank)
            lefts[name][:, : b.shape[1]] = b
            rights[name] = torch.zeros(rank, a.shape[1])
            rights[name][: len(a)] = a
        return LoRAWeights(layer_names=names, lora_a=rights, lora_b=lefts, rank=rank)

    space = SharedSubspace.from_adapters(
        [given(adapter) for adapter in training],
        task_ids=[f"t{index}" for index in range(len(training))],
        num_components=count,
    )
    numbers = [
        value
        for kind in (space.components_a, space.components_b, space.means_a, space.means_b)
        for value in kind.values()
    ]
    shared = 4 * sum(value.numel() for value in numbers)

    def code(adapter: Adapter) -> Coded:
        projection = space.project(given(adapter), "new")
        space.add_task(projection)
        back = space.reconstruct("new")
        size = 4 * sum(
            value.numel()
            for kind in (projection.loadings_a, projection.loadings_b)
            for value in kind.values()
        )
        return {name: back.lora_b[name] @ back.lora_a[name] for name in names}, size

    return AdapterMethod("vlora-dev", f"{count} components", "PyPI", shared, code)
