"""A second reader of the format, written from spec/uws-1.md and sharing no code with the package.

It opens a registry folder, follows the log, finds a model and reconstructs every tensor bit by bit. Everything is
checked, nothing is fast. A refusal names the rule of the specification that was broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from independent_adapters import (
    read_products,
    slice_exponents,
    through_gauge,
    with_rank,
)
from independent_arithmetic import (
    Ints,
    correct,
    exponents,
    falling,
    predict,
)
from independent_arrays import array_metadata, read_array, read_group
from independent_basis import Basis, unpack
from independent_documents import (
    KINDS,
    Json,
    Version,
    read_log,
    require,
    resolve,
)
from independent_files import check_files, read_own_files


class Tensor(NamedTuple):
    """One tensor as its bytes, little-endian and row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Model:
    """A model and its basis, read whole."""

    def __init__(self, folder: Path, digest: str, basis: Basis, basis_digest: str) -> None:
        self.document = read_group(folder, digest=digest, most_bytes=16 << 20, kind="model_document")
        check_files(self.document)
        self.basis = basis
        document = self.document
        require(document["basis"] == basis_digest, "R-MODEL-1", "another basis")
        self.grouped: set[str] = set()
        self.private = self._read_private(folder)
        self._check_names()
        self.order = self._order()
        self.ranks, self.scales, self.gauges = read_products(
            folder, document, basis.products, {name for name, how in self.order.items() if how == "coded"}
        )
        self.dtypes = self._dtypes()
        twice = document.get("lossless") and (self.dtypes or document.get("exact"))
        require(not twice, "R-TIER-4", "lossless, and coded or with digests of the exact tier")
        self.core = self._read_core(folder)
        self.residual = self._read_residual(folder)

    def _read_private(self, folder: Path) -> dict[str, Tensor]:
        document = self.document
        streams = {8: read_array(folder, "private", document.get("private_bytes"), dtype="uint8").tobytes()}
        for width in (16, 32, 64):
            if (array := document.get(f"private{width}")) is not None:
                words = read_array(folder, f"private{width}", array, dtype=f"uint{width}").tolist()
                # Rotated right by one, word for word, with Python's integers.
                back = [(word >> 1) + ((word & 1) << (width - 1)) for word in words]
                streams[width] = b"".join(word.to_bytes(width // 8, "little") for word in back)
        rows = [(row["name"], row["dtype"], tuple(row["shape"])) for row in document.get("private") or []]
        known = {name for name, _, _ in rows} | set(document.get("absent") or [])
        own, common = dict(document.get("dtypes") or []), document.get("dtype")
        last = -1
        for group in document.get("private_groups") or []:
            require(last < group < len(self.basis.groups), "R-MODEL-10", f"group {group}")
            last = group
            for name in self.basis.groups[group]:
                row = self.basis.coded[name].row
                require("low_rank" not in row, "R-RANK-2", f"{name} in a private group")
                if name not in known:
                    dtype = own.get(name) or common or row["dtype"]
                    require(
                        bool(KINDS[dtype].precision), "R-MODEL-7", f"{name} is {dtype} in a private group"
                    )
                    rows.append((name, dtype, tuple(row["shape"])))
                    self.grouped.add(name)
        private: dict[str, Tensor] = {}
        at = dict.fromkeys(streams, 0)
        for name, dtype, shape in rows:
            require(name not in private, "R-MODEL-3", name)
            size = KINDS[dtype].size
            width = 8 * size if 8 * size in streams else 8
            start = at[width]
            at[width] += math.prod(shape) * size
            private[name] = Tensor(dtype, shape, streams[width][start : at[width]])
        for width, data in streams.items():
            require(at[width] == len(data), "R-MODEL-3", f"{len(data)} private bytes, {at[width]} needed")
        return private

    def _check_names(self) -> None:
        document = self.document
        absent = document.get("absent") or []
        table = {row["name"] for row in self.basis.rows}
        require(len(set(absent)) == len(absent) and set(absent) <= table, "R-MODEL-4", "absent")
        require(not set(absent) & set(self.private), "R-MODEL-4", "both private and absent")

    def _order(self) -> dict[str, str]:
        """Every tensor in the model's order, with how it is stored."""
        absent = set(self.document.get("absent") or [])
        order: dict[str, str] = {}
        for row in self.basis.rows:
            if row["name"] not in absent:
                order[row["name"]] = "private" if row["name"] in self.private else row["mode"]
                missing = row["mode"] == "private" and row["name"] not in self.private
                require(not missing, "R-MODEL-5", f"{row['name']} is missing")
        order |= dict.fromkeys((name for name in self.private if name not in order), "private")
        for row in self.basis.rows:
            if order.get(row["name"]) == "tied":
                require(row["tied_to"] in order, "R-MODEL-6", f"{row['tied_to']} is absent")
                own = self.private.get(row["tied_to"])
                require(own is None or list(own.shape) == row["shape"], "R-MODEL-6", row["name"])
        return order

    def _dtypes(self) -> dict[str, str]:
        """The dtype of every tensor that is coded here, in coding order."""
        pairs = self.document.get("dtypes") or []
        own: dict[str, str] = dict(pairs)
        require(len(own) == len(pairs), "R-MODEL-7", "a tensor has two dtypes")
        coded = {name: row for name, row in self.basis.coded.items() if self.order.get(name) == "coded"}
        groups = self.document.get("private_groups") or []
        kept = {name for group in groups for name in self.basis.groups[group]}
        kept -= {row["name"] for row in self.document.get("private") or []}
        kept -= set(self.document.get("absent") or [])
        require(set(own) <= set(coded) | kept, "R-MODEL-7", "a dtype of a tensor that is not coded")
        common = self.document.get("dtype")
        found: dict[str, str] = {
            name: own.get(name) or common or tensor.row["dtype"] for name, tensor in coded.items()
        }
        require(all(KINDS[dtype].precision for dtype in found.values()), "R-MODEL-7", "not a float")
        errors = unpack(self.document["errors"], rule="R-MODEL-8")
        require(len(errors) == 2 * len(found), "R-MODEL-8", f"{len(errors)} bytes of errors")
        numbers = np.frombuffer(errors, "<f2")
        require(bool((np.isfinite(numbers) & (numbers >= 0)).all()), "R-MODEL-8", "an error")
        return found

    def _read_core(self, folder: Path) -> dict[str, Ints]:
        basis, array = self.basis.document, self.document.get("core")
        chunk = (array.get("chunk") or array["length"]) if array else 0
        found = (array["length"], chunk, array.get("page")) if array else (0, 0, 0)
        needed = (basis["core_length"], basis["core_chunk"], basis["core_page"])
        groups = self.document.get("private_groups") or []
        needed = needed if len(groups) < len(self.basis.groups) else (0, 0, 0)
        require(found == needed, "R-CORE-3", f"{found}, {needed} needed")
        if array is None:
            return {}
        require(array is None or array["dtype"] in ("int16", "int32"), "R-CORE-3", "dtype")
        stored = read_array(folder, "core", array).astype(np.int64)
        cores: dict[str, Ints] = {}
        start = 0
        for names in self.basis.groups:
            classes = np.concatenate([self.basis.coded[name].classes for name in names])
            # By falling class, and by place among equals: Python's sort is stable.
            order = sorted(range(len(classes)), key=lambda index: -int(classes[index]))
            pooled = np.zeros(len(classes), np.int64)
            pooled[order] = stored[start : start + len(classes)]
            start += -(-len(classes) // basis["core_chunk"]) * basis["core_chunk"]
            at = 0
            for name in names:
                shape = self.basis.coded[name].core_shape
                cores[name] = pooled[at : at + math.prod(shape)].reshape(shape)
                at += math.prod(shape)
        return cores

    def _read_residual(self, folder: Path) -> dict[str, npt.NDArray[Any]]:
        """Each coded tensor's residual, put back from the order of its read group into its own."""
        stored: dict[int, npt.NDArray[Any]] = {}
        for width in (16, 32, 64):
            array = self.document.get(f"residual{width}")
            require(array is None or self.document.get("exact"), "R-RES-1", "a residual without the tier")
            stored[width] = read_array(folder, f"residual{width}", array, dtype=f"uint{width}")
        found: dict[str, npt.NDArray[Any]] = {}
        at = dict.fromkeys(stored, 0)
        for names in self.basis.groups if self.document.get("exact") else ():
            for width in stored:
                members = [
                    name
                    for name in names
                    if name in self.dtypes and max(16, 8 * KINDS[self.dtypes[name]].size) == width
                ]
                classes = [value for name in members for value in self._residual_classes(name)]
                part = stored[width][at[width] : at[width] + len(classes)]
                require(len(part) == len(classes), "R-RES-2", f"residual{width}: too short")
                own = np.empty_like(part)
                # A sort by falling class that keeps the order of equals, said in another way.
                own[falling(classes)] = part
                at[width] += len(classes)
                for name in members:
                    count = math.prod(self._shape(name))
                    found[name], own = own[:count], own[count:]
        for width, values in stored.items():
            require(len(values) == at[width], "R-RES-2", f"residual{width}: {len(values)} of {at[width]}")
        return found

    def _residual_classes(self, name: str) -> list[int]:
        coded, dtype = self.basis.coded[name], self.dtypes[name]
        prediction = self._prediction(name)
        return [
            value + coded.row["shift"] if value is not None else -32768
            for value in exponents(prediction, dtype)
        ]

    def _shape(self, name: str) -> tuple[int, ...]:
        """A coded tensor's shape in this model."""
        shape = tuple(self.basis.coded[name].row["shape"])
        return with_rank(shape, self.ranks[name]) if name in self.ranks else shape

    def _compact(self, name: str, core: Ints | None) -> bytes:
        coded, dtype = self.basis.coded[name], self.dtypes[name]
        if name not in self.ranks:
            return predict(coded, core, self.document["step"], dtype)
        side, scales = coded.row["low_rank"]["side"], self.scales[name]
        exponents_mn = slice_exponents(coded.matrix, scales, side)
        data = predict(coded, core, self.document["step"], dtype, exponents_mn)
        size, columns = KINDS[dtype].size, coded.matrix[1]
        rows, kept = (coded.matrix[0], len(scales)) if side == "left" else (len(scales), columns)
        starts = [size * columns * row for row in range(rows)]
        return b"".join(data[start : start + size * kept] for start in starts)

    def _prediction(self, name: str) -> bytes:
        """What the residual is added to."""
        compact = self._compact(name, self.core[name])
        if name not in self.gauges:
            return compact
        side = self.basis.coded[name].row["low_rank"]["side"]
        shape = self._shape(name)
        matrix = (shape[0], math.prod(shape[1:]))
        return through_gauge(compact, matrix, self.scales[name], self.gauges[name], side, self.dtypes[name])

    def tensors(self, tier: str) -> dict[str, Tensor]:
        """Reconstruct every tensor; at the stored tiers, compare with the digests on record."""
        lossless = self.document.get("lossless")
        require(tier != "exact" or lossless or self.document.get("exact"), "R-TIER-2", "no exact tier")
        rows = {row["name"]: row for row in self.basis.rows}
        made: dict[str, Tensor] = {}
        for name, how in self.order.items():
            if how != "tied":
                made[name] = self._tensor(name, how, rows.get(name), tier)
        if tier != "mean":
            self._check_digests(made, tier)
        return {
            name: made[rows[name]["tied_to"] if how == "tied" else name] for name, how in self.order.items()
        }

    def _tensor(self, name: str, how: str, row: dict[str, Json] | None, tier: str) -> Tensor:
        if how == "private" and tier == "mean" and name in self.grouped:
            own = self.private[name]
            data = predict(self.basis.coded[name], None, self.document["step"], own.dtype)
            return Tensor(own.dtype, own.shape, data)
        if how == "private":
            return self.private[name]
        require(row is not None, "R-MODEL-5", name)
        shape = tuple(row["shape"]) if row else ()
        if how == "shared" and row:
            start, stop = self.basis.shared[name]
            return Tensor(row["dtype"], shape, self.basis.shared_bytes[start:stop])
        dtype = self.dtypes[name]
        core = None if tier == "mean" else self.core[name]
        shape = self._shape(name)
        if tier == "exact":
            return Tensor(dtype, shape, correct(self._prediction(name), self.residual[name], dtype))
        return Tensor(dtype, shape, self._compact(name, core))

    def _check_digests(self, made: dict[str, Tensor], tier: str) -> None:
        digests = [hashlib.sha256(made[name].data).digest() for name in self.order if name in made]
        for known in ("compact", "exact"):
            if self.document.get(known):
                leaves = unpack(self.document[known]["leaves"], rule="R-DIGEST-3")
                require(len(leaves) == 8 * len(digests), "R-DIGEST-3", f"{len(leaves)} bytes of leaves")
        recorded = self.document["compact" if self.document.get("lossless") else tier]
        leaves = unpack(recorded["leaves"], rule="R-DIGEST-3")
        require(leaves == b"".join(digest[:8] for digest in digests), "R-DIGEST-4", "a leaf")
        require(hashlib.sha256(b"".join(digests)).hexdigest() == recorded["root"], "R-DIGEST-4", "the root")


# The shards of a model in a pack, in this order: folders and fields of the document.
MODEL_ARRAYS = {
    "core": "core",
    "private": "private_bytes",
    **{f"{kind}{width}": f"{kind}{width}" for kind in ("private", "residual") for width in (16, 32, 64)},
    "gauge": "gauge",
    "files": "file_bytes",
}


@contextlib.contextmanager
def model_folder(family: Path, version: Version) -> Iterator[Path]:
    """A model's folder; of one in a pack the folder that it would have alone, for as long as the block is open."""
    model, _, place = version
    if place is None:
        yield family / "models" / model
        return
    path = family / "packs" / place["digest"]
    require(path.is_file(), "R-PACK-2", "the pack is missing")
    with path.open("rb") as file:
        file.seek(place["offset"])
        span = file.read(min(place["length"], path.stat().st_size))
    require(len(span) == place["length"], "R-PACK-2", "the pack ends before the model does")
    data, rest = span[: place["document"]], span[place["document"] :]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / model
        folder.mkdir()
        (folder / "zarr.json").write_bytes(data)
        document = read_group(folder, digest=model, most_bytes=16 << 20, kind="model_document")
        for name, field in MODEL_ARRAYS.items():
            array = document.get(field)
            for index, shard in enumerate(array["shards"] if array is not None else ()):
                assert array is not None
                (folder / name / "c").mkdir(parents=True, exist_ok=True)
                (folder / name / "zarr.json").write_bytes(array_metadata(array))
                require(len(rest) >= shard["size"], "R-PACK-2", "the shards are longer than the model")
                (folder / name / "c" / str(index)).write_bytes(rest[: shard["size"]])
                rest = rest[shard["size"] :]
        require(not rest, "R-PACK-2", "the shards are shorter than the model")
        yield folder


def read_files(
    registry: Path, family: str, task: str, *, revision: int | str | None = None
) -> dict[str, bytes]:
    """Read the side files of one model of a registry folder, by name."""
    version = resolve(read_log(registry), family, task, revision)
    folder = registry / "families" / family / "basis" / version.basis
    basis = Basis(folder, version.basis)
    with model_folder(registry / "families" / family, version) as own:
        model = Model(own, version.model, basis, version.basis)
        found = read_own_files(own, model.document)
    common = read_own_files(folder, basis.document)
    for name in model.document.get("shared_files") or []:
        require(name in common, "R-FILE-3", f"the basis has no {name}")
        found[name] = common[name]
    return found


def read_model(
    registry: Path, family: str, task: str, *, revision: int | str | None = None, tier: str = "compact"
) -> dict[str, Tensor]:
    """Read one model of a registry folder."""
    version = resolve(read_log(registry), family, task, revision)
    folder = registry / "families" / family
    basis = Basis(folder / "basis" / version.basis, version.basis)
    with model_folder(folder, version) as own:
        return Model(own, version.model, basis, version.basis).tensors(tier)
