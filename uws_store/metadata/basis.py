"""The document of a basis: the tensor table of an architecture and the arrays its models share.

It stands in the attributes of the basis's Zarr group; the SHA-256 of that group document names the basis. Must not
know how factors are found or applied.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from uws_store.dtypes import DTYPES
from uws_store.metadata.arrays import MAX_ELEMENTS, ArrayRecord, Sha256Hex
from uws_store.metadata.document import Document, Part
from uws_store.metadata.files import MAX_FILES, FileRecord, check_files

__all__ = [
    "MAX_TENSORS",
    "AdapterRecord",
    "BasisDocument",
    "BuildRecord",
    "LowRankRecord",
    "SideRecord",
    "StepRecord",
    "TensorRecord",
]

MAX_TENSORS = 1 << 17
"""Most tensors of an architecture."""

TensorName = Annotated[str, Field(min_length=1, max_length=1024)]
DTypeName = Annotated[str, Field(pattern="^(" + "|".join(DTYPES) + ")$")]
Shape = Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_ELEMENTS)], ...], Field(max_length=32)]


class StepRecord(Part):
    """A dyadic quantiser step, ``mantissa * 2**exponent``."""

    mantissa: Annotated[int, Field(ge=128, le=255)]
    exponent: Annotated[int, Field(ge=-200, le=100)]


class SideRecord(Part):
    """A factor of one side of a tensor.

    Attributes
    ----------
    block : int
        Rows of a diagonal block; the side's extent when the factor is full.
    rank : int
        Columns kept per block.
    """

    block: Annotated[int, Field(ge=1, le=1 << 20)]
    rank: Annotated[int, Field(ge=1, le=1 << 20)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rank > self.block:
            raise ValueError(f"rank {self.rank} exceeds the block's {self.block} rows")
        return self


class LowRankRecord(Part):
    """What makes a tensor one of the two thin factors of a product.

    Attributes
    ----------
    product : int
        The product's number, from 0.
    side : {"left", "right"}
        ``left`` is the (m x r) factor, ``right`` the (r x n) one; the row's shape has the family's largest rank r.
    """

    product: Annotated[int, Field(ge=0, le=MAX_TENSORS)]
    side: Literal["left", "right"]


class AdapterRecord(Part):
    """What a family of adapters is made for, and what their configurations have in common.

    Attributes
    ----------
    base_model : str
        Id or path of the base model as the adapters name it; text, never followed.
    base_sha256 : str or None
        Digest of the base model's weight files, where it was given.
    config : tuple of (str, str)
        Fields of ``adapter_config.json`` and their values as JSON text, sorted by field.
    """

    base_model: Annotated[str, Field(max_length=4096)]
    base_sha256: Sha256Hex | None = None
    config: Annotated[tuple[tuple[str, str], ...], Field(max_length=256)] = ()


class TensorRecord(Part):
    """One row of the tensor table.

    Attributes
    ----------
    name, shape, dtype
        As in most checkpoints of the zoo; a model's own dtype may differ.
    mode : {"coded", "shared", "private", "tied"}
        Basis-coded; byte for byte in the basis, for models that have exactly these bytes; byte for byte in each
        model; or another name of the tensor ``tied_to``.
    tied_to : str or None
        For ``tied`` alone.
    left, right : SideRecord or None
        For ``coded``: the factors; None is the identity.
    mean_grid : int or None
        For ``coded``: the mean is whole multiples of ``2**-mean_grid``.
    shift : int or None
        For ``coded``: the tensor's step is the model's step times ``2**-shift``.
    group : int or None
        For ``coded``: its read group.
    low_rank : LowRankRecord or None
        For ``coded``: the product of which the tensor is a factor.
    """

    name: TensorName
    shape: Shape
    dtype: DTypeName
    mode: Literal["coded", "shared", "private", "tied"]
    tied_to: TensorName | None = None
    left: SideRecord | None = None
    right: SideRecord | None = None
    mean_grid: Annotated[int, Field(ge=-256, le=256)] | None = None
    shift: Annotated[int, Field(ge=-64, le=64)] | None = None
    group: Annotated[int, Field(ge=0, le=MAX_TENSORS)] | None = None
    low_rank: LowRankRecord | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.numel > MAX_ELEMENTS:
            raise ValueError(f"{self.name}: more than {MAX_ELEMENTS} elements")
        coded = (self.mean_grid, self.shift, self.group)
        if self.mode == "coded":
            if any(value is None for value in coded):
                raise ValueError(f"{self.name}: a coded tensor has mean_grid, shift and group")
            if self.numel == 0 or not DTYPES[self.dtype].is_float:
                raise ValueError(f"{self.name}: only floating-point tensors with elements are coded")
            for side, extent in ((self.left, self.matrix[0]), (self.right, self.matrix[1])):
                if side is not None and side.block > extent:
                    raise ValueError(f"{self.name}: a block of {side.block} on a side of {extent}")
            if self.low_rank is not None and self.slices is None:
                raise ValueError(
                    f"{self.name}: a factor of a product has two axes, and its slices lie on one"
                )
        elif any(value is not None for value in (*coded, self.left, self.right, self.low_rank)):
            raise ValueError(
                f"{self.name}: only a coded tensor has factors, mean_grid, shift, group or low_rank"
            )
        if (self.mode == "tied") != (self.tied_to is not None):
            raise ValueError(f"{self.name}: tied_to stands with mode tied and only there")
        return self

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """The tensor as a matrix: first axis x the rest; a vector is one row, a scalar 1 x 1."""
        if len(self.shape) < 2:
            return 1, self.numel
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def slices(self) -> int | None:
        """The largest rank of a factor of a product; None for any other tensor."""
        if self.low_rank is None or len(self.shape) < 2:
            return None
        if self.low_rank.side == "right":
            return self.shape[0]
        return self.shape[1] if math.prod(self.shape[2:]) == 1 else None

    def shape_at(self, rank: int) -> tuple[int, ...]:
        """The shape that a factor of a product has in a model of some rank."""
        assert self.low_rank is not None
        if self.low_rank.side == "right":
            return (rank, *self.shape[1:])
        return (self.shape[0], rank, *self.shape[2:])


class BuildRecord(Part):
    """Where a basis comes from.

    Attributes
    ----------
    models : int
        Models in the basis.
    sources : str
        SHA-256, hex, over the sorted lines ``<sha256 of the checkpoint> <task>``.
    tool : str
        Version of the package that built it.
    pcodec : str
        Version of PCodec that wrote the arrays.
    options : tuple of (str, str)
        The build's options that shape the bytes.
    """

    models: Annotated[int, Field(ge=1, le=1 << 32)]
    sources: Sha256Hex
    tool: Annotated[str, Field(max_length=64)]
    pcodec: Annotated[str, Field(max_length=64)]
    options: tuple[tuple[str, str], ...] = ()


class BasisDocument(Document):
    """Everything about a basis but the numbers in its arrays.

    Attributes
    ----------
    architecture : str
        Digest of the signature (names and shapes).
    fraction_bits : int
        Bits below one step that the first product keeps; 10 in this version of the format.
    step : StepRecord
        The step for models that ask for none.
    core_length, core_chunk, core_page : int
        Layout of every model's core array.
    residual_chunk : int
        Inner chunk of every model's residual arrays.
    tensors : tuple of TensorRecord
        The tensor table. Offsets into the packed arrays are running sums in its order.
    mean, left, right, exponents, profile, shared : ArrayRecord or None
        The packed arrays; None when empty.
    files : tuple of FileRecord
        Side files that several models have in common, in the order they are packed.
    file_bytes : ArrayRecord or None
        Their bytes; None when there are none.
    adapter : AdapterRecord or None
        For families of adapters.
    build : BuildRecord
        Provenance.
    """

    max_bytes: ClassVar[int] = 64 << 20

    kind: Literal["basis"] = "basis"
    architecture: Sha256Hex
    fraction_bits: Literal[10] = 10
    step: StepRecord
    core_length: Annotated[int, Field(ge=0, le=MAX_ELEMENTS)]
    core_chunk: Annotated[int, Field(ge=1, le=1 << 24)]
    core_page: Annotated[int, Field(ge=256, le=1 << 24)]
    residual_chunk: Annotated[int, Field(ge=1, le=1 << 24)]
    tensors: Annotated[tuple[TensorRecord, ...], Field(max_length=MAX_TENSORS)]
    mean: ArrayRecord | None = None
    left: ArrayRecord | None = None
    right: ArrayRecord | None = None
    exponents: ArrayRecord | None = None
    profile: ArrayRecord | None = None
    shared: ArrayRecord | None = None
    files: Annotated[tuple[FileRecord, ...], Field(max_length=MAX_FILES)] = ()
    file_bytes: ArrayRecord | None = None
    adapter: AdapterRecord | None = None
    build: BuildRecord

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError("a tensor stands twice in the table")
        by_name = {tensor.name: tensor for tensor in self.tensors}
        groups: list[int] = []
        for tensor in self.tensors:
            if tensor.tied_to is not None:
                target = by_name.get(tensor.tied_to)
                if target is None or target.mode == "tied" or target.shape != tensor.shape:
                    raise ValueError(f"{tensor.name}: tied to {tensor.tied_to!r}, which is no such tensor")
            if tensor.group is not None:
                groups.append(tensor.group)
        if sorted(set(groups)) != list(range(len(set(groups)))):
            raise ValueError("read groups are numbered from 0 without gaps")
        check_files(self.files, (), self.file_bytes)
        self._check_products()
        return self

    def _check_products(self) -> None:
        found: dict[int, dict[str, TensorRecord]] = {}
        for tensor in self.tensors:
            if tensor.low_rank is not None:
                sides = found.setdefault(tensor.low_rank.product, {})
                if tensor.low_rank.side in sides:
                    raise ValueError(f"{tensor.name}: its product has this side already")
                sides[tensor.low_rank.side] = tensor
        if sorted(found) != list(range(len(found))):
            raise ValueError("products are numbered from 0 without gaps")
        for product, sides in found.items():
            if len(sides) != 2 or sides["left"].slices != sides["right"].slices:
                raise ValueError(f"product {product} has not two factors of one rank")

    def products(self) -> tuple[tuple[TensorRecord, TensorRecord], ...]:
        """The left and the right factor of each product, by number."""
        found: dict[tuple[int, str], TensorRecord] = {
            (tensor.low_rank.product, tensor.low_rank.side): tensor
            for tensor in self.tensors
            if tensor.low_rank is not None
        }
        return tuple((found[number, "left"], found[number, "right"]) for number in range(len(found) // 2))
