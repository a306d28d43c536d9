"""Families of adapters: which base model they are for, whether a newcomer belongs to them, what is told of them."""

from __future__ import annotations

from dataclasses import dataclass

from uws_store.basis import Basis
from uws_store.builder import Members
from uws_store.checkpoint import Checkpoint
from uws_store.errors import IncompatibleError
from uws_store.metadata.model import ModelDocument

__all__ = ["AdapterSummary", "remarks_on_adapters", "require_base", "shapes_within", "summarise_adapter"]

_MOST = 0.5


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What is known of a stored adapter.

    Attributes
    ----------
    base_model : str
        Id or path of the base model as the adapters name it; empty when they do not.
    base_sha256 : str or None
        Digest of the base model's weight files, where it was given.
    products : int
        Low-rank products that are coded in this model.
    ranks : tuple of int
        Their ranks, each once, ascending.
    config : tuple of (str, str)
        What most adapters of the family have in their configuration, as JSON text by field.
    """

    base_model: str
    base_sha256: str | None
    products: int
    ranks: tuple[int, ...]
    config: tuple[tuple[str, str], ...]


def summarise_adapter(document: ModelDocument, basis: Basis) -> AdapterSummary | None:
    """Tell what a model is as an adapter; None when its family has neither products nor adapter configurations."""
    adapter, products = basis.document.adapter, basis.document.products()
    if adapter is None and not products:
        return None
    kept = {record.name for record in document.private} | set(document.absent)
    coded = [left.slices or 0 for left, _ in products if left.name not in kept]
    ranks = set(document.ranks or coded) if coded else set()
    return AdapterSummary(
        base_model=adapter.base_model if adapter else "",
        base_sha256=adapter.base_sha256 if adapter else None,
        products=len(coded),
        ranks=tuple(sorted(ranks)),
        config=adapter.config if adapter else (),
    )


def shapes_within(basis: Basis, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint as the family sees them: factors at the family's rank, where theirs is not above it."""
    found = checkpoint.shapes()
    for left, right in basis.document.products():
        if left.name in found and right.name in found and len(found[right.name]) > 1:
            rank = found[right.name][0]
            if 1 <= rank <= (left.slices or 0):
                for row in (left, right):
                    if found[row.name] == row.shape_at(rank):
                        found[row.name] = row.shape
    return found


def require_base(basis: Basis, checkpoint: Checkpoint, family: str) -> None:
    """Refuse an adapter of another base model than the family's.

    Raises
    ------
    IncompatibleError
        Kind ``incompatible/base-model``.
    """
    known, own = basis.document.adapter, checkpoint.adapter
    if known is not None and own is not None and own.base_model != known.base_model:
        raise IncompatibleError(
            f"{checkpoint.source} is an adapter for {own.base_model or 'no model that it names'}, and family {family!r} "
            f"is for {known.base_model or 'none that it names'}; add it to a family for its own base model",
            kind="incompatible/base-model",
        )


def remarks_on_adapters(members: Members) -> tuple[str, ...]:
    """What the caller should know of a zoo of adapters."""
    alike, count = members.largest_start(), len(members.checkpoints)
    products = members.checkpoints.products
    if products is None or alike < 2:
        return ()
    remark = f"{alike} of {count} adapters have nearly one factor A: they began from one random matrix"
    if products.form == "balanced" and alike > _MOST * count and alike < count:
        remark += "; a family of these alone would be smaller"
    return (remark,)
