"""A caller's options, checked: the one fidelity that was asked for, how many models to plan for, the price of exactness."""

from __future__ import annotations

import math

from uws_store.builder import DEFAULT_FIDELITY, Fidelity, FidelityKind
from uws_store.errors import InvalidInputError

__all__ = ["choose_fidelity", "expected", "read_overhead"]


def choose_fidelity(
    *,
    bits: float | None = None,
    rel_error: float | None = None,
    change_error: float | None = None,
    max_drop: float | None = None,
) -> Fidelity:
    """Turn a caller's options into one fidelity; the default when there is none.

    Raises
    ------
    InvalidInputError
        When there are several, or one is out of range.
    """
    asked: dict[FidelityKind, float | None] = {
        "bits": bits,
        "rel-error": rel_error,
        "change-error": change_error,
        "max-drop": max_drop,
    }
    given = [(kind, value) for kind, value in asked.items() if value is not None]
    if len(given) > 1:
        words = " and ".join(f"--{kind}" for kind, _ in given)
        raise InvalidInputError(f"give one fidelity, not {words}", kind="invalid-input/fidelity")
    return Fidelity(*given[0]) if given else DEFAULT_FIDELITY


def expected(models: int | None) -> int | None:
    """Check a number of models to plan for.

    Raises
    ------
    InvalidInputError
        Below one (``invalid-input/expect-models``).
    """
    if models is not None and models < 1:
        raise InvalidInputError(
            f"expect_models is at least 1, not {models}", kind="invalid-input/expect-models"
        )
    return models


def read_overhead(value: object) -> float | None:
    """Check by what share tensors that are bit-identical may be larger for the sake of a compact tier; None is no share.

    Raises
    ------
    InvalidInputError
        Not a finite number of at least 0 (``invalid-input/exact-overhead``).
    """
    if value is None:
        return None
    if not (isinstance(value, int | float) and 0.0 <= value < math.inf):
        raise InvalidInputError(
            f"exact_overhead is a share of at least 0, such as 0.05, not {value!r}",
            kind="invalid-input/exact-overhead",
        )
    return float(value)
