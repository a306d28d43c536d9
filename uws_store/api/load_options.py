"""How weights are made: arithmetic, tier and type, checked before anything is read."""

from __future__ import annotations

import torch

from uws_store.basis import Decode
from uws_store.errors import InvalidInputError
from uws_store.model import Tier

__all__ = ["check_dtype", "check_tier", "checked_decode"]

_TIERS = ("compact", "exact", "mean")


def check_tier(tier: Tier) -> None:
    """Refuse a tier that is none (``invalid-input/tier``)."""
    if tier not in _TIERS:
        raise InvalidInputError(
            f"tier is one of {', '.join(_TIERS)}, not {tier!r}", kind="invalid-input/tier"
        )


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse a type that weights cannot have (``invalid-input/dtype``)."""
    if dtype is not None and not dtype.is_floating_point:
        raise InvalidInputError(f"weights cannot be loaded as {dtype}", kind="invalid-input/dtype")


def checked_decode(decode: Decode, *, tier: Tier) -> Decode:
    """Refuse an arithmetic that is none, or that a tier cannot be made by."""
    if decode not in {"canonical", "fast"}:
        raise InvalidInputError(
            f"decode is 'canonical' or 'fast', not {decode!r}", kind="invalid-input/decode"
        )
    if decode == "fast" and tier == "exact":
        raise InvalidInputError(
            "tier 'exact' is bit-identical to the source and needs decode='canonical'",
            kind="invalid-input/decode",
        )
    return decode
