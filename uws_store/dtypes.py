"""The one dtype table: names, widths, torch counterparts, and what a float's bits mean.

Owns the mapping between the names that safetensors uses (which are also the names in our documents), torch's
dtypes and the unsigned integers a tensor's bits are stored as. Must not know about files or arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from uws_store.errors import FormatError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DTYPES", "DType", "dtype_named", "dtype_of_torch"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes
    ----------
    name : str
        The safetensors name, for example ``"F32"``.
    size_bytes : int
        Bytes of one element.
    torch : torch.dtype
        The torch counterpart.
    precision : int
        Bits of the significand with the hidden one; 0 for types that are never basis-coded.
    min_exponent : int
        Exponent of the smallest normal number (unbiased); meaningless when ``precision`` is 0.
    max_finite : float
        The largest finite value; meaningless when ``precision`` is 0.
    """

    name: str
    size_bytes: int
    torch: torch.dtype
    precision: int = 0
    min_exponent: int = 0
    max_finite: float = 0.0

    @property
    def is_float(self) -> bool:
        """Whether tensors of this type may be basis-coded."""
        return self.precision > 0

    @property
    def bits(self) -> int:
        """Width of one element in bits."""
        return 8 * self.size_bytes


def _table() -> dict[str, DType]:
    rows = [
        DType("F64", 8, torch.float64, 53, -1022, torch.finfo(torch.float64).max),
        DType("F32", 4, torch.float32, 24, -126, torch.finfo(torch.float32).max),
        DType("F16", 2, torch.float16, 11, -14, 65504.0),
        DType("BF16", 2, torch.bfloat16, 8, -126, torch.finfo(torch.bfloat16).max),
        DType("F8_E4M3", 1, torch.float8_e4m3fn, 4, -6, 448.0),
        DType("F8_E5M2", 1, torch.float8_e5m2, 3, -14, 57344.0),
        DType("I64", 8, torch.int64),
        DType("I32", 4, torch.int32),
        DType("I16", 2, torch.int16),
        DType("I8", 1, torch.int8),
        DType("U64", 8, torch.uint64),
        DType("U32", 4, torch.uint32),
        DType("U16", 2, torch.uint16),
        DType("U8", 1, torch.uint8),
        DType("BOOL", 1, torch.bool),
        DType("C64", 8, torch.complex64),
    ]
    return {row.name: row for row in rows}


DTYPES: Mapping[str, DType] = MappingProxyType(_table())
_BY_TORCH: Mapping[torch.dtype, DType] = MappingProxyType({row.torch: row for row in DTYPES.values()})


def dtype_named(name: str) -> DType:
    """Look a dtype up by its safetensors name.

    Raises
    ------
    FormatError
        When the name is not in the table (kind ``format/dtype``).
    """
    try:
        return DTYPES[name]
    except KeyError as error:
        known = ", ".join(DTYPES)
        raise FormatError(
            f"dtype {name!r} is not supported; known are {known}", kind="format/dtype"
        ) from error


def dtype_of_torch(dtype: torch.dtype) -> DType:
    """Look a dtype up by its torch counterpart.

    Raises
    ------
    InvalidInputError
        When torch has the type and the table has not (kind ``invalid-input/dtype``).
    """
    try:
        return _BY_TORCH[dtype]
    except KeyError as error:
        known = ", ".join(DTYPES)
        raise InvalidInputError(
            f"tensors of {dtype} are not supported; known are {known}", kind="invalid-input/dtype"
        ) from error
