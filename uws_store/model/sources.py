"""Where each tensor of a model comes from, laid out from its record and its basis's table alone.

Reads nothing: every offset follows from the documents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

from uws_store.basis import Basis
from uws_store.dtypes import DTYPES, DType
from uws_store.errors import FormatError
from uws_store.low_rank import LowRankSide
from uws_store.metadata.basis import TensorRecord
from uws_store.metadata.model import ModelDocument, PrivateRecord
from uws_store.residual import residual_dtype

__all__ = ["SliceRange", "Source", "residual_starts", "sources_of"]


@dataclass(frozen=True, slots=True)
class SliceRange:
    """Where the numbers of a product's factor lie beside its core.

    Attributes
    ----------
    side : {"left", "right"}
        Which factor.
    rank : int
        Its rank in this model.
    scales : int
        First of the product's scales, among those of all products.
    gauge : int
        First of the factor's numbers in the gauge array.
    """

    side: LowRankSide
    rank: int
    scales: int
    gauge: int

    @property
    def gauge_stop(self) -> int:
        """End of the factor's numbers in the gauge array: two grids and the matrix."""
        return self.gauge + 2 + self.rank * self.rank


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of a model's tensors comes from.

    Attributes
    ----------
    kind : {"coded", "shared", "private", "tied"}
        How it is stored.
    shape : tuple of int
        Its shape.
    dtype : DType
        Its type in this model.
    start : int
        First byte in the private array, first element in that of its width, or, among the residuals of its read group
        and width, first element.
    array : str
        For ``private``: the array it lies in.
    grouped : bool
        For ``private``: whether it is so because its read group is. The family has a mean of it all the same.
    tied_to : str or None
        For ``tied``: the tensor it is.
    digest : int or None
        Its position among the digests; None for ``tied``.
    slices : SliceRange or None
        For a factor of a product that is coded.
    """

    kind: Literal["coded", "shared", "private", "tied"]
    shape: tuple[int, ...]
    dtype: DType
    start: int = 0
    array: str = ""
    grouped: bool = False
    tied_to: str | None = None
    digest: int | None = None
    slices: SliceRange | None = None


def sources_of(document: ModelDocument, basis: Basis, *, where: str) -> dict[str, Source]:
    """Lay out the model's tensors: the table without what is absent, then private tensors of other names."""
    absent = frozenset(document.absent)
    for name in absent:
        if name not in basis.table:
            raise FormatError(f"{where}: {name!r} is not in the basis's table", kind="format/model")
    private = _private_sources(document, basis, where, absent=absent)
    coded = _coded_sources(document, basis, where, without={*private, *absent})
    found: dict[str, Source] = {}
    for record in basis.document.tensors:
        if record.name in absent:
            continue
        if record.name in private:
            found[record.name] = private[record.name]
        elif record.mode == "coded":
            found[record.name] = coded[record.name]
        elif record.mode == "private":
            raise FormatError(
                f"{where}: {record.name} is private in this family and missing here", kind="format/model"
            )
        else:
            found[record.name] = Source(
                record.mode, record.shape, DTYPES[record.dtype], tied_to=record.tied_to
            )
    found |= {name: source for name, source in private.items() if name not in basis.table}
    sources: dict[str, Source] = {}
    digests = itertools.count()
    for name, source in found.items():
        if source.tied_to is None:
            # Built anew: every load of a model does this for each tensor, and `replace` takes five times as long.
            sources[name] = Source(
                source.kind,
                source.shape,
                source.dtype,
                source.start,
                source.array,
                source.grouped,
                None,
                next(digests),
                source.slices,
            )
            continue
        target = found.get(source.tied_to)
        if target is None or target.shape != source.shape:
            raise FormatError(
                f"{where}: {name} is tied to {source.tied_to}, which is not here", kind="format/model"
            )
        sources[name] = replace(source, dtype=target.dtype)
    return sources


