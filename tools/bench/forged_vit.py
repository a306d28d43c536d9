"""A family of the size of ViT-B/16, written through the package's own parts: random weights of realistic statistics.

Training or fitting eighty-six million parameters several times has no place in a bench of loading. Owns the table, the
random numbers and the order of writing. The digests are made by the float64 path, tensor by tensor, so that loading
is checked against an arithmetic it does not use.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from uws_store import layout
from uws_store.architecture import TensorSignature, signature_digest
from uws_store.basis import Basis
from uws_store.canonical import Step
from uws_store.dtypes import DTYPES
from uws_store.metadata.basis import BasisDocument, BuildRecord, SideRecord, StepRecord, TensorRecord
from uws_store.metadata.group import to_group_bytes
from uws_store.metadata.log import BasisAction, FamilyAction, ModelAction
from uws_store.metadata.model import DigestRecord, ModelDocument, SourceRecord
from uws_store.registry import Registry
from uws_store.storage import LocalStorage
from uws_store.store import EncodedArray, encode_array
from uws_store.subspace import quantise_side
from uws_store.tensor_bytes import digest_of

__all__ = ["FAMILY", "ForgedVit", "forge_vit"]

FAMILY = "vit-b"
_TOOL = "bench"
_MEAN_GRID = 12
_STEP = Step.nearest(2.0**-11)
_DEPTH = 12
_BLOCK = 256
_FULL = 1024
_WIDEST_CLASS = 8


@dataclass(frozen=True, slots=True)
class ForgedVit:
    """What was written.

    Attributes
    ----------
    registry : Path
        The registry's folder.
    tasks : tuple of str
        The models.
    parameters : int
        Of one model.
    basis_bytes, model_bytes : int
        Stored bytes of the basis, and of the first model.
    plain : Path
        The first model as safetensors.
    """

    registry: Path
    tasks: tuple[str, ...]
    parameters: int
    basis_bytes: int
    model_bytes: int
    plain: Path


def _shapes(width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "cls_token", (1, 1, width)
    yield "pos_embed", (1, 197, width)
    yield "patch_embed.weight", (width, 3, 16, 16)
    yield "patch_embed.bias", (width,)
    for index in range(depth):
        at = f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            yield f"{at}.{norm}.weight", (width,)
            yield f"{at}.{norm}.bias", (width,)
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            yield f"{at}.{name}.weight", (rows, columns)
            yield f"{at}.{name}.bias", (rows,)
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)
    yield "head.weight", (1000, width)
    yield "head.bias", (1000,)


def forge_vit(
    folder: Path, *, models: int = 2, bits: float = 0.5, width: int = 768, depth: int = _DEPTH
) -> ForgedVit:
    """Write a family and its first model as safetensors.

    Parameters
    ----------
    folder : Path
        Where; is made.
    models : int
        How many models.
    bits : float
        About how many bits a coefficient takes.
    width, depth : int
        Of the network; the defaults are ViT-B/16.
    """
    random = np.random.default_rng(0)
    registry = Registry.open(str(folder / "registry"), create=True)
    storage = LocalStorage(folder / "registry")
    for path in layout.family_groups(FAMILY):
        storage.put_if_absent(path, b'{"attributes":{},"node_type":"group","zarr_format":3}')
    document, objects = _basis(random, list(_shapes(width, depth)))
    digest = hashlib.sha256(objects[layout.GROUP_PATH]).hexdigest()
    basis_bytes = _put(storage, layout.basis_prefix(FAMILY, digest), objects)
    basis = Basis.open(storage, layout.basis_prefix(FAMILY, digest), digest=digest)
    basis.prefetch()
    scale = _scale_for(basis, random, bits)
    actions, sizes = [], []
    plain: dict[str, Tensor] = {}
    for index in range(models):
        group, model_objects, tensors = _model(basis, random, scale)
        plain = plain or tensors
        name = hashlib.sha256(group).hexdigest()
        sizes.append(_put(storage, layout.model_prefix(FAMILY, name), model_objects))
        actions.append(
            ModelAction(
                family=FAMILY,
                task=f"task-{index}",
                version=1,
                basis_revision=1,
                digest=name,
                size_bytes=sizes[-1],
                exact=False,
            )
        )
    registry.publish(
        lambda _state: [
            FamilyAction(family=FAMILY, architecture=document.architecture),
            BasisAction(family=FAMILY, revision=1, digest=digest, size_bytes=basis_bytes),
            *actions,
        ]
    )
    save_file(plain, folder / "plain.safetensors")
    return ForgedVit(
        folder / "registry",
        tuple(action.task for action in actions),
        sum(tensor.numel() for tensor in plain.values()),
        basis_bytes,
        sizes[0],
        folder / "plain.safetensors",
    )


def _put(storage: LocalStorage, prefix: str, objects: dict[str, bytes]) -> int:
    for path, data in objects.items():
        storage.put_if_absent(f"{prefix}/{path}", data)
    return sum(map(len, objects.values()))


def _basis(
    random: np.random.Generator, shapes: list[tuple[str, tuple[int, ...]]]
) -> tuple[BasisDocument, dict[str, bytes]]:
    rows: list[TensorRecord] = []
    parts: dict[str, list[npt.NDArray[np.generic]]] = {
        name: [] for name in ("mean", "left", "right", "exponents", "profile")
    }
    group, pool = 1, 0
    counts: dict[int, int] = {}
    turns: dict[int, Tensor] = {}
    for name, shape in shapes:
        rows_m = 1 if len(shape) < 2 else shape[0]
        matrix = (rows_m, math.prod(shape) // rows_m)
        alone = math.prod(shape) >= layout.GROUP_COEFFICIENTS
        sides = {
            side: _record(extent) if alone and rows_m > 1 else None
            for side, extent in zip(("left", "right"), matrix, strict=True)
        }
        own = group if alone else pool
        group += alone
        counts[own] = counts.get(own, 0) + math.prod(matrix)
        rows.append(
            TensorRecord(
                name=name,
                shape=shape,
                dtype="F32",
                mode="coded",
                left=sides["left"],
                right=sides["right"],
                mean_grid=_MEAN_GRID,
                shift=0,
                group=own,
            )
        )
    for row in sorted(rows, key=lambda row: row.group or 0):
        m, n = row.matrix
        parts["mean"].append(np.round(random.standard_normal(m * n) * 24).astype(np.int32))
        for side, record, extent in (("left", row.left, m), ("right", row.right, n)):
            if record is not None:
                integers, exponents = _side(random, record, extent, turns)
                parts[side].append(integers)
                parts["exponents"].append(exponents)
        for extent in (m, n):
            fall = np.linspace(_WIDEST_CLASS, -_WIDEST_CLASS, extent) if extent > 1 else np.zeros(1)
            parts["profile"].append(fall.round().astype(np.int16))
    arrays = {
        name: encode_array(np.concatenate(values), chunk=1 << 17, page=1 << 14)
        for name, values in parts.items()
    }
    chunk = layout.CORE_CHUNK
    document = BasisDocument(
        architecture=signature_digest(TensorSignature(row.name, row.shape) for row in rows),
        step=StepRecord(mantissa=_STEP.mantissa, exponent=_STEP.exponent),
        core_length=sum(-(-count // chunk) * chunk for count in counts.values()),
        core_chunk=chunk,
        core_page=layout.page_for(chunk),
        residual_chunk=layout.RESIDUAL_CHUNK,
        tensors=tuple(rows),
        **{name: array.record for name, array in arrays.items()},  # type: ignore[arg-type]
        build=BuildRecord(models=2, sources="0" * 64, tool=_TOOL, pcodec="0.3", options=()),
    )
    return document, _objects(arrays, to_group_bytes(document))


def _objects(arrays: dict[str, EncodedArray], group: bytes) -> dict[str, bytes]:
    found = {f"{name}/{path}": data for name, array in arrays.items() for path, data in array.objects.items()}
    return found | {layout.GROUP_PATH: group}


def _record(extent: int) -> SideRecord:
    """A factor as the planner chooses it for such a side: full, or in blocks where it is wide."""
    block = extent if extent <= _FULL else _BLOCK
    return SideRecord(block=block, rank=block)


def _side(
    random: np.random.Generator, record: SideRecord, extent: int, turns: dict[int, Tensor]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """An orthogonal factor: one turn for each width, its rows in another order each time."""
    if record.block not in turns:
        source = torch.from_numpy(random.standard_normal((record.block, record.block)))
        turns[record.block] = torch.linalg.qr(source)[0]
    blocks = []
    for start in range(0, extent, record.block):
        height = min(record.block, extent - start)
        turned = turns[record.block][torch.from_numpy(random.permutation(record.block))]
        blocks.append(turned[:height, :height])
    side = quantise_side(blocks, size=extent, block=record.block, rank=record.rank)
    return side.integers.numpy(), side.exponents.numpy()


def _core(basis: Basis, random: np.random.Generator, scale: float, index: int) -> npt.NDArray[np.int16]:
    """Quantised Laplace coefficients of a read group, in significance order."""
    group = basis.groups[index]
    parts = []
    for name in group.names:
        rows, columns = basis.profile(name)
        parts.append(np.exp2((rows[:, None].astype(np.float32) + columns[None, :]) / 4).reshape(-1))
    scales = np.concatenate(parts)[basis.order(index)]
    real = random.laplace(size=len(scales)).astype(np.float32) * scales * np.float32(scale)
    # The dead zone that the quantiser has: magnitudes below 0.6 become zero.
    whole: npt.NDArray[np.int16] = (np.sign(real) * np.floor(np.abs(real) + 0.4)).astype(np.int16)
    return whole


def _scale_for(basis: Basis, random: np.random.Generator, bits: float) -> float:
    """How many steps the coefficients must be wide to take so many bits each."""
    largest = max(range(len(basis.groups)), key=lambda index: basis.groups[index].coefficients)
    low, high = 1e-3, 1e2
    for _ in range(12):
        scale = math.sqrt(low * high)
        core = _core(basis, random, scale, largest)
        taken = 8 * encode_array(core, chunk=1 << 17, page=1 << 14).record.size_bytes / len(core)
        low, high = (low, scale) if taken > bits else (scale, high)
    return math.sqrt(low * high)


def _model(
    basis: Basis, random: np.random.Generator, scale: float
) -> tuple[bytes, dict[str, bytes], dict[str, Tensor]]:
    document = basis.document
    core = np.zeros(document.core_length, np.int16)
    made: dict[str, Tensor] = {}
    for index, group in enumerate(basis.groups):
        stored = _core(basis, random, scale, index)
        core[group.start : group.start + len(stored)] = stored
        pooled = np.empty_like(stored)
        pooled[basis.order(index)] = stored
        for name in group.names:
            slot = basis.slots[name]
            own = pooled[slot.core_offset : slot.core_offset + slot.coefficients].reshape(slot.core_shape)
            numbers = basis.tensor(name)
            integers = torch.from_numpy(own.astype(np.float64))
            assert numbers.is_exact(integers, step=_STEP)
            made[name] = numbers.predict(integers, step=_STEP, dtype=DTYPES["F32"])
    tensors = {row.name: made[row.name] for row in document.tensors}
    array = encode_array(core, chunk=document.core_chunk, page=document.core_page)
    record = ModelDocument(
        basis=basis.digest,
        step=StepRecord(mantissa=_STEP.mantissa, exponent=_STEP.exponent),
        core=array.record,
        compact=DigestRecord.over([digest_of(tensor) for tensor in tensors.values()]),
        rel_error=0.0,
        errors=ModelDocument.pack_errors([0.0] * len(tensors)),
        source=SourceRecord(sha256="0" * 64, size_bytes=1),
    )
    group_bytes = to_group_bytes(record)
    return group_bytes, _objects({"core": array}, group_bytes), tensors
