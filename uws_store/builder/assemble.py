"""Putting fitted tensors together: the tensor table, read groups, the packed arrays of a basis.

Owns the grids that are chosen at build time. Writes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from uws_store import layout
from uws_store.basis import ARRAYS
from uws_store.builder.files import pack_files
from uws_store.builder.fit import TensorFit
from uws_store.builder.members import Members
from uws_store.builder.object_folder import ObjectFolder
from uws_store.builder.scratch import Scratch
from uws_store.builder.survey import TensorSurvey
from uws_store.canonical import Step
from uws_store.config import tool_version
from uws_store.executors import Workers
from uws_store.metadata.arrays import ArrayRecord
from uws_store.metadata.basis import (
    AdapterRecord,
    BasisDocument,
    BuildRecord,
    LowRankRecord,
    SideRecord,
    StepRecord,
    TensorRecord,
)
from uws_store.metadata.group import to_group_bytes
from uws_store.plan import mean_grid
from uws_store.store import EncodedArray, encode_array
from uws_store.subspace import QuantisedSide
from uws_store.tensor_bytes import bytes_of

__all__ = ["assemble_basis"]

_MEAN_LIMIT = float(2**31 - 1)
_SMALL_CHUNK = 1 << 17
_MEAN_PART = 1 << 22


def assemble_basis(
    members: Members,
    surveys: Sequence[TensorSurvey],
    fits: Sequence[TensorFit],
    *,
    step: Step,
    finest: Step,
    options: tuple[tuple[str, str], ...],
    workers: Workers | None = None,
) -> tuple[BasisDocument, bytes, Mapping[str, bytes]]:
    """Make the document, the group bytes and the objects of a basis.

    Parameters
    ----------
    members, surveys, fits
        The zoo, every tensor of it, and the coded ones.
    step : Step
        For models that ask for none.
    finest : Step
        The finest step that models are meant to have: the grids of means are for it.
    options : tuple of (str, str)
        For the record.
    workers : Workers, optional
        Who digests the checkpoints.

    Returns
    -------
    document : BasisDocument
        The basis's document.
    group : bytes
        Its Zarr group document.
    objects : Mapping of str to bytes
        Every object below the basis's folder, the group document last; of a large architecture an
        :class:`uws_store.builder.object_folder.ObjectFolder`.
    """
    # A mean that would not fit 32 bits on its grid belongs to a tensor of another scale than the zoo's: private.
    fitted = {fit.survey.name: fit for fit in fits}
    grids: dict[str, int] = {}
    for name, fit in fitted.items():
        grid = _grid_of_mean(fit, finest)
        if grid is not None:
            grids[name] = grid
        members.scratch.forget()
    coded = _without_lone_factors({name: fit for name, fit in fitted.items() if name in grids})
    products = dict.fromkeys(fit.survey.place.product for fit in coded.values() if fit.survey.place)
    numbers = {product: number for number, product in enumerate(products)}
    groups = _read_groups([coded[survey.name] for survey in surveys if survey.name in coded])
    rows = tuple(_row(survey, coded.get(survey.name), grids, groups, numbers) for survey in surveys)
    order = sorted(
        (survey.name for survey in surveys if survey.name in coded), key=lambda name: groups[name]
    )  # stable: coding order is by group, then by table
    values = _arrays(members, rows, [coded[name] for name in order], grids)
    folder = ObjectFolder(members.scratch.folder) if members.is_large else None
    encoded: dict[str, EncodedArray] = {}
    for name in list(values):
        array = values.pop(name)
        if len(array):
            encoded[name] = encode_array(
                array,
                chunk=layout.PRIVATE_CHUNK if name == "shared" else _SMALL_CHUNK,
                page=None if name == "shared" else layout.page_for(len(array)),
                made=_into(folder, name, members.scratch) if folder is not None else None,
            )
        del array
        members.scratch.forget()
    files, file_array = pack_files(members.side_files)
    if file_array is not None:
        encoded["files"] = file_array
        if folder is not None:
            for path, data in file_array.objects.items():
                folder.add(f"files/{path}", data)
    counts = [
        sum(coded[name].coefficients for name in order if groups[name] == g) for g in range(_count(groups))
    ]
    chunk = layout.core_chunk_for(max(counts, default=1))
    records: dict[str, ArrayRecord] = {name: array.record for name, array in encoded.items()}
    document = BasisDocument(
        architecture=members.report.digest,
        step=StepRecord(mantissa=step.mantissa, exponent=step.exponent),
        core_length=sum(-(-count // chunk) * chunk for count in counts),
        core_chunk=chunk,
        core_page=layout.page_for(chunk),
        residual_chunk=layout.RESIDUAL_CHUNK,
        tensors=rows,
        mean=records.get("mean"),
        left=records.get("left"),
        right=records.get("right"),
        exponents=records.get("exponents"),
        profile=records.get("profile"),
        shared=records.get("shared"),
        files=files,
        file_bytes=records.get("files"),
        adapter=_adapter_record(members),
        build=BuildRecord(
            models=len(members.checkpoints),
            sources=members.sources_digest(workers),
            tool=tool_version(),
            pcodec=version("pcodec"),
            options=options,
        ),
    )
    group = to_group_bytes(document)
    if folder is not None:
        folder.add(layout.GROUP_PATH, group)
        return document, group, folder
    objects = {
        f"{name}/{path}": data
        for name in ARRAYS
        if name in encoded
        for path, data in encoded[name].objects.items()
    }
    objects[layout.GROUP_PATH] = group
    return document, group, objects


def _without_lone_factors(coded: Mapping[str, TensorFit]) -> dict[str, TensorFit]:
    """Leave out factors of products whose other factor is not coded: one is nothing without the other."""
    return {
        name: fit
        for name, fit in coded.items()
        if fit.survey.place is None or all(factor in coded for factor in fit.survey.place.product)
    }


def _into(folder: ObjectFolder, name: str, scratch: Scratch) -> Callable[[str, bytes], None]:
    def take(path: str, data: bytes) -> None:
        folder.add(f"{name}/{path}", data)
        scratch.forget()

    return take


def _grid_of_mean(fit: TensorFit, step: Step) -> int | None:
    """Choose the mean's grid; None when the mean needs over 32 bits on it."""
    rms = math.sqrt(fit.survey.change_energy / math.prod(fit.survey.shape)) / fit.survey.sensitivity
    grid = mean_grid(step=step.value * 2.0**-fit.shift, change_rms=rms)
    if abs(grid) > 256 or not all(
        bool(whole.abs().max() < _MEAN_LIMIT) for whole in _mean_on_grid(fit, grid)
    ):
        return None
    return grid