def _private_sources(
    document: ModelDocument, basis: Basis, where: str, *, absent: AbstractSet[str]
) -> dict[str, Source]:
    """Lay private tensors out: those on record, then those of private groups in coding order."""
    own = dict(document.dtypes)
    records = list(document.private)
    own_records = len(records)
    named = {record.name for record in records} | absent
    for index in document.private_groups:
        if index >= len(basis.groups):
            raise FormatError(f"{where}: the basis has no read group {index}", kind="format/model")
        for name in basis.groups[index].names:
            row = basis.table[name]
            if row.low_rank is not None:
                raise FormatError(
                    f"{where}: read group {index} is private and holds {name}, a factor", kind="format/model"
                )
            if name not in named:
                dtype_name = own.get(name, document.dtype or row.dtype)
                if not DTYPES[dtype_name].is_float:
                    raise FormatError(
                        f"{where}: read group {index} is private and {name} in it {dtype_name}",
                        kind="format/model",
                    )
                records.append(PrivateRecord(name=name, shape=row.shape, dtype=dtype_name))
    sources: dict[str, Source] = {}
    at = dict.fromkeys(("private", "private16", "private32", "private64"), 0)
    for place, record in enumerate(records):
        dtype = DTYPES[record.dtype]
        typed = document.typed_private(record.dtype) is not None
        array = f"private{dtype.bits}" if typed else "private"
        sources[record.name] = Source(
            "private", record.shape, dtype, start=at[array], array=array, grouped=place >= own_records
        )
        at[array] += record.size_bytes // (dtype.size_bytes if typed else 1)
    for array, length in at.items():
        found = document.arrays.get(array)
        if (found.length if found else 0) != length:
            raise FormatError(
                f"{where}: {array} has {found.length if found else 0} of {length} elements",
                kind="format/model",
            )
    return sources


def _coded_sources(
    document: ModelDocument, basis: Basis, where: str, *, without: set[str]
) -> dict[str, Source]:
    """Give each coded tensor its dtype and its place among the residuals of its read group."""
    own = dict(document.dtypes)
    slices = _slices(document, basis, where, without=without)
    sources: dict[str, Source] = {}
    for group in basis.groups:
        at = dict.fromkeys(("uint16", "uint32", "uint64"), 0)
        for name in group.names:
            if name in without:
                continue
            record = basis.table[name]
            dtype = DTYPES[own.get(name, document.dtype or record.dtype)]
            if not dtype.is_float:
                raise FormatError(f"{where}: {name} is coded and {dtype.name}", kind="format/model")
            width = residual_dtype(dtype)
            found = slices.get(name)
            shape = record.shape_at(found.rank) if found else record.shape
            sources[name] = Source("coded", shape, dtype, start=at[width], slices=found)
            at[width] += math.prod(shape)
    grouped = {name for index in document.private_groups for name in basis.groups[index].names}
    grouped -= {record.name for record in document.private} | set(document.absent)
    for name in own.keys() - sources.keys() - grouped:
        raise FormatError(f"{where}: {name!r} has a dtype of its own and is not coded", kind="format/model")
    return sources


def _slices(document: ModelDocument, basis: Basis, where: str, *, without: set[str]) -> dict[str, SliceRange]:
    """Lay out ranks, scales and gauges of the products that are coded here, by number."""
    coded: list[tuple[TensorRecord, TensorRecord]] = []
    for left, right in basis.document.products():
        missing = [record.name for record in (left, right) if record.name in without]
        if len(missing) == 1:
            raise FormatError(
                f"{where}: {missing[0]} is not coded, and the other factor of its product is",
                kind="format/model",
            )
        if not missing:
            coded.append((left, right))
    ranks = document.ranks or ()
    if len(ranks) == 1:
        ranks *= len(coded)
    if document.ranks is None:
        ranks = tuple(left.slices or 0 for left, _ in coded)
    if len(ranks) != len(coded):
        raise FormatError(f"{where}: {len(ranks)} ranks of {len(coded)} products", kind="format/model")
    found: dict[str, SliceRange] = {}
    scales = gauge = 0
    for (left, right), rank in zip(coded, ranks, strict=True):
        if rank > (left.slices or 0):
            raise FormatError(
                f"{where}: {left.name} has rank {rank}, and the table {left.slices}", kind="format/model"
            )
        for record in (left, right):
            assert record.low_rank is not None
            found[record.name] = SliceRange(record.low_rank.side, rank, scales, gauge)
            gauge = found[record.name].gauge_stop
        scales += rank
    stated = len(document.scale_list())
    if stated not in (0, scales):
        raise FormatError(f"{where}: {stated} scales of {scales} slices", kind="format/model")
    length = document.gauge.length if document.gauge else 0
    if length not in (0, gauge):
        raise FormatError(f"{where}: the gauge has {length} of {gauge} numbers", kind="format/model")
    return found


def residual_starts(sources: Mapping[str, Source], basis: Basis) -> dict[tuple[int, str], int]:
    """First element of each read group in the residual array of each width: groups lie end to end."""
    starts: dict[tuple[int, str], int] = {}
    at = dict.fromkeys(("uint16", "uint32", "uint64"), 0)
    for index, group in enumerate(basis.groups):
        starts |= {(index, width): start for width, start in at.items()}
        for name in group.names:
            source = sources.get(name)
            if source is not None and source.kind == "coded":
                at[residual_dtype(source.dtype)] += math.prod(source.shape)
    return starts
