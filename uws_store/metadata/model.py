"""The document of a model: which bytes make it, against which basis, and how near it is to its source.

It stands in the attributes of the model's Zarr group; the SHA-256 of that group document names the model. Kept
small: the tensor table lives in the basis, digests are packed bytes. Must not know how tensors are decoded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from uws_store.dtypes import DTYPES
from uws_store.metadata.arrays import ArrayRecord, Sha256Hex
from uws_store.metadata.basis import MAX_TENSORS, DTypeName, Shape, StepRecord, TensorName
from uws_store.metadata.document import Document, Part
from uws_store.metadata.files import MAX_FILES, FileName, FileRecord, check_files

__all__ = [
    "LEAF_BYTES",
    "MAX_RANK",
    "MAX_SCALE",
    "DigestRecord",
    "ModelDocument",
    "PairedRecord",
    "PrivateRecord",
    "ScoreRecord",
    "SourceRecord",
    "relative_error",
]

MAX_RANK = 1 << 14
"""Largest rank of a product."""

MAX_SCALE = 64
"""Largest absolute exponent of a slice's scale."""

LEAF_BYTES = 8
"""Bytes kept of each tensor's SHA-256; the root covers them whole."""


GroupNumber = Annotated[int, Field(ge=0, le=MAX_TENSORS)]


def relative_error(error_energy: float, energy: float) -> float:
    """``||W - W'|| / ||W||`` from sums of squares, as records state it; the plain norm of the error when W is zero."""
    return math.sqrt(error_energy / energy) if energy else math.sqrt(error_energy)


def _packed(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{what} is not base64") from error


class DigestRecord(Part):
    """Digests of every reconstructed tensor of a model at one tier.

    Attributes
    ----------
    root : str
        SHA-256, hex, over the whole SHA-256 digests of the tensors, one after the other.
    leaves : str
        Base64 of the first 8 bytes of each of those digests.
    """

    root: Sha256Hex
    leaves: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(_packed(self.leaves, "leaves")) % LEAF_BYTES:
            raise ValueError(f"leaves are {LEAF_BYTES} bytes each")
        return self

    @classmethod
    def over(cls, digests: list[bytes]) -> Self:
        """Make the record from the tensors' SHA-256 digests, in the model's tensor order."""
        leaves = b"".join(digest[:LEAF_BYTES] for digest in digests)
        root = hashlib.sha256(b"".join(digests)).hexdigest()
        return cls(root=root, leaves=base64.b64encode(leaves).decode())

    def leaf_list(self) -> list[bytes]:
        """The digests' first 8 bytes, one per tensor."""
        data = _packed(self.leaves, "leaves")
        return [data[start : start + LEAF_BYTES] for start in range(0, len(data), LEAF_BYTES)]


class PrivateRecord(Part):
    """A tensor that a model keeps to itself, byte for byte.

    Attributes
    ----------
    name, shape, dtype
        As in the source checkpoint.
    """

    name: TensorName
    shape: Shape
    dtype: DTypeName

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].size_bytes


class SourceRecord(Part):
    """Where a model came from.

    Attributes
    ----------
    sha256 : str
        Digest of the source checkpoint's files.
    size_bytes : int
        Their length.
    metadata : tuple of (str, str)
        The checkpoint's own metadata: licence, base model and the like.
    """

    sha256: Sha256Hex
    size_bytes: Annotated[int, Field(ge=0)]
    metadata: Annotated[tuple[tuple[str, str], ...], Field(max_length=256)] = ()


class PairedRecord(Part):
    """A drop averaged over examples, with its 95 % confidence interval; positive is worse.

    Attributes
    ----------
    mean, low, high : float
        The mean over examples, and the interval's ends.
    """

    mean: float
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError("an interval's low end is above its high end")
        return self


class ScoreRecord(Part):
    """A measured score of the original and of its reconstruction.

    Attributes
    ----------
    metric : str
        Name of the metric.
    tier : str
        The tier that was evaluated.
    original, reconstruction : float
        The two scores.
    higher_is_better : bool
        Which direction is good.
    n : int or None
        Examples scored; None when the evaluation did not say.
    evaluation : str
        Name and hash of the evaluation; never run from here.
    purpose : {"report", "search", "both"}
        What the examples were for: to be reported alone; to choose the step, so that the score flatters; or both.
    max_drop : float or None
        What the score was promised to drop by at most, where a step was chosen by it. A greater drop stands here
        only for a model that was then kept bit-identical.
    paired : PairedRecord or None
        Where the evaluation gave results per example.
    """

    metric: Annotated[str, Field(max_length=200)]
    tier: Literal["compact", "exact", "mean"]
    original: float
    reconstruction: float
    higher_is_better: bool
    n: Annotated[int, Field(ge=1)] | None = None
    evaluation: Annotated[str, Field(max_length=400)]
    purpose: Literal["report", "search", "both"] = "report"
    max_drop: Annotated[float, Field(ge=0)] | None = None
    paired: PairedRecord | None = None


