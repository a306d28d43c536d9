"""The bench of the exact tier: ``python tools/bench exact`` counts what a family takes to come back bit by bit.

Owns the baselines (Zstandard, ZipNN, differences to the mean) and their counting. Everything of the store is counted:
basis, records, array metadata, both tiers. A baseline is counted twice: over whole checkpoint files, which is what a
user would store, and bare, over the tensors' bytes end to end, without the names and shapes that a restored file needs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from numcodecs.zstd import Zstd
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

import uws_store
from uws_store.config import tool_version
from uws_store.dtypes import dtype_of_torch
from uws_store.entropy import encode_integers
from uws_store.residual import residual_of
from uws_store.tensor_bytes import bytes_of, rotated

__all__ = [
    "DTYPES",
    "ExactResult",
    "ZipnnAbsentError",
    "as_document",
    "cast_zoo",
    "markdown",
    "measure_exact",
    "show",
]

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
"""What the checkpoints are cast to."""

FAMILY = "bench"
_ZSTD_LEVEL = 19
_ZIPNN_NAMES = {"F32": "float32", "BF16": "bfloat16"}

Weights = dict[str, Tensor]


class ZipnnAbsentError(Exception):
    """ZipNN is not installed."""


@dataclass(frozen=True, slots=True)
class ExactResult:
    """One zoo in one dtype, bytes over all its models.

    Attributes
    ----------
    zoo, dtype : str
        Which.
    models : int
        How many.
    source_bytes : int
        Their safetensors files.
    ours_bytes, basis_bytes, compact_bytes : int
        The whole family; its basis; and, of the rest, what the compact tier alone needs.
    alone : int
        Models that keep at least one read group alone.
    files, bare : dict of str to int or None
        Baselines by name, over whole files, and over the tensors' bytes; None where a baseline has no such form.
    """

    zoo: str
    dtype: str
    models: int
    source_bytes: int
    ours_bytes: int
    basis_bytes: int
    compact_bytes: int
    alone: int
    files: dict[str, int | None]
    bare: dict[str, int | None]

    def ratio(self, size: int) -> float:
        """How many times smaller than the files."""
        return self.source_bytes / size

    def best(self, sizes: Mapping[str, int | None]) -> tuple[str, int]:
        """The smallest baseline."""
        known = {name: size for name, size in sizes.items() if size is not None}
        name = min(known, key=lambda key: known[key])
        return name, known[name]

    @property
    def met(self) -> bool:
        """Whether the family is at most as large as the smallest baseline over whole files."""
        return self.ours_bytes <= self.best(self.files)[1]

    @property
    def met_bare(self) -> bool:
        """The same over the tensors' bytes: baselines then lack names and shapes, and the store has them."""
        return self.ours_bytes <= self.best(self.bare)[1]


def cast_zoo(members: Iterable[tuple[str, Path]], folder: Path, dtype: str) -> dict[str, Path]:
    """Write a zoo's checkpoints anew with every floating-point tensor in one dtype."""
    folder.mkdir(parents=True)
    paths: dict[str, Path] = {}
    for task, source in members:
        tensors = {
            name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(source).items()
        }
        paths[task] = folder / source.name
        save_file(tensors, paths[task])
    return paths


