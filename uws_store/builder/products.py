"""Products of thin factors as the builder sees them: in the form in which they are coded.

Owns which tensors of a zoo are factors, the family's largest rank of each product, and the choice between the balanced
form and the factors as they are. Reads checkpoints; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from uws_store.adapter import FactorPair, find_pairs
from uws_store.checkpoint import Checkpoint
from uws_store.low_rank import LowRankForm, LowRankSide, balanced, pad
from uws_store.tensor_bytes import digest_of

__all__ = [
    "FactorPlace",
    "Form",
    "Products",
    "choose_form",
    "find_products",
    "form_of",
    "largest_start",
    "matrices_of",
]

Form = Literal["balanced", "plain"]
"""How products are coded: in balanced form, or the factors as they are."""

_SAMPLED_PRODUCTS = 24
_SAMPLED_MODELS = 24
_PLANNED_ERROR = 0.1
"""Relative error of a product for which forms are compared."""

_ALIKE = 0.9
"""Cosine above which two factors A began from one: unrelated ones of any size have about 0."""


@dataclass(frozen=True, slots=True)
class FactorPlace:
    """What a tensor is to its product.

    Attributes
    ----------
    product : tuple of str
        Names of the left and of the right factor.
    side : {"left", "right"}
        Which of them this is.
    rank : int
        The family's largest rank of the product.
    """

    product: tuple[str, str]
    side: LowRankSide
    rank: int


def matrices_of(checkpoint: Checkpoint, left: str, right: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the two factors of a product as matrices, (m x r) and (r x n), in their own dtypes."""
    first, second = checkpoint.read(left), checkpoint.read(right)
    return first.reshape(first.shape[0], -1), second.reshape(second.shape[0], -1)


def form_of(left_mr: torch.Tensor, right_rn: torch.Tensor, form: Form) -> LowRankForm:
    """Bring a product into the form in which it is coded."""
    if form == "balanced":
        return balanced(left_mr, right_rn)
    zeros = (0,) * left_mr.shape[1]
    return LowRankForm(left_mr.to(torch.float64), right_rn.to(torch.float64), zeros)