class ModelDocument(Document):
    """Everything about one model but the numbers in its arrays.

    A model's tensors, in order: those of the basis's table without ``absent``, then the private ones whose names
    the table has not. A table tensor that also stands in ``private`` is taken from there.

    Attributes
    ----------
    basis : str
        Digest of the basis.
    step : StepRecord
        The quantiser step of the core.
    dtype : str or None
        The dtype of this model's coded tensors; None means the table's.
    dtypes : tuple of (str, str)
        Coded tensors that differ from that, as (name, dtype).
    absent : tuple of str
        Table tensors that the model has not.
    private : tuple of PrivateRecord
        Tensors kept byte for byte, in the order they are packed.
    private_groups : tuple of int
        Read groups whose tensors are kept byte for byte too, in the shapes of the table: they follow the private ones.
    core, private_bytes, residual16, residual32, residual64 : ArrayRecord or None
        The packed arrays; None when empty.
    shared_files : tuple of str
        Side files that are those of the basis under these names.
    files : tuple of FileRecord
        Side files of the model's own, in the order they are packed.
    file_bytes : ArrayRecord or None
        The bytes of ``files``; None when there are none.
    private16, private32, private64 : ArrayRecord or None
        Private tensors whose elements have so many bits, entropy coded; None when these lie in ``private_bytes``.
    ranks : tuple of int or None
        The rank of each product that is coded here, by number; one stands for all, None for the table's.
    scales : str or None
        Base64 of a signed byte for each slice of each product that is coded here: the exponents of their scales;
        None stands for zeros.
    gauge : ArrayRecord or None
        For the exact tier of models whose products are coded in balanced form.
    compact, exact : DigestRecord
        Digests of the reconstructed tensors per tier; ``exact`` is None when the model has no exact tier of its own.
    lossless : bool
        Nothing is coded, and so the compact tier is the exact one: ``exact`` need not say its digests again.
    rel_error : float
        ``||W - W'|| / ||W||`` over the basis-coded weights of the compact tier.
    errors : str
        Base64 of little-endian float16: the same for each coded tensor in table order.
    source : SourceRecord
        Provenance.
    scores : tuple of ScoreRecord
        Measured when the model was published.
    """

    max_bytes: ClassVar[int] = 16 << 20
    leaves_out_defaults: ClassVar[bool] = True

    kind: Literal["model"] = "model"
    basis: Sha256Hex
    step: StepRecord
    dtype: DTypeName | None = None
    dtypes: tuple[tuple[TensorName, DTypeName], ...] = ()
    absent: Annotated[tuple[TensorName, ...], Field(max_length=MAX_TENSORS)] = ()
    private: Annotated[tuple[PrivateRecord, ...], Field(max_length=MAX_TENSORS)] = ()
    private_groups: Annotated[tuple[GroupNumber, ...], Field(max_length=MAX_TENSORS)] = ()
    core: ArrayRecord | None = None
    private_bytes: ArrayRecord | None = None
    private16: ArrayRecord | None = None
    private32: ArrayRecord | None = None
    private64: ArrayRecord | None = None
    residual16: ArrayRecord | None = None
    residual32: ArrayRecord | None = None
    residual64: ArrayRecord | None = None
    shared_files: Annotated[tuple[FileName, ...], Field(max_length=MAX_FILES)] = ()
    files: Annotated[tuple[FileRecord, ...], Field(max_length=MAX_FILES)] = ()
    file_bytes: ArrayRecord | None = None
    ranks: (
        Annotated[
            tuple[Annotated[int, Field(ge=1, le=MAX_RANK)], ...], Field(min_length=1, max_length=MAX_TENSORS)
        ]
        | None
    ) = None
    scales: str | None = None
    gauge: ArrayRecord | None = None
    compact: DigestRecord
    exact: DigestRecord | None = None
    lossless: Literal[True] | None = None
    rel_error: Annotated[float, Field(ge=0)]
    errors: str
    source: SourceRecord
    scores: tuple[ScoreRecord, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [record.name for record in self.private]
        if len(set(names)) != len(names):
            raise ValueError("a private tensor stands twice")
        if set(names) & set(self.absent):
            raise ValueError("a tensor is both private and absent")
        if len(set(self.absent)) != len(self.absent):
            raise ValueError("an absent tensor stands twice")
        if len({name for name, _ in self.dtypes}) != len(self.dtypes):
            raise ValueError("a tensor has two dtypes")
        if self.core is not None and self.core.dtype not in ("int16", "int32"):
            raise ValueError(f"a core is int16 or int32, not {self.core.dtype}")
        for width in (16, 32, 64):
            array = self.residual(width)
            if array is not None and (array.dtype != f"uint{width}" or self.exact is None):
                raise ValueError(f"residual{width} is a uint{width} array of a model with an exact tier")
        if self.lossless and (self.exact is not None or self.errors):
            raise ValueError(
                "a lossless model has no digests of its own for the exact tier, and codes nothing"
            )
        check_files(self.files, self.shared_files, self.file_bytes)
        if self.gauge is not None and (self.gauge.dtype != "int16" or self.exact is None):
            raise ValueError("a gauge is an int16 array of a model with an exact tier")
        if any(abs(scale) > MAX_SCALE for scale in self.scale_list()):
            raise ValueError(f"scales lie in [-{MAX_SCALE}, {MAX_SCALE}]")
        if len(_packed(self.errors, "errors")) % 2:
            raise ValueError("errors are 2 bytes each")
        if not all(0 <= error < math.inf for error in self.error_list()):
            raise ValueError("errors are finite and at least 0")
        return self

    @model_validator(mode="after")
    def _check_private(self) -> Self:
        if any(low >= high for low, high in itertools.pairwise(self.private_groups)):
            raise ValueError("private groups are numbered upwards")
        stored = sum(record.size_bytes for record in self.private if self.typed_private(record.dtype) is None)
        found = self.private_bytes.length if self.private_bytes else 0
        # Tensors of private groups follow, and only the basis knows how many.
        if stored != found and not (self.private_groups and stored < found):
            raise ValueError(f"private tensors have {stored} bytes, their array {found}")
        for width in (16, 32, 64):
            array = self.private_of(width)
            if array is not None and array.dtype != f"uint{width}":
                raise ValueError(f"private{width} is a uint{width} array")
        return self

    @property
    def exact_digests(self) -> DigestRecord | None:
        """Digests of the tensors at the exact tier; None when the model has none."""
        return self.compact if self.lossless else self.exact

    def private_of(self, width: int) -> ArrayRecord | None:
        """The array of private elements of a width in bits, if the model has one."""
        return {16: self.private16, 32: self.private32, 64: self.private64}.get(width)

    def typed_private(self, dtype: str) -> ArrayRecord | None:
        """The array that a private tensor of a dtype lies in; None when it lies in ``private_bytes``."""
        return self.private_of(DTYPES[dtype].bits)

    @property
    def arrays(self) -> dict[str, ArrayRecord]:
        """The arrays that the model has, by the names of their folders."""
        records = {
            "core": self.core,
            "private": self.private_bytes,
            "private16": self.private16,
            "private32": self.private32,
            "private64": self.private64,
            "residual16": self.residual16,
            "residual32": self.residual32,
            "residual64": self.residual64,
            "gauge": self.gauge,
            "files": self.file_bytes,
        }
        return {name: record for name, record in records.items() if record is not None}

    @property
    def private_size_bytes(self) -> int:
        """Stored bytes that bits per parameter leave out: those of private tensors, unless whole groups are private."""
        if self.private_groups:
            return 0
        return sum(record.size_bytes for name, record in self.arrays.items() if name.startswith("private"))

    def residual(self, width: int) -> ArrayRecord | None:
        """The residual array of a storage width in bits."""
        return {16: self.residual16, 32: self.residual32, 64: self.residual64}[width]

    def scale_list(self) -> list[int]:
        """Exponents of the slices' scales, products by number."""
        return [int(value) for value in np.frombuffer(_packed(self.scales or "", "scales"), np.int8)]

    @staticmethod
    def pack_scales(scales: list[int]) -> str | None:
        """Pack exponents of scales for the document; None when all are zero."""
        return base64.b64encode(np.asarray(scales, np.int8).tobytes()).decode() if any(scales) else None

    def error_list(self) -> list[float]:
        """Relative errors of the coded tensors in table order, as stored (half precision)."""
        return [float(value) for value in np.frombuffer(_packed(self.errors, "errors"), "<f2")]

    @staticmethod
    def pack_errors(errors: list[float]) -> str:
        """Pack relative errors for the document, rounding up so that none is understated."""
        exact = np.asarray(errors, np.float64)
        half = np.minimum(exact, 65504.0).astype("<f2")
        low = half.astype(np.float64) < np.minimum(exact, 65504.0)
        half[low] = np.nextafter(half[low], np.float16(np.inf))
        return base64.b64encode(np.minimum(half, np.float16(65504.0)).astype("<f2").tobytes()).decode()
