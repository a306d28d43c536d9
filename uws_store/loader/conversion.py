"""Converting tensors to the dtype a caller wants, and errors of memory, typed.

Knows nothing about models or modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from uws_store.dtypes import dtype_of_torch
from uws_store.errors import IncompatibleError, MemoryLimitError

__all__ = ["converted", "largest_weight", "memory_errors", "require_range"]


def largest_weight(tensor: torch.Tensor) -> float:
    """Largest absolute value of a tensor's finite elements; 0 when there is none."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0.0
    wide = tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.to(torch.float32)
    largest = float(wide.abs().max())
    if not math.isfinite(largest):
        largest = float(torch.where(torch.isfinite(wide), wide, 0).abs().max())
    return largest


def require_range(name: str, largest: float, *, own: torch.dtype, dtype: torch.dtype) -> None:
    """Refuse a dtype whose largest finite value a tensor's largest weight is beyond, after rounding.

    Raises
    ------
    IncompatibleError
        Kind ``incompatible/dtype``.
    """
    if not dtype.is_floating_point or dtype == own:
        return
    row = dtype_of_torch(dtype)
    _, exponent = math.frexp(row.max_finite)
    # Half a unit beyond the largest value still rounds to it; a type saturates or overflows above.
    if largest < row.max_finite or largest - row.max_finite < math.ldexp(1.0, exponent - 1 - row.precision):
        return
    raise IncompatibleError(
        f"{name}: {dtype} cannot hold its largest weight, {largest:.3g} (at most {row.max_finite:.3g}); load it as {own}",
        kind="incompatible/dtype",
    )


def converted(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Convert a floating-point tensor to a dtype that can hold it; anything else is left as it is.

    Raises
    ------
    IncompatibleError
        When the dtype cannot hold the largest weight (kind ``incompatible/dtype``).
    """
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    require_range(name, largest_weight(tensor), own=tensor.dtype, dtype=dtype)
    return tensor.to(dtype)


@contextmanager
def memory_errors(what: str, device: torch.device) -> Iterator[None]:
    """Turn an allocation that failed into a typed error.

    Raises
    ------
    MemoryLimitError
        Kind ``memory-limit/device``.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(what, device) from error
    except RuntimeError as error:
        # The CPU's allocator has no error class of its own.
        if "can't allocate memory" not in str(error):
            raise
        raise _too_large(what, device) from error


def _too_large(what: str, device: torch.device) -> MemoryLimitError:
    return MemoryLimitError(
        f"{what} does not fit on {device}; free memory there, load it on another device, or in a smaller dtype",
        kind="memory-limit/device",
    )
