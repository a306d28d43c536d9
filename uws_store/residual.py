"""The residual of the exact tier: differences of bit patterns taken as ordered integers.

A float's bits map to integers in the order of the reals (sign-magnitude to two's complement, so that -0.0 and
+0.0 differ); neighbours differ by one. The residual is the difference between the source and the prediction,
modulo ``2**width``, folded to unsigned by zigzag. Residuals are stored sorted by the exponent of their prediction: the
error behind them is alike everywhere, and an ulp is not, so that neighbours in this order are of one size. Pure, and
works on any device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from uws_store.dtypes import DType

__all__ = ["apply_residual", "residual_classes", "residual_dtype", "residual_of", "residual_order"]

_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED: dict[int, type[np.uint16 | np.uint32 | np.uint64]] = {
    1: np.uint16,
    2: np.uint16,
    4: np.uint32,
    8: np.uint64,
}


def residual_dtype(dtype: DType) -> str:
    """Name of the unsigned storage type of a dtype's residual; 8-bit types are widened to 16."""
    return f"uint{max(16, dtype.bits)}"


def _ordered(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Map bit patterns to int64 in the order of the reals."""
    signed = values.contiguous().view(_SIGNED[dtype.size_bytes]).to(torch.int64)
    # signed < 0 means the sign bit is set; its magnitude bits are signed minus the type's minimum.
    minimum = -(1 << (dtype.bits - 1))
    return torch.where(signed >= 0, signed, -1 - (signed - minimum))


def _wrap(values: torch.Tensor, width: int) -> torch.Tensor:
    """Reduce modulo ``2**width`` into the signed range (int64 arithmetic already wraps at 64)."""
    if width == 64:
        return values
    half = 1 << (width - 1)
    return ((values + half) & ((1 << width) - 1)) - half


def residual_of(
    source: torch.Tensor, prediction: torch.Tensor, dtype: DType
) -> npt.NDArray[np.unsignedinteger]:
    """Compute the residual that turns a prediction into the source.

    Parameters
    ----------
    source, prediction : torch.Tensor
        The same shape, both in ``dtype.torch``.
    dtype : DType
        A float type.

    Returns
    -------
    numpy.ndarray
        1-D, uint16, uint32 or uint64.
    """
    difference = _wrap(
        _ordered(source.reshape(-1), dtype) - _ordered(prediction.reshape(-1), dtype), dtype.bits
    )
    zigzag = (difference << 1) ^ (difference >> 63)
    return zigzag.cpu().numpy().view(np.uint64).astype(_UNSIGNED[dtype.size_bytes])


def apply_residual(
    prediction: torch.Tensor, residual: npt.NDArray[np.unsignedinteger], dtype: DType
) -> torch.Tensor:
    """Undo :func:`residual_of`: the source's exact bits, in the shape and on the device of the prediction."""
    folded = torch.from_numpy(residual.astype(np.uint64).view(np.int64)).to(prediction.device)
    # Logical shift right of the unsigned value, then the sign.
    half = (folded >> 1) & ((1 << 63) - 1)
    difference = half ^ -(folded & 1)
    ordered = _wrap(_ordered(prediction.reshape(-1), dtype) + difference, dtype.bits)
    minimum = -(1 << (dtype.bits - 1))
    signed = torch.where(ordered >= 0, ordered, minimum + (-1 - ordered))
    return signed.to(_SIGNED[dtype.size_bytes]).view(dtype.torch).reshape(prediction.shape)


def residual_classes(prediction: torch.Tensor, shift: int) -> npt.NDArray[np.int16]:
    """Class of each element of a tensor by which its residual is ordered.

    Parameters
    ----------
    prediction : torch.Tensor
        What the compact tier gives, in the model's dtype.
    shift : int
        The tensor's step is the model's times ``2**-shift``.

    Returns
    -------
    numpy.ndarray
        int16, 1-D: the exponent ``e`` of ``|prediction| = f * 2**e`` with f in [0.5, 1), plus the shift; -32768 where
        the prediction is zero.
    """
    values = prediction.reshape(-1).to(torch.float64)
    exponents = torch.frexp(values)[1].to(torch.int32) + shift
    classes: npt.NDArray[np.int16] = torch.where(values == 0, -32768, exponents).to(torch.int16).cpu().numpy()
    return classes


def residual_order(classes: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Order residuals by falling class, ties in place: position ``s`` holds element ``order[s]``."""
    # -32768 has no negative in 16 bits; no other class comes near it.
    falling = np.minimum(-classes.astype(np.int32), 32767).astype(np.int16)
    return np.argsort(falling, kind="stable")