@dataclass(frozen=True, slots=True)
class Products:
    """The products of a zoo's members: names and ranks alone, so that it can be sent to other processes.

    Attributes
    ----------
    places : Mapping of str to FactorPlace
        For each tensor that is a factor.
    pairs : Mapping of str to Mapping of str to FactorPair
        For each task, the pair of each tensor that is a factor of floats there.
    form : {"balanced", "plain"}
        How products are coded.
    """

    places: Mapping[str, FactorPlace]
    pairs: Mapping[str, Mapping[str, FactorPair]]
    form: Form = "balanced"

    def shapes(self, task: str, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
        """The shapes of a member's tensors, factors at the family's largest rank."""
        found = checkpoint.shapes()
        for name in self.pairs[task]:
            shape, place = found[name], self.places[name]
            right = place.side == "right"
            found[name] = (place.rank, *shape[1:]) if right else (shape[0], place.rank, *shape[2:])
        return found

    def has(self, task: str, name: str) -> bool:
        """Whether a tensor is a factor in a member."""
        return name in self.places and name in self.pairs[task]

    def read(self, task: str, name: str, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """Read the two factors of a product as they are coded, at the family's largest rank, float64, by name.

        Products that are not finite are NaN throughout.
        """
        pair, place = self.pairs[task][name], self.places[name]
        left, right = (part.to(torch.float64) for part in matrices_of(checkpoint, pair.left, pair.right))
        if bool(torch.isfinite(left).all() & torch.isfinite(right).all()):
            form = form_of(left, right, self.form)
            left, right = form.left, form.right
        else:
            left, right = torch.full_like(left, math.nan), torch.full_like(right, math.nan)
        return {
            pair.left: pad(left, place.rank, side="left"),
            pair.right: pad(right, place.rank, side="right"),
        }

    def sensitivity(self, checkpoints: Mapping[str, Checkpoint], tasks: Sequence[str], name: str) -> float:
        """By how much an error of a factor grows in its product: 1 in balanced form, which is scaled for that."""
        place = self.places[name]
        if self.form == "balanced":
            return 1.0
        usable = [task for task in tasks if self.has(task, name)][:_SAMPLED_MODELS]
        pairs = [matrices_of(checkpoints[task], *place.product) for task in usable]
        weights = _weights([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return weights[0 if place.side == "left" else 1]


def find_products(checkpoints: Mapping[str, Checkpoint]) -> Products:
    """Find the products of a zoo's members, by names and shapes."""
    pairs: dict[str, dict[str, FactorPair]] = {}
    places: dict[str, FactorPlace] = {}
    sides: tuple[LowRankSide, LowRankSide] = ("left", "right")
    for task, checkpoint in checkpoints.items():
        pairs[task] = {}
        for pair in find_pairs(checkpoint.shapes(), checkpoint.adapter):
            product = (pair.left, pair.right)
            if not all(checkpoint.tensors[name].dtype.is_float for name in product):
                continue
            for name, side in zip(product, sides, strict=True):
                pairs[task][name] = pair
                before = places[name].rank if name in places else 0
                places[name] = FactorPlace(product, side, max(before, pair.rank))
    return Products(places, pairs)


def choose_form(products: Products, checkpoints: Mapping[str, Checkpoint]) -> Products:
    """Choose the form that codes smaller, by a Gaussian estimate at one error of the products.

    Adapters that began from one random A and moved little from it share it: their mean takes it away, and the
    balanced form, which is another for every product, would hide it. Others share nothing but what the balanced form
    shows.
    """
    tasks = list(checkpoints)
    names = sorted({place.product for place in products.places.values()})
    bits = {"balanced": 0.0, "plain": 0.0}
    for product in names[:: max(1, len(names) // _SAMPLED_PRODUCTS)]:
        usable = [task for task in tasks if products.has(task, product[0])]
        picked = usable[:: max(1, len(usable) // _SAMPLED_MODELS)]
        pairs = [matrices_of(checkpoints[task], *product) for task in picked]
        pairs = [
            pair for pair in pairs if all(bool(part.to(torch.float64).isfinite().all()) for part in pair)
        ]
        if len(pairs) > 1:
            plain, own = _bits_of_forms(pairs, products.places[product[0]].rank)
            bits["plain"] += plain
            bits["balanced"] += own
    if bits["plain"] >= bits["balanced"]:
        return products
    # A factor that all have byte for byte stands in the basis once; the other is then an ordinary tensor.
    shared = {product for product in names if any(_is_one(products, checkpoints, name) for name in product)}
    kept = {name: place for name, place in products.places.items() if place.product not in shared}
    pairs_kept = {
        task: {name: pair for name, pair in mine.items() if name in kept}
        for task, mine in products.pairs.items()
    }
    return Products(kept, pairs_kept, "plain")


def _bits_of_forms(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], rank: int) -> tuple[float, float]:
    """Estimate the bits of one product of several members in plain and in balanced form."""
    forms = [balanced(*pair) for pair in pairs]
    energy = sum(float(form.left.square().sum()) for form in forms) / len(forms)
    error = energy * _PLANNED_ERROR**2 / (rank * (pairs[0][0].shape[0] + pairs[0][1].shape[1]))
    if error <= 0.0:
        return 0.0, 0.0
    weights = _weights([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    lefts = [pad(pair[0].to(torch.float64) * weights[0], rank, side="left") for pair in pairs]
    rights = [pad(pair[1].to(torch.float64) * weights[1], rank, side="right") for pair in pairs]
    own_lefts = [pad(form.left, rank, side="left") for form in forms]
    own_rights = [pad(form.right, rank, side="right") for form in forms]
    plain = _gaussian_bits(lefts, error, axis=2) + _gaussian_bits(rights, error, axis=1)
    return plain, _gaussian_bits(own_lefts, error, axis=2) + _gaussian_bits(own_rights, error, axis=1)


def _is_one(products: Products, checkpoints: Mapping[str, Checkpoint], name: str) -> bool:
    """Whether all members have one factor, byte for byte."""
    if not all(products.has(task, name) for task in checkpoints):
        return False
    infos = {
        (checkpoint.tensors[name].shape, checkpoint.tensors[name].dtype.name)
        for checkpoint in checkpoints.values()
    }
    return len(infos) == 1 and len({digest_of(each.read(name)) for each in checkpoints.values()}) == 1


def largest_start(products: Products, checkpoints: Mapping[str, Checkpoint]) -> int:
    """How many members have nearly one A: those that began from one random A and moved little from it."""
    for right in sorted(name for name, place in products.places.items() if place.side == "right"):
        rank = products.places[right].rank
        whole = [
            task
            for task in checkpoints
            if products.has(task, right) and products.pairs[task][right].rank == rank
        ]
        if len(whole) < 2:
            continue
        rows = torch.stack([checkpoints[task].read(right).to(torch.float64).reshape(-1) for task in whole])
        rows = torch.nan_to_num(rows)
        rows /= rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        return int((rows @ rows.T > _ALIKE).sum(1).max())
    return 0


def _weights(lefts: Sequence[torch.Tensor], rights: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Root mean square of the norms of the other factor's slices, for the left and for the right factor."""

    def norm(parts: Sequence[torch.Tensor], axis: int) -> float:
        squares = [float(part.to(torch.float64).square().sum()) / part.shape[axis] for part in parts]
        finite = [value for value in squares if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else 0.0
        return math.sqrt(mean) or 1.0

    return norm(rights, 0), norm(lefts, 1)


def _gaussian_bits(values: Sequence[torch.Tensor], error: float, *, axis: int) -> float:
    """Bits of all changes about their mean, with one variance per slice, at a squared error per coefficient."""
    stacked = torch.stack(list(values))
    changes = stacked - stacked.mean(0, keepdim=True)
    other = 3 - axis
    variance = changes.square().mean((0, other))
    count = stacked.shape[0] * stacked.shape[other]
    return float(0.5 * count * torch.log2(1 + variance / error).sum())
