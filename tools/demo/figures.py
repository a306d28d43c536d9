"""The demo's figures: what was measured, summed up, held against the promises, and as JSON.

Owns the promises and the names of the numbers in ``--json``. Knows nothing of how they came about or are shown.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from statistics import fmean, median

import torch
from measuring import ZSTD_LEVEL, ByteCount, Exactness, Original, Scored, Stored

from uws_store.config import tool_version

# What the demo promises of models that the basis never saw, at the first setting.
MAX_BITS = 1.2
MAX_DROP_POINTS = 0.5


@dataclass(frozen=True, slots=True)
class Setting:
    """One family with its scores.

    Attributes
    ----------
    stored : Stored
        What was stored.
    scored : tuple of Scored
        Every model.
    """

    stored: Stored
    scored: tuple[Scored, ...]

    def group(self, *, in_basis: bool) -> tuple[Scored, ...]:
        """Return the models that took part in the basis, or those that did not."""
        return tuple(model for model in self.scored if model.in_basis == in_basis)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the demo measured.

    Attributes
    ----------
    originals : tuple of Original
        The zoo.
    settings : tuple of Setting
        The first one is what the promises are about.
    exact : Stored
        The family with residuals.
    exactness : Exactness
        How many of its tensors are bit-identical.
    seconds : dict of str to float
        Time of each phase.
    """

    originals: tuple[Original, ...]
    settings: tuple[Setting, ...]
    exact: Stored
    exactness: Exactness
    seconds: dict[str, float]


def summary(setting: Setting, *, in_basis: bool) -> dict[str, float]:
    """Summarise a setting's models that are, or are not, in the basis; accuracies in [0, 1], drops in points."""
    models = setting.group(in_basis=in_basis)
    drops = [100 * (model.original - model.reconstructed) for model in models]
    bits = fmean(model.bits_per_parameter for model in models)
    return {
        "models": len(models),
        "bits_per_parameter": bits,
        "times_smaller": 32 / bits,
        "original": fmean(model.original for model in models),
        "reconstructed": fmean(model.reconstructed for model in models),
        "mean_only": fmean(model.mean_only for model in models),
        "drop_points": fmean(drops),
        "worst_drop_points": max(drops),
        "load_ms": 1000 * median(model.load_s for model in models),
    }


def bars_of(report: Report) -> dict[str, dict[str, float | bool]]:
    """Return each promise of the demo with its limit, what was measured, and whether it holds."""
    kept_out = summary(report.settings[0], in_basis=False)
    exactness = report.exactness
    measured = (
        ("bits_per_parameter_of_kept_out_models", kept_out["bits_per_parameter"], MAX_BITS),
        ("points_of_accuracy_lost_by_kept_out_models", kept_out["drop_points"], MAX_DROP_POINTS),
        ("tensors_of_the_exact_tier_that_differ", float(exactness.tensors - exactness.identical), 0.0),
    )
    return {
        name: {"measured": value, "limit": limit, "holds": value <= limit} for name, value, limit in measured
    }


def as_document(report: Report) -> dict[str, object]:
    """Return everything as plain JSON values: the tables' numbers, and each model's."""
    safetensors_bytes = sum(original.size_bytes for original in report.originals)
    kept_out = summary(report.settings[0], in_basis=False)
    first = report.settings[0].stored
    return {
        "bars": bars_of(report),
        "claims": {
            "models": kept_out["models"],
            "bits": round(kept_out["bits_per_parameter"], 2),
            "ratio": round(kept_out["times_smaller"], 1),
            "accuracy": round(100 * kept_out["reconstructed"], 1),
            "original": round(100 * kept_out["original"], 1),
            "mean": round(100 * kept_out["mean_only"], 1),
            "family": len(report.originals),
            "amortised": round(safetensors_bytes / first.bytes.total, 1),
        },
        "baselines": {
            "safetensors_bytes": safetensors_bytes,
            f"safetensors_zstd_{ZSTD_LEVEL}_bytes": sum(original.zstd_bytes for original in report.originals),
        },
        "settings": [
            {
                "asked_bits": setting.stored.bits,
                "coded_parameters": setting.stored.coded_parameters,
                "basis_members": summary(setting, in_basis=True),
                "kept_out": summary(setting, in_basis=False),
                "bytes": _bytes_document(setting.stored.bytes, safetensors_bytes),
                "build_s": setting.stored.build_s,
                "add_s": setting.stored.add_s,
                "models": [asdict(model) for model in setting.scored],
            }
            for setting in report.settings
        ],
        "exact": {
            **asdict(report.exactness),
            "bytes": _bytes_document(report.exact.bytes, safetensors_bytes),
        },
        "seconds": report.seconds,
        "total_s": sum(report.seconds.values()),
        "machine": {
            "processors": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "writer": tool_version(),
        },
    }


def _bytes_document(count: ByteCount, safetensors_bytes: int) -> dict[str, float]:
    return {**asdict(count), "total": count.total, "amortised_ratio": safetensors_bytes / count.total}