def measure_exact(
    zoo: str, members: Sequence[tuple[str, Path]], dtype: str, *, on_progress: Callable[[str], None]
) -> ExactResult:
    """Store a zoo with its exact tier, check that every bit comes back, and run the baselines.

    Parameters
    ----------
    zoo : str
        Its name, for the table.
    members : sequence of (str, Path)
        Task and safetensors file; no two files share a name.
    dtype : {"F32", "BF16"}
        What all floating-point tensors are cast to first.
    on_progress : callable
        Told what is being done.

    Raises
    ------
    ZipnnAbsentError
        When ZipNN is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        paths = cast_zoo(members, Path(place) / "zoo", dtype)
        registry = str(Path(place) / "registry")
        on_progress(f"{zoo} {dtype}: building")
        built = uws_store.build(Path(place) / "zoo", family=FAMILY, registry=registry, exact=True)
        on_progress(f"{zoo} {dtype}: comparing every bit")
        opened = uws_store.open_family(FAMILY, registry=registry)
        alone = 0
        for path in paths.values():
            _require_same_bits(load_file(path), registry, path.stem)
            alone += bool(opened.model(opened.resolve(path.stem)).document.private_groups)
        on_progress(f"{zoo} {dtype}: baselines")
        files, bare = _baselines(list(paths.values()), dtype)
        return ExactResult(
            zoo=zoo,
            dtype=dtype,
            models=len(paths),
            source_bytes=sum(path.stat().st_size for path in paths.values()),
            ours_bytes=built.basis_bytes + sum(model.size_bytes for model in built.models),
            basis_bytes=built.basis_bytes,
            compact_bytes=sum(model.compact_bytes for model in built.models),
            alone=alone,
            files=files,
            bare=bare,
        )


def _require_same_bits(source: Weights, registry: str, task: str) -> None:
    weights = uws_store.load_model(FAMILY, task, registry=registry, tier="exact")
    different = [name for name, tensor in source.items() if bytes_of(weights[name]) != bytes_of(tensor)]
    if different or set(weights) != set(source):
        raise AssertionError(f"{task}: {different or 'tensors'} came back changed")


def _baselines(paths: Sequence[Path], dtype: str) -> tuple[dict[str, int | None], dict[str, int | None]]:
    zstd = Zstd(level=_ZSTD_LEVEL)
    files: dict[str, int | None] = dict.fromkeys(("zstd-19", "ZipNN"), 0)
    bare = dict(files)
    for path in paths:
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        for sizes, part in ((files, data), (bare, data[header:])):
            sizes["zstd-19"] = (sizes["zstd-19"] or 0) + len(zstd.encode(part))
            sizes["ZipNN"] = (sizes["ZipNN"] or 0) + zipnn_size(part, dtype)
    size = mean_difference_size([load_file(path) for path in paths])
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in paths[:1])
    # Names and shapes are the same in all files: one header serves them.
    return files | {"delta to mean": size + headers}, bare | {"delta to mean": size}


def zipnn_size(data: bytes, dtype: str) -> int:
    """Bytes that ZipNN makes of some, as its own defaults for the dtype have it, on one thread.

    Raises
    ------
    ZipnnAbsentError
        When it is not installed.
    """
    try:
        from zipnn import ZipNN  # noqa: PLC0415 - an optional baseline
    except ImportError as error:
        raise ZipnnAbsentError("the baseline ZipNN is not installed: pip install zipnn") from error
    coder = ZipNN(input_format="byte", bytearray_dtype=_ZIPNN_NAMES[dtype], threads=1)
    return len(coder.compress(bytearray(data)))  # a copy: it overwrites its input


def mean_difference_size(models: Sequence[Weights]) -> int:
    """Bytes of all models as ordered-integer differences to their mean through PCodec, the mean among them.

    Tensors that are no floats, or not in all models in one shape, go through PCodec or stand as they are.
    """
    first = models[0]
    common = [
        name
        for name, tensor in first.items()
        if tensor.is_floating_point()
        and all(name in model and model[name].shape == tensor.shape for model in models)
    ]
    total = 0
    means: list[npt.NDArray[np.unsignedinteger]] = []
    streams: list[list[npt.NDArray[np.unsignedinteger]]] = [[] for _ in models]
    for name in common:
        dtype = dtype_of_torch(first[name].dtype)
        mean = torch.stack([model[name].to(torch.float64) for model in models]).mean(0).to(dtype.torch)
        means.append(rotated(bytes_of(mean), width=dtype.bits))
        for stream, model in zip(streams, models, strict=True):
            stream.append(residual_of(model[name], mean, dtype))
    for stream in (means, *streams):
        if stream:
            total += len(encode_integers(np.concatenate(stream)))
    for model in models:
        total += sum(len(bytes_of(tensor)) for name, tensor in model.items() if name not in set(common))
    return total


def show(results: Sequence[ExactResult], console: Console) -> None:
    """Print the table."""
    table = Table(title="times smaller than the checkpoints, bit-identical; higher is better")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("zoo", "dtype") else "right")
    for result in results:
        table.add_row(*_row(result))
    console.print(table)


_COLUMNS = (
    "zoo",
    "dtype",
    "models",
    "uws-store",
    "zstd-19",
    "ZipNN",
    "delta to mean",
    "bare: zstd-19",
    "bare: ZipNN",
    "bare: delta",
    "compact tier",
    "alone",
    "met",
)


def _row(result: ExactResult) -> tuple[str, ...]:
    def ratio(size: int | None) -> str:
        return f"{result.ratio(size):.3f}" if size else ""

    names = ("zstd-19", "ZipNN", "delta to mean")
    met = "yes" if result.met_bare else "yes, not bare" if result.met else "no"
    return (
        result.zoo,
        result.dtype,
        str(result.models),
        ratio(result.ours_bytes),
        *(ratio(result.files[name]) for name in names),
        *(ratio(result.bare[name]) for name in names),
        ratio(result.compact_bytes),
        f"{result.alone}",
        met,
    )


def as_document(results: Sequence[ExactResult], *, absent: Mapping[str, str]) -> dict[str, object]:
    """Everything as JSON."""
    return {
        "tool": tool_version(),
        "absent": dict(absent),
        "results": [{**asdict(result), "met": result.met, "met_bare": result.met_bare} for result in results],
    }


def markdown(results: Sequence[ExactResult], *, absent: Mapping[str, str], command: str) -> str:
    """Write the table as Markdown."""
    lines = [
        "# The exact tier beside lossless coders",
        "",
        f"Made by `{command}` with {tool_version()}. Times smaller than the safetensors files, every bit restored and",
        "compared. uws-store: the whole family at its default fidelity, basis, records and both tiers. Baselines: over",
        "whole checkpoint files, and bare, over the tensors' bytes without names and shapes. *Compact tier*: what the",
        "models take without what only `exact` needs. *Alone*: models of which a read group is stored by itself, so that",
        "their compact tier is exact there. *Met*: at most the smallest baseline, over files or also bare.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
        *("| " + " | ".join(_row(result)) + " |" for result in results),
    ]
    lines += ["", *(f"{name}: skipped, {reason}" for name, reason in absent.items())] if absent else []
    return "\n".join(lines) + "\n"
