"""A second reader of the format, written from spec/uws-1.md and sharing no code with the package.

It opens a registry folder, follows the log, finds a model and reconstructs every tensor bit by bit. Everything is
checked, nothing is fast. A refusal names the rule of the specification that was broken.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
import struct
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from independent_adapters import (
    check_products,
    products_of,
    read_products,
    slice_exponents,
    through_gauge,
    with_rank,
)
from independent_arithmetic import (
    Coded,
    Ints,
    correct,
    exponents,
    falling,
    make_side,
    matrix_of,
    predict,
    side_counts,
)
from independent_documents import (
    KINDS,
    Json,
    Refusal,
    Version,
    check_record,
    load_json,
    read_file,
    read_log,
    require,
    resolve,
)


class Tensor(NamedTuple):
    """One tensor as its bytes, little-endian and row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


SHARD_CHUNKS = 4096


def read_group(folder: Path, *, digest: str, most_bytes: int, kind: str) -> dict[str, Json]:
    head, tail = b'{"attributes":{"uws_store":', b'},"node_type":"group","zarr_format":3}'
    data = read_file(folder / "zarr.json", most_bytes=most_bytes + len(head) + len(tail), rule="R-GROUP-3")
    require(hashlib.sha256(data).hexdigest() == digest, "R-GROUP-2", "the document's digest")
    require(data.startswith(head) and data.endswith(tail), "R-GROUP-1", "head or tail")
    document = load_json(data[len(head) : -len(tail)], most_bytes=most_bytes)
    check_record(kind, document, kind)
    return document


