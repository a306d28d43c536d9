"""Forged families: a basis of random numbers with the features that a table asks for, and members of it.

Owns the table and what its rows become. Nothing is fitted: every feature of the format is there because the table
says so, whatever a planner would choose. The same seeds give the same bytes on one kind of machine with one version of
PCodec. Must not know of registries.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from uws_store import layout
from uws_store.architecture import TensorSignature, signature_digest
from uws_store.basis import Basis
from uws_store.builder.encode import encode_model
from uws_store.builder.encoded import EncodedModel
from uws_store.builder.files import pack_files
from uws_store.canonical import Step
from uws_store.checkpoint import open_checkpoint, write_safetensors
from uws_store.dtypes import DTYPES
from uws_store.metadata.basis import BasisDocument, BuildRecord, SideRecord, StepRecord, TensorRecord
from uws_store.metadata.group import to_group_bytes
from uws_store.store import encode_array
from uws_store.tensor_bytes import bytes_of

TOOL = "uws-store vectors"
STEP = Step(160, -14)
MEAN_GRID = 12
CORE_CHUNK = 512
# Right factors finer than FRACTION_BITS, so that the first product is rounded.
_EXPONENTS = {"left": (6, 8), "right": (9, 13)}


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of the forged table.

    Attributes
    ----------
    name, shape, dtype, mode
        As in the table.
    left, right : tuple of int or None
        Block and rank of a factor.
    group, shift : int
        Read group, and the power of two that divides the step.
    tied_to : str or None
        For ``tied``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    mode: str = "coded"
    left: tuple[int, int] | None = None
    right: tuple[int, int] | None = None
    group: int = 0
    shift: int = 0
    tied_to: str | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """First axis x the rest."""
        numel = math.prod(self.shape)
        return (self.shape[0], numel // self.shape[0]) if len(self.shape) > 1 else (1, numel)


ROWS = (
    Row("embed.weight", (40, 24), left=(40, 40), right=(24, 24), group=1),
    Row("conv.weight", (8, 3, 3, 3), left=(8, 5), right=(27, 27)),
    Row("conv.bias", (8,), "F64"),
    # Diagonal blocks on both sides, the last ones smaller, and a rank below the block.
    Row("mlp.weight", (21, 100), left=(8, 8), right=(32, 20), group=2, shift=-1),
    Row("mlp.bias", (21,), "F16", right=(8, 3)),
    Row("norm.weight", (33,), "BF16", right=(33, 12), shift=2),
    Row("scale", (), "F32"),
    Row("half.weight", (5, 11), "F16", right=(11, 11)),
    Row("brain.weight", (16, 9), "BF16", left=(16, 16)),
    Row("e4m3.weight", (12, 10), "F8_E4M3", left=(5, 5), right=(10, 10), group=1),
    Row("e5m2.weight", (10, 6), "F8_E5M2"),
    Row("wide.weight", (6, 7), "F64", left=(6, 4)),
    Row("gr\u00f6\u00dfe \U0001f642 \"'/\\", (2, 3), "F32"),
    Row("running_var", (33,), "F32", "private"),
    Row("num_batches_tracked", (), "I64", "private"),
    Row("positions", (1, 12), "I64", "shared"),
    Row("mask", (3,), "BOOL", "shared"),
    Row("nothing", (0, 4), "F32", "shared"),
    Row("head.weight", (40, 24), mode="tied", tied_to="embed.weight"),
)


@dataclass(frozen=True, slots=True)
class ForgedBasis:
    """A basis in objects, ready to be stored.

    Attributes
    ----------
    digest : str
        Its name.
    objects : dict of str to bytes
        Path below its folder to bytes.
    means : dict of str to numpy.ndarray
        The real mean of each coded tensor, in its own shape.
    shared : dict of str to torch.Tensor
        The shared tensors.
    """

    digest: str
    objects: dict[str, bytes]
    means: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)


def forge_basis(
    rows: Sequence[Row],
    *,
    seed: int,
    core_chunk: int = CORE_CHUNK,
    array_chunk: int = 1 << 17,
    files: Mapping[str, bytes] | None = None,
) -> ForgedBasis:
    """Make a basis of random numbers with the features that a table asks for.

    Parameters
    ----------
    rows : sequence of Row
        The table.
    seed : int
        Of all its numbers.
    core_chunk, array_chunk : int
        Inner chunks of the models' core and of the basis's own arrays.
    files : mapping of str to bytes, optional
        Side files.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]] = {}
    means: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    shared: dict[str, torch.Tensor] = {}
    counts: dict[int, int] = {}
    for row in sorted((row for row in rows if row.mode == "coded"), key=lambda row: row.group):
        m, n = row.matrix
        mean = rng.integers(-300, 301, m * n, dtype=np.int32)
        means[row.name] = np.ldexp(mean.astype(np.float64), -MEAN_GRID).reshape(row.shape)
        parts.setdefault("mean", []).append(mean)
        columns = {"left": m, "right": n}
        for name, side, extent in (("left", row.left, m), ("right", row.right, n)):
            if side is not None:
                columns[name] = 0
                for start in range(0, extent, side[0]):
                    height = min(side[0], extent - start)
                    width = min(side[1], height)
                    columns[name] += width
                    parts.setdefault(name, []).append(_factor(rng, height, width))
                low, high = _EXPONENTS[name]
                exponents = rng.integers(low, high + 1, columns[name]).astype(np.int16)
                parts.setdefault("exponents", []).append(exponents)
        for extent in (columns["left"], columns["right"]):
            parts.setdefault("profile", []).append(rng.integers(-30, 5, extent).astype(np.int16))
        counts[row.group] = counts.get(row.group, 0) + columns["left"] * columns["right"]
    for row in rows:
        if row.mode == "shared":
            values = torch.from_numpy(rng.integers(0, 2, row.shape)).to(DTYPES[row.dtype].torch)
            shared[row.name] = values
            parts.setdefault("shared", []).append(np.frombuffer(bytes_of(values), np.uint8))
    arrays = {
        name: encode_array(
            np.concatenate(values), chunk=array_chunk, page=None if name == "shared" else 1 << 12
        )
        for name, values in parts.items()
    }
    records, file_array = pack_files(files or {})
    if file_array is not None:
        arrays["files"] = file_array
    document = BasisDocument(
        architecture=signature_digest(TensorSignature(row.name, row.shape) for row in rows),
        step=StepRecord(mantissa=STEP.mantissa, exponent=STEP.exponent),
        core_length=sum(-(-count // core_chunk) * core_chunk for count in counts.values()),
        core_chunk=core_chunk,
        core_page=1 << 12,
        residual_chunk=1 << 17,
        tensors=tuple(_record(row) for row in rows),
        files=records,
        **{("file_bytes" if name == "files" else name): array.record for name, array in arrays.items()},  # type: ignore[arg-type]
        build=BuildRecord(models=2, sources="0" * 64, tool=TOOL, pcodec="0.3", options=(("forged", "yes"),)),
    )
    group = to_group_bytes(document)
    objects = {
        f"{name}/{path}": data for name, array in arrays.items() for path, data in array.objects.items()
    }
    objects[layout.GROUP_PATH] = group
    return ForgedBasis(hashlib.sha256(group).hexdigest(), objects, means, shared)


def _factor(
    rng: np.random.Generator, height: int, width: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Draw a block whose columns are independent: a strong diagonal over noise."""
    noise = rng.integers(-12, 13, (height, width))
    return (noise + 50 * np.eye(height, width, dtype=np.int64)).astype(np.int16).reshape(-1)


def _record(row: Row) -> TensorRecord:
    coded = row.mode == "coded"
    left, right = (
        SideRecord(block=side[0], rank=side[1]) if side else None for side in (row.left, row.right)
    )
    return TensorRecord(
        name=row.name,
        shape=row.shape,
        dtype=row.dtype,
        mode=row.mode,  # type: ignore[arg-type]
        tied_to=row.tied_to,
        left=left,
        right=right,
        mean_grid=MEAN_GRID if coded else None,
        shift=row.shift if coded else None,
        group=row.group if coded else None,
    )


def forge_checkpoint(
    rows: Sequence[Row], basis: ForgedBasis, *, seed: int, noise: float = 0.02, dtype: str | None = None
) -> dict[str, torch.Tensor]:
    """Make a member of the family: the mean and some noise.

    Parameters
    ----------
    rows : sequence of Row
        The table.
    basis : ForgedBasis
        For the means and the shared tensors.
    seed : int
        Of the noise.
    noise : float
        Its standard deviation.
    dtype : str, optional
        Of every coded tensor; the table's when absent.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    for row in rows:
        if row.mode == "coded":
            values = basis.means[row.name] + noise * rng.standard_normal(row.shape)
            tensors[row.name] = torch.from_numpy(np.asarray(values)).to(DTYPES[dtype or row.dtype].torch)
        elif row.mode == "shared":
            tensors[row.name] = basis.shared[row.name].clone()
        elif row.mode == "tied":
            assert row.tied_to is not None
            tensors[row.name] = tensors[row.tied_to].clone()
        else:
            counts = rng.integers(1, 100, row.shape)
            tensors[row.name] = torch.from_numpy(np.asarray(counts)).to(DTYPES[row.dtype].torch)
    return tensors


def odd_checkpoint(rows: Sequence[Row], basis: ForgedBasis) -> dict[str, torch.Tensor]:
    """Make a member that departs from the table in every way a member may."""
    tensors = forge_checkpoint(rows, basis, seed=23)
    del tensors["e5m2.weight"], tensors["nothing"]
    tensors["half.weight"] = torch.from_numpy(np.linspace(-1, 1, 18).reshape(6, 3))  # another shape and dtype
    tensors["brain.weight"][3, 4] = math.nan
    tensors["wide.weight"][0, 0] = -math.inf
    tensors["conv.bias"] = tensors["conv.bias"].to(torch.float16)
    tensors["conv.bias"][0] = -0.0
    tensors["mlp.bias"] = tensors["mlp.bias"].to(torch.float32)
    tensors["mlp.bias"][0] = 1e-40  # subnormal, and far below a step
    tensors["mask"] = torch.logical_not(tensors["mask"])
    tensors["head.weight"][0, 0] += 1  # no longer tied
    tensors["extra.weight"] = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    tensors["extra.empty"] = torch.zeros(3, 0, dtype=torch.float16)
    return tensors


def encode(
    basis: Basis,
    tensors: Mapping[str, torch.Tensor],
    *,
    exact: bool,
    step: Step = STEP,
    files: Mapping[str, bytes] | None = None,
    exact_overhead: float | None = None,
) -> EncodedModel:
    """Encode a state dict as if it came from a file, or with side files from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_safetensors(path, tensors, {"licence": "CC0-1.0"})
        for name, data in (files or {}).items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(data)
        with open_checkpoint(path if files is None else folder) as checkpoint:
            return encode_model(basis, checkpoint, exact=exact, step=step, exact_overhead=exact_overhead)
