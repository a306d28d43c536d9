"""Putting fitted tensors together: the tensor table, read groups, the packed arrays of a basis.

Owns the grids that are chosen at build time. Writes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from uws_store import layout
from uws_store.basis import ARRAYS
from uws_store.builder.files import pack_files
from uws_store.builder.fit import TensorFit
from uws_store.builder.members import Members
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
from uws_store.store import encode_array
from uws_store.subspace import QuantisedSide
from uws_store.tensor_bytes import bytes_of

__all__ = ["assemble_basis"]

_MEAN_LIMIT = float(2**31 - 1)
_SMALL_CHUNK = 1 << 17


def assemble_basis(
    members: Members,
    surveys: Sequence[TensorSurvey],
    fits: Sequence[TensorFit],
    *,
    step: Step,
    finest: Step,
    options: tuple[tuple[str, str], ...],
    workers: Workers | None = None,
) -> tuple[BasisDocument, bytes, dict[str, bytes]]:
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
    objects : dict of str to bytes
        Every object below the basis's folder, the group document last.
    """
    # A mean that would not fit 32 bits on its grid belongs to a tensor of another scale than the zoo's: private.
    fitted = {fit.survey.name: fit for fit in fits}
    means = {name: _mean_on_grid(fit, finest) for name, fit in fitted.items()}
    coded = _without_lone_factors({name: fit for name, fit in fitted.items() if means[name] is not None})
    products = dict.fromkeys(fit.survey.place.product for fit in coded.values() if fit.survey.place)
    numbers = {product: number for number, product in enumerate(products)}
    groups = _read_groups([coded[survey.name] for survey in surveys if survey.name in coded])
    rows = tuple(_row(survey, coded.get(survey.name), means, groups, numbers) for survey in surveys)
    order = sorted(
        (survey.name for survey in surveys if survey.name in coded), key=lambda name: groups[name]
    )  # stable: coding order is by group, then by table
    values = _arrays(members, rows, [coded[name] for name in order], means)
    encoded = {
        name: encode_array(
            array,
            chunk=layout.PRIVATE_CHUNK if name == "shared" else _SMALL_CHUNK,
            page=None if name == "shared" else layout.page_for(len(array)),
        )
        for name, array in values.items()
        if len(array)
    }
    files, file_array = pack_files(members.side_files)
    if file_array is not None:
        encoded["files"] = file_array
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


def _mean_on_grid(fit: TensorFit, step: Step) -> tuple[torch.Tensor, int] | None:
    """Round the mean to its grid; None when that needs over 32 bits."""
    rms = math.sqrt(fit.survey.change_energy / math.prod(fit.survey.shape)) / fit.survey.sensitivity
    grid = mean_grid(step=step.value * 2.0**-fit.shift, change_rms=rms)
    whole = torch.round(fit.mean * math.ldexp(1.0, grid))
    if not bool(whole.abs().max() < _MEAN_LIMIT) or abs(grid) > 256:
        return None
    return whole.to(torch.int32), grid


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
    means: dict[str, tuple[torch.Tensor, int] | None],
    groups: dict[str, int],
    products: dict[tuple[str, str], int],
) -> TensorRecord:
    mean = means.get(survey.name)
    if fit is None or mean is None:
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
        mean_grid=mean[1],
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
    means: dict[str, tuple[torch.Tensor, int] | None],
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]]:
    parts: dict[str, list[np.ndarray[tuple[int], np.dtype[np.generic]]]] = {name: [] for name in ARRAYS}
    for fit in fits:
        mean = means[fit.survey.name]
        assert mean is not None
        parts["mean"].append(mean[0].reshape(-1).numpy())
        for name, side in (("left", fit.left), ("right", fit.right)):
            if side is not None:
                parts[name].append(side.integers.numpy())
                parts["exponents"].append(side.exponents.numpy())
        parts["profile"] += [fit.rows.numpy(), fit.columns.numpy()]
    for row in rows:
        if row.mode == "shared":
            checkpoint = next(iter(members.checkpoints.values()))
            parts["shared"].append(np.frombuffer(bytes_of(checkpoint.read(row.name)), np.uint8))
    return {
        name: np.concatenate(arrays) if arrays else np.zeros(0, np.uint8) for name, arrays in parts.items()
    }