def _mean_on_grid(fit: TensorFit, grid: int) -> Iterator[torch.Tensor]:
    """Round the mean to its grid, some of it at a time: float64, 1-D."""
    for part in torch.split(fit.mean.reshape(-1), _MEAN_PART):
        yield torch.round(part.to(torch.float64) * math.ldexp(1.0, grid))


def _read_groups(coded: Sequence[TensorFit]) -> dict[str, int]:
    """Number the read groups: large tensors alone, small ones pooled, in the order in which they begin."""
    groups: dict[str, int] = {}
    pool: int | None = None
    held = count = 0
    for fit in coded:
        size = fit.coefficients
        if size >= layout.GROUP_COEFFICIENTS:
            groups[fit.survey.name] = count
            count += 1
            continue
        if pool is None or held + size > layout.POOL_COEFFICIENTS:
            pool, held = count, 0
            count += 1
        groups[fit.survey.name] = pool
        held += size
    return groups


def _count(groups: dict[str, int]) -> int:
    return max(groups.values(), default=-1) + 1


def _row(
    survey: TensorSurvey,
    fit: TensorFit | None,
    grids: Mapping[str, int],
    groups: dict[str, int],
    products: dict[tuple[str, str], int],
) -> TensorRecord:
    if fit is None:
        return TensorRecord(
            name=survey.name,
            shape=survey.shape,
            dtype=survey.dtype,
            mode="private" if survey.mode == "coded" else survey.mode,  # type: ignore[arg-type]
            tied_to=survey.tied_to,
        )
    return TensorRecord(
        name=survey.name,
        shape=survey.shape,
        dtype=survey.dtype,
        mode="coded",
        left=_side_record(fit.left),
        right=_side_record(fit.right),
        mean_grid=grids[survey.name],
        shift=fit.shift,
        group=groups[survey.name],
        low_rank=LowRankRecord(product=products[survey.place.product], side=survey.place.side)
        if survey.place
        else None,
    )


def _adapter_record(members: Members) -> AdapterRecord | None:
    """What most members' adapter configurations say, field by field."""
    configs = [checkpoint.adapter for checkpoint in members.checkpoints.values() if checkpoint.adapter]
    if not configs:
        return None
    counts: dict[str, Counter[str]] = {}
    for config in configs:
        for key, text in config.entries:
            counts.setdefault(key, Counter())[text] += 1
    common = tuple(
        (key, texts.most_common(1)[0][0])
        for key, texts in sorted(counts.items())
        if 2 * texts.total() > len(configs)
    )
    return AdapterRecord(base_model=configs[0].base_model, base_sha256=members.base_sha256, config=common)


def _side_record(side: QuantisedSide | None) -> SideRecord | None:
    return SideRecord(block=side.block, rank=side.rank) if side else None


def _arrays(
    members: Members,
    rows: Sequence[TensorRecord],
    fits: Sequence[TensorFit],
    grids: Mapping[str, int],
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]]:
    length = sum(fit.mean.numel() for fit in fits)
    mean = members.scratch.zeros((length,), np.int32) if members.is_large else np.zeros(length, np.int32)
    at = 0
    parts: dict[str, list[np.ndarray[tuple[int], np.dtype[np.generic]]]] = {name: [] for name in ARRAYS}
    for fit in fits:
        for whole in _mean_on_grid(fit, grids[fit.survey.name]):
            mean[at : at + len(whole)] = whole.numpy()
            at += len(whole)
        members.scratch.forget()
        for name, side in (("left", fit.left), ("right", fit.right)):
            if side is not None:
                parts[name].append(side.integers.numpy())
                parts["exponents"].append(side.exponents.numpy())
        parts["profile"] += [fit.rows.numpy(), fit.columns.numpy()]
    for row in rows:
        if row.mode == "shared":
            checkpoint = next(iter(members.checkpoints.values()))
            parts["shared"].append(np.frombuffer(bytes_of(checkpoint.read(row.name)), np.uint8))
    parts["mean"] = [mean] if length else []
    return {name: _joined(arrays) for name, arrays in parts.items()}


def _joined(
    arrays: Sequence[np.ndarray[tuple[int], np.dtype[np.generic]]],
) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, np.uint8)