def array_metadata(array: dict[str, Json]) -> bytes:
    whole = array.get("chunk") is None
    coder: dict[str, Json] = {"name": "bytes"}
    if array.get("page") is not None:
        configuration = {
            "delta_spec": "none",
            "equal_pages_up_to": array["page"],
            "level": 8,
            "mode_spec": "classic",
        }
        coder = {"configuration": {} if whole else configuration, "name": "numcodecs.pcodec"}
    keys: dict[str, Json] = {"configuration": {"separator": "/"}, "name": "default"}
    chunk = array["length"] if whole else array["chunk"]
    chunks = -(-array["length"] // chunk)
    sharding = {
        "chunk_shape": [chunk],
        "codecs": [coder, {"name": "crc32c"}],
        "index_codecs": [{"configuration": {"endian": "little"}, "name": "bytes"}, {"name": "crc32c"}],
        "index_location": "end",
    }
    shard = chunk * min(chunks, SHARD_CHUNKS)
    sharded = [{"configuration": sharding, "name": "sharding_indexed"}]
    document = {
        "chunk_grid": {"configuration": {"chunk_shape": [shard]}, "name": "regular"},
        "chunk_key_encoding": {"name": "default"} if whole else keys,
        "codecs": [coder, {"name": "crc32c"}] if whole else sharded,
        "data_type": array["dtype"],
        "fill_value": 0,
        "node_type": "array",
        "shape": [array["length"]],
        "zarr_format": 3,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def read_array(
    folder: Path, name: str, array: dict[str, Json] | None, *, dtype: str = ""
) -> npt.NDArray[Any]:
    """Read a whole array, having checked every object of it."""
    if array is None:
        return np.zeros(0, dtype or "uint8")
    require(array["dtype"] == (dtype or array["dtype"]), "R-ARRAY-2", f"{name} is {array['dtype']}")
    require((array["dtype"] == "uint8") == (array.get("page") is None), "R-ARRAY-1", f"{name}: page")
    whole = array.get("chunk") is None
    require(not whole or array["length"] <= 2**24, "R-ARRAY-11", f"{name}: a chunk of {array['length']}")
    chunks = 1 if whole else -(-array["length"] // array["chunk"])
    require(len(array["shards"]) == -(-chunks // SHARD_CHUNKS), "R-ARRAY-1", f"{name}: shards")
    path = folder / name / "zarr.json"
    require(path.is_file() and path.read_bytes() == array_metadata(array), "R-ARRAY-3", f"{name}: metadata")
    slots = min(chunks, SHARD_CHUNKS)
    for index, entry in enumerate(array["shards"]):
        shard = folder / name / "c" / str(index)
        require(shard.is_file(), "R-ARRAY-4", f"{name}: shard {index} is missing")
        data = shard.read_bytes()
        require(len(data) == entry["size"], "R-ARRAY-5", f"{name}: {len(data)} bytes")
        require(hashlib.sha256(data).hexdigest() == entry["sha256"], "R-ARRAY-5", f"{name}: digest")
        if not whole:
            check_index(data, slots=slots, held=min(SHARD_CHUNKS, chunks - index * SHARD_CHUNKS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the codec is not in the Zarr specification
        try:
            values = np.asarray(zarr.open_array(folder / name, mode="r")[:])
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise Refusal("R-ARRAY-8", f"{name}: {error}") from error
    require(values.shape == (array["length"],), "R-ARRAY-8", f"{name}: {values.shape}")
    return values


def check_index(data: bytes, *, slots: int, held: int) -> None:
    """zarr-python takes a missing entry for zeros; here it is damage."""
    size = 16 * slots + 4
    require(len(data) >= size, "R-ARRAY-6", "too short for an index")
    whole = len(data) - size
    entries = list(struct.iter_unpack("<QQ", data[whole:-4]))
    missing = (2**64 - 1, 2**64 - 1)
    require(all(entry == missing for entry in entries[held:]), "R-ARRAY-7", "more chunks than there are")
    require(
        2**64 - 1 not in {part for entry in entries[:held] for part in entry}, "R-ARRAY-7", "missing chunk"
    )
    for offset, length in entries[:held]:
        require(offset + length <= whole, "R-ARRAY-6", "an entry points outside")
    require(sum(length for _, length in entries[:held]) <= whole, "R-ARRAY-6", "chunks overlap")


BASIS_ARRAYS = {
    **dict.fromkeys(("left", "right", "exponents", "profile"), "int16"),
    "mean": "int32",
    "shared": "uint8",
}


def check_table(tensors: list[dict[str, Json]]) -> None:
    by_name = {row["name"]: row for row in tensors}
    require(len(by_name) == len(tensors), "R-BASIS-2", "a name stands twice")
    groups: set[int] = set()
    for row in tensors:
        require(math.prod(row["shape"]) <= 2**42, "R-BASIS-3", "elements")
        coded = row["mode"] == "coded"
        for name in ("mean_grid", "shift", "group"):
            require((row.get(name) is not None) == coded, "R-BASIS-3", f"{row['name']}: {name}")
        require((row.get("tied_to") is not None) == (row["mode"] == "tied"), "R-BASIS-5", row["name"])
        if coded:
            require(math.prod(row["shape"]) and KINDS[row["dtype"]].precision, "R-BASIS-3", row["name"])
            groups.add(row["group"])
        for side, extent in zip(("left", "right"), matrix_of(row["shape"]), strict=True):
            if (found := row.get(side)) is not None:
                require(coded, "R-BASIS-3", row["name"])
                require(found["rank"] <= found["block"] <= extent, "R-FACTOR-1", row["name"])
        if row["mode"] == "tied":
            target = by_name.get(row["tied_to"])
            good = target is not None and target["mode"] != "tied" and target["shape"] == row["shape"]
            require(good, "R-BASIS-5", row["name"])
    require(groups == set(range(len(groups))), "R-BASIS-4", "groups")
    check_products(tensors)


class Basis:
    """A basis, read whole."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.document = read_group(folder, digest=digest, most_bytes=64 << 20, kind="basis_document")
        self.rows: list[dict[str, Json]] = self.document["tensors"]
        check_table(self.rows)
        check_files(self.document)
        coded = [row for row in self.rows if row["mode"] == "coded"]
        coded.sort(key=lambda row: row["group"])  # stable: by group, then by table
        self.shared: dict[str, tuple[int, int]] = {}
        at = 0
        for row in self.rows:
            if row["mode"] == "shared":
                size = math.prod(row["shape"]) * KINDS[row["dtype"]].size
                self.shared[row["name"]] = (at, at + size)
                at += size
        self._check_lengths(coded, at)
        arrays = {
            name: read_array(folder, name, self.document.get(name), dtype=dtype)
            for name, dtype in BASIS_ARRAYS.items()
        }
        self.shared_bytes = arrays["shared"].tobytes()
        self.coded = self._join(coded, arrays)
        self.products = products_of(self.rows)
        self.groups = [
            [name for name, tensor in self.coded.items() if tensor.row["group"] == group]
            for group in range(len({row["group"] for row in coded}))
        ]

    def _check_lengths(self, coded: list[dict[str, Json]], shared: int) -> None:
        needed = dict.fromkeys(BASIS_ARRAYS, 0) | {"shared": shared}
        groups: dict[int, int] = {}
        for row in coded:
            m, n = matrix_of(row["shape"])
            (left, p), (right, q) = side_counts(row.get("left"), m), side_counts(row.get("right"), n)
            needed["mean"] += m * n
            needed["left"] += left
            needed["right"] += right
            needed["exponents"] += (p if row.get("left") else 0) + (q if row.get("right") else 0)
            needed["profile"] += p + q
            groups[row["group"]] = groups.get(row["group"], 0) + p * q
        for name, length in needed.items():
            array = self.document.get(name)
            require((array["length"] if array else 0) == length, "R-BASIS-6", f"{name} needs {length}")
        chunk = self.document["core_chunk"]
        length = sum(-(-count // chunk) * chunk for count in groups.values())
        require(self.document["core_length"] == length, "R-CORE-2", f"the core needs {length}")

    def _join(self, coded: list[dict[str, Json]], arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Coded]:
        at = dict.fromkeys(arrays, 0)

        def take(name: str, count: int) -> Ints:
            at[name] += count
            return arrays[name][at[name] - count : at[name]].astype(np.int64)

        joined: dict[str, Coded] = {}
        for row in coded:
            m, n = matrix_of(row["shape"])
            left, right = row.get("left"), row.get("right")
            (left_count, p), (right_count, q) = side_counts(left, m), side_counts(right, n)
            mean = take("mean", m * n).reshape(m, n)
            left_side = make_side(left, m, take("left", left_count), take("exponents", p if left else 0))
            right_side = make_side(right, n, take("right", right_count), take("exponents", q if right else 0))
            rows, columns = take("profile", p), take("profile", q)
            widest = max(int(np.abs(rows).max()), int(np.abs(columns).max()))
            require(widest <= 8191, "R-CORE-4", f"class {widest}")
            joined[row["name"]] = Coded(
                row,
                (m, n),
                (p, q),
                mean,
                left_side,
                right_side,
                (rows[:, None] + columns[None, :]).reshape(-1),
            )
        return joined


def unpack(text: str, *, rule: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refusal(rule, "not base64") from error


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


FILE_NAME = r"([0-9]{1,2}_[A-Za-z]{1,40}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}\.(json|txt|model|jinja)"
DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)),
}


def check_files(document: dict[str, Json]) -> list[str]:
    """Check the names and sizes of a document's side files; give the names of its own."""
    records = document.get("files") or []
    own: list[str] = [record["name"] for record in records]
    names = own + (document.get("shared_files") or [])
    for name in names:
        require(re.fullmatch(FILE_NAME, name), "R-FILE-1", name)
        require(name.rpartition("/")[2].partition(".")[0].lower() not in DEVICES, "R-FILE-1", name)
    require(len({name.lower() for name in names}) == len(names), "R-FILE-2", "two files have one name")
    array = document.get("file_bytes")
    stored = sum(record["size"] for record in records)
    require(stored == (array["length"] if array else 0), "R-FILE-2", f"{stored} bytes of files")
    return own


def read_own_files(folder: Path, document: dict[str, Json]) -> dict[str, bytes]:
    """The side files that stand in a basis or a model itself."""
    data = read_array(folder, "files", document.get("file_bytes"), dtype="uint8").tobytes()
    found: dict[str, bytes] = {}
    for record in document.get("files") or []:
        found[record["name"]], data = data[: record["size"]], data[record["size"] :]
        digest = hashlib.sha256(found[record["name"]]).hexdigest()
        require(digest == record["sha256"], "R-FILE-3", f"{record['name']}: digest")
    return found


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
