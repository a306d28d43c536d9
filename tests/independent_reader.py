"""A second reader of the format, written from spec/uws-1.md and sharing no code with the package.

It opens a registry folder, follows the log, finds a model and reconstructs every tensor bit by bit with whole
numbers only: int64 sums in another order than the package's, then Python's unbounded integers. Everything is
checked, nothing is fast. A refusal names the rule of the specification that was broken.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

Ints = npt.NDArray[np.int64]
Json = Any


class Refusal(Exception):  # noqa: N818 - the specification's word
    """What the format does not allow; ``rule`` is the rule's id without brackets."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


def require(condition: object, rule: str, message: str = "") -> None:
    if not condition:
        raise Refusal(rule, message)


class Tensor(NamedTuple):
    """One tensor as its bytes, little-endian and row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Kind(NamedTuple):
    """A row of the dtype table: bytes, significand bits, least normal exponent, bits of the largest finite value."""

    size: int
    precision: int = 0
    min_exponent: int = 0
    largest: int = 0


KINDS = {
    "F64": Kind(8, 53, -1022, 0x7FEFFFFFFFFFFFFF),
    "F32": Kind(4, 24, -126, 0x7F7FFFFF),
    "F16": Kind(2, 11, -14, 0x7BFF),
    "BF16": Kind(2, 8, -126, 0x7F7F),
    "F8_E4M3": Kind(1, 4, -6, 0x7E),
    "F8_E5M2": Kind(1, 3, -14, 0x7B),
    **{name: Kind(8) for name in ("I64", "U64", "C64")},
    **{name: Kind(4) for name in ("I32", "U32")},
    **{name: Kind(2) for name in ("I16", "U16")},
    **{name: Kind(1) for name in ("I8", "U8", "BOOL")},
}

# --- documents ------------------------------------------------------------------------------------------------------


def load_json(data: bytes, *, most_bytes: int) -> dict[str, Json]:
    require(len(data) <= most_bytes, "R-JSON-2", f"{len(data)} bytes")

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        require(len({key for key, _ in pairs}) == len(pairs), "R-JSON-4", "duplicate keys")
        return dict(pairs)

    def whole(text: str) -> int:
        require(len(text) <= 20 and -(2**63) <= int(text) < 2**63, "R-JSON-5", text[:30])
        return int(text)

    def real(text: str) -> float:
        require(math.isfinite(float(text)), "R-JSON-5", text[:30])
        return float(text)

    def constant(text: str) -> None:
        raise Refusal("R-JSON-1", text)

    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=real,
            parse_constant=constant,
        )
    except ValueError as error:
        raise Refusal("R-JSON-1", str(error)) from error
    except RecursionError as error:
        raise Refusal("R-JSON-3", "too deep") from error
    inspect(value, depth=0)
    require(isinstance(value, dict), "R-JSON-1", "not an object")
    version = value.get("uws")
    require(type(version) is not int or version <= 1, "R-VERSION-1", f"version {version}")
    found: dict[str, Json] = value
    return found


def inspect(value: Json, *, depth: int) -> None:
    """Refuse what Python's parser lets through: deep nesting and halves of surrogate pairs."""
    if isinstance(value, dict | list):
        require(depth < 32, "R-JSON-3", "too deep")
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            inspect(part, depth=depth + 1)
    elif isinstance(value, str):
        require(not re.search("[\ud800-\udfff]", value), "R-JSON-1", "half a surrogate pair")


# Each record's fields: ``name:type``, ``name?`` when it may be absent or null, ``name=literal``. A type is a range of
# integers, a pattern, a record, ``[type]`` for an array, ``[type]+`` for one that is not empty, ``type,type`` for a pair.
MOST_TENSORS = 2**17
RECORDS = {
    "registry": "uws=1 id:nonce created:time tool:text200",
    "commit": "uws=1 number:count parent?:hex nonce:nonce time:time tool:text200 actions:[action]+",
    "family": "op=family family:family architecture:hex",
    "basis": "op=basis family:family revision:count digest:hex size_bytes:size",
    "model": "op=model family:family task:task version:count basis_revision:count digest:hex size_bytes:size exact:bool",
    "alias": "op=alias family:family task:task alias:alias version?:count",
    "delete": "op=delete family:family task:task version:count",
    "basis_document": "uws=1 kind=basis architecture:hex fraction_bits?=10 step:step core_length:length "
    "core_chunk:chunk core_page:page residual_chunk:chunk tensors:[tensor] mean?:array left?:array right?:array "
    "exponents?:array profile?:array shared?:array build:build",
    "step": "mantissa:128..255 exponent:-200..100",
    "tensor": "name:name shape:[length] dtype:dtype mode:mode tied_to?:name left?:side right?:side "
    f"mean_grid?:-256..256 shift?:-64..64 group?:0..{MOST_TENSORS}",
    "side": f"block:1..{2**20} rank:1..{2**20}",
    "array": f"dtype:stored length:1..{2**42} chunk:chunk page?:page shards:[object]",
    "object": f"size:0..{2**46} sha256:hex",
    "build": f"models:1..{2**32} sources:hex tool:text64 pcodec:text64 options?:[text,text]",
    "model_document": "uws=1 kind=model basis:hex step:step dtype?:dtype dtypes?:[name,dtype] absent?:[name] "
    "private?:[private] core?:array private_bytes?:array residual16?:array residual32?:array residual64?:array "
    "compact:digests exact?:digests rel_error:positive errors:text source:source scores?:[score]",
    "private": "name:name shape:[length] dtype:dtype",
    "digests": "root:hex leaves:text",
    "source": f"sha256:hex size_bytes:0..{2**63 - 1} metadata?:[text,text]",
    "score": "metric:text200 tier:tier original:number reconstruction:number higher_is_better:bool "
    f"n:1..{2**63 - 1} evaluation:text400",
}
RANGES = {
    "count": f"1..{2**53}",
    "size": f"0..{2**53}",
    "length": f"0..{2**42}",
    "chunk": f"1..{2**24}",
    "page": f"256..{2**24}",
}
DATE = "[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]"
PATTERNS = {
    "text": (".*", 1 << 30),
    **{f"text{longest}": (".*", longest) for longest in (64, 200, 400)},
    "hex": ("[0-9a-f]{64}", 64),
    "nonce": ("[0-9a-f]{32}", 32),
    "time": (DATE + r"T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z", 40),
    "family": ("[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?", 100),
    "task": (r"[^\\@\x00-\x1f\x7f]+", 200),
    "alias": ("[A-Za-z][A-Za-z0-9._-]*", 64),
    "name": (".+", 1024),
    "dtype": ("|".join(KINDS), 10),
    "mode": ("coded|shared|private|tied", 10),
    "tier": ("compact|exact|mean", 10),
    "stored": ("uint8|int16|int32|uint16|uint32|uint64", 10),
}
MOST = {"[length]": 32, "[tensor]": MOST_TENSORS, "[private]": MOST_TENSORS, "[name]": MOST_TENSORS}


def check_value(kind: str, value: Json, where: str) -> None:
    """Check one value; the first thing wrong is refused."""
    good: object = True
    if kind.startswith("["):
        good = (
            isinstance(value, list)
            and (not kind.endswith("+") or value)
            and len(value) <= MOST.get(kind, 1 << 30)
        )
        for part in value if good else ():
            check_value(kind.removesuffix("+")[1:-1], part, where)
    elif "," in kind:
        good = isinstance(value, list) and len(value) == 2
        for part, kind_of_part in zip(value, kind.split(","), strict=True) if good else ():
            check_value(kind_of_part, part, where)
    elif kind in PATTERNS:
        pattern, longest = PATTERNS[kind]
        good = isinstance(value, str) and len(value) <= longest and re.fullmatch(pattern, value, re.DOTALL)
    elif ".." in RANGES.get(kind, kind):
        low, high = RANGES.get(kind, kind).split("..")
        good = type(value) is int and int(low) <= value <= int(high)
    elif kind in ("number", "positive"):
        good = type(value) in (int, float) and (kind == "number" or value >= 0)
    elif kind == "bool":
        good = type(value) is bool
    elif kind == "action":
        good = isinstance(value, dict) and value.get("op") in ("family", "basis", "model", "alias", "delete")
        if good:
            check_record(value["op"], value, where)
    else:
        check_record(kind, value, where)
    require(good, "R-JSON-7", f"{where}: {value!r:.60} is no {kind}")


def check_record(kind: str, value: Json, where: str) -> None:
    require(isinstance(value, dict), "R-JSON-7", f"{where}: an object")
    fields = [re.fullmatch(r"(\w+)(\??)([:=])(\S+)", part) for part in RECORDS[kind].split()]
    known = {found[1]: found for found in fields if found}
    for name in value:
        require(name in known, "R-JSON-6", f"{where}: unknown field {name!r}")
    for name, found in known.items():
        inside = f"{where}/{name}"
        if value.get(name) is None:
            require(found[2], "R-JSON-7", f"{inside} is missing")
        elif found[3] == "=":
            literal = int(found[4]) if found[4].isdigit() else found[4]
            same = type(value[name]) is type(literal) and value[name] == literal
            require(same, "R-JSON-7", f"{inside}: {value[name]!r:.60} is not {literal!r}")
        else:
            check_value(found[4], value[name], inside)


# --- the log --------------------------------------------------------------------------------------------------------


@dataclass
class Task:
    versions: dict[int, tuple[str, str]] = field(default_factory=dict)  # model digest, basis digest
    aliases: dict[str, int] = field(default_factory=dict)
    last: int = 0


@dataclass
class Family:
    bases: list[str] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)


def read_file(path: Path, *, most_bytes: int, rule: str) -> bytes:
    require(path.is_file(), rule, f"{path.name} is missing")
    require(path.stat().st_size <= most_bytes, "R-JSON-2", f"{path.stat().st_size} bytes")
    return path.read_bytes()


def commit_path(registry: Path, number: int) -> Path:
    return registry / "_log" / f"{number:020d}.json"


def read_log(registry: Path) -> dict[str, Family]:
    """Fold every commit, from the first to the newest."""
    data = read_file(registry / "uws.json", most_bytes=1 << 16, rule="R-LOG-1")
    check_record("registry", load_json(data, most_bytes=1 << 16), "uws.json")
    families: dict[str, Family] = {}
    parent: str | None = None
    number = 1
    while commit_path(registry, number).is_file():
        data = read_file(commit_path(registry, number), most_bytes=1 << 22, rule="R-LOG-5")
        commit = load_json(data, most_bytes=1 << 22)
        check_record("commit", commit, f"commit {number}")
        require(commit["number"] == number, "R-LOG-3", f"{commit['number']} at {number}")
        require(commit.get("parent") == parent, "R-LOG-4", f"parent of {number}")
        for action in commit["actions"]:
            fold(families, action)
        parent = hashlib.sha256(data).hexdigest()
        number += 1
    hint = registry / "_log" / "head"
    beyond = [number + 1]
    if hint.is_file() and (found := re.fullmatch(rb'\{"number":([0-9]{1,16}),"uws":1\}', hint.read_bytes())):
        beyond.append(int(found[1]))
    for later in beyond:
        require(
            later <= number or not commit_path(registry, later).is_file(), "R-LOG-6", f"{number} is missing"
        )
    return families


def fold(families: dict[str, Family], action: dict[str, Json]) -> None:
    name, op = action["family"], action["op"]
    if op == "family":
        require(name not in families, "R-FOLD-2", name)
        families[name] = Family()
        return
    require(name in families, "R-FOLD-3", name)
    family = families[name]
    if op == "basis":
        require(action["revision"] == len(family.bases) + 1, "R-FOLD-4", f"revision {action['revision']}")
        family.bases.append(action["digest"])
        return
    if op == "model":
        require(action["basis_revision"] <= len(family.bases), "R-FOLD-5", "basis revision")
        task = family.tasks.setdefault(action["task"], Task())
        require(action["version"] == task.last + 1, "R-FOLD-6", f"version {action['version']}")
        task.last = action["version"]
        task.versions[task.last] = (action["digest"], family.bases[action["basis_revision"] - 1])
        return
    require(action["task"] in family.tasks, "R-FOLD-7", action["task"])
    task = family.tasks[action["task"]]
    if op == "alias" and action.get("version") is None:
        require(action["alias"] in task.aliases, "R-FOLD-8", action["alias"])
        del task.aliases[action["alias"]]
        return
    version: int = action["version"]
    require(version in task.versions, "R-FOLD-7", f"version {version}")
    if op == "alias":
        task.aliases[action["alias"]] = version
    else:
        require(version not in task.aliases.values(), "R-FOLD-9", f"version {version} has an alias")
        del task.versions[version]


def resolve(
    families: dict[str, Family], family: str, task: str, revision: int | str | None
) -> tuple[str, str]:
    """The digests of a model and its basis."""
    found = families[family].tasks[task]
    if revision is None:
        return found.versions[max(found.versions)]
    return found.versions[found.aliases[revision] if isinstance(revision, str) else revision]


# --- arrays ---------------------------------------------------------------------------------------------------------

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
    chunks = -(-array["length"] // array["chunk"])
    coder: dict[str, Json] = {"name": "bytes"}
    if array.get("page") is not None:
        configuration = {
            "delta_spec": "none",
            "equal_pages_up_to": array["page"],
            "level": 8,
            "mode_spec": "classic",
        }
        coder = {"configuration": configuration, "name": "numcodecs.pcodec"}
    sharding = {
        "chunk_shape": [array["chunk"]],
        "codecs": [coder, {"name": "crc32c"}],
        "index_codecs": [{"configuration": {"endian": "little"}, "name": "bytes"}, {"name": "crc32c"}],
        "index_location": "end",
    }
    shard = array["chunk"] * min(chunks, SHARD_CHUNKS)
    document = {
        "chunk_grid": {"configuration": {"chunk_shape": [shard]}, "name": "regular"},
        "chunk_key_encoding": {"configuration": {"separator": "/"}, "name": "default"},
        "codecs": [{"configuration": sharding, "name": "sharding_indexed"}],
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
    chunks = -(-array["length"] // array["chunk"])
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

# --- the basis ------------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """One factor: per block its first row and its lifted integers; ``grid`` is their common exponent."""

    size: int
    blocks: list[tuple[int, Ints]]
    grid: int

    def times(self, columns_kn: Ints) -> Ints:
        """Multiply, one column after the other, the last first."""
        out = np.zeros((self.size, columns_kn.shape[1]), np.int64)
        at = len(columns_kn)
        for start, block in reversed(self.blocks):
            at -= block.shape[1]
            for column in reversed(range(block.shape[1])):
                out[start : start + len(block)] += block[:, column, None] * columns_kn[None, at + column]
        return out

    def magnitude(self) -> Side:
        return Side(self.size, [(start, np.abs(block)) for start, block in self.blocks], self.grid)


@dataclass
class Coded:
    """A coded tensor's numbers."""

    row: dict[str, Json]
    matrix: tuple[int, int]
    core_shape: tuple[int, int]
    mean: Ints
    left: Side | None
    right: Side | None
    classes: Ints


def matrix_of(shape: list[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def side_counts(side: dict[str, int] | None, size: int) -> tuple[int, int]:
    """Stored integers and columns."""
    if side is None:
        return 0, size
    whole, rest = divmod(size, side["block"])
    last = min(side["rank"], rest)
    return whole * side["block"] * side["rank"] + rest * last, whole * side["rank"] + last


def make_side(side: dict[str, int] | None, size: int, integers: Ints, exponents: Ints) -> Side | None:
    if side is None:
        return None
    grid = int(exponents.max())
    good = grid <= 60 and exponents.min() >= -60 and grid - exponents.min() <= 32
    require(good, "R-FACTOR-3", f"exponents {exponents.min()} to {grid}")
    blocks, entry, column = [], 0, 0
    for start in range(0, size, side["block"]):
        rows = min(side["block"], size - start)
        columns = min(side["rank"], rows)
        block = integers[entry : entry + rows * columns].reshape(rows, columns)
        blocks.append((start, block << (grid - exponents[column : column + columns])[None, :]))
        entry, column = entry + rows * columns, column + columns
    return Side(size, blocks, grid)


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


class Basis:
    """A basis, read whole."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.document = read_group(folder, digest=digest, most_bytes=64 << 20, kind="basis_document")
        self.rows: list[dict[str, Json]] = self.document["tensors"]
        check_table(self.rows)
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


# --- reconstruction -------------------------------------------------------------------------------------------------

FRACTION_BITS = 10


def halve_even(values: Ints, shift: int) -> Ints:
    """Divide by ``2**shift`` and round to nearest, ties to even."""
    if shift <= 0:
        return values << -shift
    floor = values >> shift
    rest = values - (floor << shift)
    half = 1 << (shift - 1)
    up: Ints = ((rest > half) | ((rest == half) & (floor & 1 == 1))).astype(np.int64)
    return floor + up


def check_exactness(tensor: Coded, core_pq: Ints, step: dict[str, int], first_pn: Ints) -> None:
    """The encoder's duty: no sum of absolute values reaches 2**53. Python's integers cannot overflow."""

    def sums(side: Side | None, values: Ints) -> list[int]:
        """Bound the sums over the first axis, for each column of the product."""
        if side is None:
            return [int(value) for value in np.abs(values).max(axis=0, initial=0)]
        widest = [int(column) for _, block in side.blocks for column in np.abs(block).max(axis=0)]
        rows = [[int(value) for value in row] for row in np.abs(values)]
        return [sum(w * row[j] for w, row in zip(widest, rows, strict=True)) for j in range(values.shape[1])]

    grid, first = 0, max(sums(tensor.right, core_pq.T), default=0)
    second = max(sums(tensor.left, first_pn), default=0)
    grid = FRACTION_BITS + (tensor.left.grid if tensor.left else 0)
    change = step["exponent"] - tensor.row["shift"] - grid
    finest = min(change, -tensor.row["mean_grid"])
    peak = max(abs(int(tensor.mean.max())), abs(int(tensor.mean.min())))
    scaled = second * step["mantissa"]
    total = (scaled << (change - finest)) + (peak << (-tensor.row["mean_grid"] - finest))
    require(max(first, second, scaled, total) < 2**53, "R-EXACT-1", tensor.row["name"])


def predict(tensor: Coded, core_pq: Ints | None, step: dict[str, int], dtype: str) -> bytes:
    """Reconstruct a tensor with whole numbers, and round it once."""
    mean_exponent = -tensor.row["mean_grid"]
    mean = [int(value) for value in tensor.mean.reshape(-1)]
    if core_pq is None:
        return b"".join(round_to(value, mean_exponent, dtype) for value in mean)
    first_pn, shift = core_pq, -FRACTION_BITS
    if tensor.right is not None:
        first_pn, shift = tensor.right.times(core_pq.T).T, tensor.right.grid - FRACTION_BITS
    first_pn = halve_even(first_pn, shift)
    check_exactness(tensor, core_pq, step, first_pn)
    change_exponent = step["exponent"] - tensor.row["shift"] - FRACTION_BITS
    change_mn = first_pn
    if tensor.left is not None:
        change_mn = tensor.left.times(first_pn)
        change_exponent -= tensor.left.grid
    finest = min(change_exponent, mean_exponent)
    change = (int(value) * step["mantissa"] for value in change_mn.reshape(-1))
    return b"".join(
        round_to((c << (change_exponent - finest)) + (m << (mean_exponent - finest)), finest, dtype)
        for c, m in zip(change, mean, strict=True)
    )


def round_to(value: int, exponent: int, dtype: str) -> bytes:
    """Round ``value * 2**exponent`` to the nearest of a type: ties to even, saturating, the sign kept."""
    kind = KINDS[dtype]
    if value == 0:
        return bytes(kind.size)
    magnitude = abs(value)
    quantum = max(magnitude.bit_length() - 1 + exponent, kind.min_exponent) - (kind.precision - 1)
    if quantum <= exponent:
        significand = magnitude << (exponent - quantum)
    else:
        shift = quantum - exponent
        significand, rest = magnitude >> shift, magnitude & ((1 << shift) - 1)
        half = 1 << (shift - 1)
        significand += rest > half or (rest == half and significand & 1)
    # A carry runs into the exponent by itself: bit patterns are in the order of the numbers.
    biased = quantum - (kind.min_exponent - (kind.precision - 1))
    bits = min((biased << (kind.precision - 1)) + significand, kind.largest)
    sign = (value < 0) << (8 * kind.size - 1)
    return (sign | bits).to_bytes(kind.size, "little")


def correct(prediction: bytes, residual: npt.NDArray[Any], dtype: str) -> bytes:
    """Add the residual to the prediction's ordered integers, modulo the width, in unsigned arithmetic."""
    size = KINDS[dtype].size
    mask = np.uint64((1 << 8 * size) - 1)
    sign = np.uint64(1 << (8 * size - 1))
    bits = np.frombuffer(prediction, f"<u{size}").astype(np.uint64)
    ordered = np.where(bits & sign, ~(bits ^ sign) & mask, bits)
    folded = residual.astype(np.uint64)
    one_bit = np.uint64(1)
    difference = (folded >> one_bit) ^ (np.uint64(0) - (folded & one_bit))
    ordered = (ordered + difference) & mask
    bits = np.where(ordered & sign, (~ordered & mask) | sign, ordered)
    return bits.astype(f"<u{size}").tobytes()


# --- the model ------------------------------------------------------------------------------------------------------


class Model:
    """A model and its basis, read whole."""

    def __init__(self, folder: Path, digest: str, basis: Basis, basis_digest: str) -> None:
        self.document = read_group(folder, digest=digest, most_bytes=16 << 20, kind="model_document")
        self.basis = basis
        document = self.document
        require(document["basis"] == basis_digest, "R-MODEL-1", "another basis")
        self.private: dict[str, Tensor] = {}
        private = read_array(folder, "private", document.get("private_bytes"), dtype="uint8").tobytes()
        at = 0
        for row in document.get("private") or []:
            require(row["name"] not in self.private, "R-MODEL-3", row["name"])
            size = math.prod(row["shape"]) * KINDS[row["dtype"]].size
            data = private[at : at + size]
            self.private[row["name"]] = Tensor(row["dtype"], tuple(row["shape"]), data)
            at += size
        require(at == len(private), "R-MODEL-3", f"{len(private)} private bytes, {at} needed")
        self._check_names()
        self.order = self._order()
        self.dtypes = self._dtypes()
        self.core = self._read_core(folder)
        self.residual = self._read_residual(folder)

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
        require(set(own) <= set(coded), "R-MODEL-7", "a dtype of a tensor that is not coded")
        common = self.document.get("dtype")
        found: dict[str, str] = {
            name: own.get(name) or common or tensor.row["dtype"] for name, tensor in coded.items()
        }
        require(all(KINDS[dtype].precision for dtype in found.values()), "R-MODEL-7", "not a float")
        errors = base64.b64decode(self.document["errors"], validate=True)
        require(len(errors) == 2 * len(found), "R-MODEL-8", f"{len(errors)} bytes of errors")
        return found

    def _read_core(self, folder: Path) -> dict[str, Ints]:
        basis, array = self.basis.document, self.document.get("core")
        found = (array["length"], array["chunk"], array.get("page")) if array else (0, 0, 0)
        needed = (basis["core_length"], basis["core_chunk"], basis["core_page"])
        require(found == (needed if needed[0] else (0, 0, 0)), "R-CORE-3", f"{found}, {needed} needed")
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
        """Each coded tensor's residual; the arrays hold the tensors in coding order."""
        stored: dict[int, npt.NDArray[Any]] = {}
        for width in (16, 32, 64):
            array = self.document.get(f"residual{width}")
            require(array is None or self.document.get("exact"), "R-RES-1", "a residual without the tier")
            stored[width] = read_array(folder, f"residual{width}", array, dtype=f"uint{width}")
        found: dict[str, npt.NDArray[Any]] = {}
        at = dict.fromkeys(stored, 0)
        for name, dtype in self.dtypes.items() if self.document.get("exact") else ():
            width = max(16, 8 * KINDS[dtype].size)
            count = math.prod(self.basis.coded[name].matrix)
            found[name] = stored[width][at[width] : at[width] + count]
            at[width] += count
        for width, values in stored.items():
            require(len(values) == at[width], "R-RES-2", f"residual{width}: {len(values)} of {at[width]}")
        return found

    def tensors(self, tier: str) -> dict[str, Tensor]:
        """Reconstruct every tensor; at the stored tiers, compare with the digests on record."""
        require(tier != "exact" or self.document.get("exact"), "R-TIER-2", "no exact tier")
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
        if how == "private":
            return self.private[name]
        require(row is not None, "R-MODEL-5", name)
        shape = tuple(row["shape"]) if row else ()
        if how == "shared" and row:
            start, stop = self.basis.shared[name]
            return Tensor(row["dtype"], shape, self.basis.shared_bytes[start:stop])
        dtype = self.dtypes[name]
        core = None if tier == "mean" else self.core[name]
        data = predict(self.basis.coded[name], core, self.document["step"], dtype)
        return Tensor(dtype, shape, correct(data, self.residual[name], dtype) if tier == "exact" else data)

    def _check_digests(self, made: dict[str, Tensor], tier: str) -> None:
        digests = [hashlib.sha256(made[name].data).digest() for name in self.order if name in made]
        for known in ("compact", "exact"):
            if self.document.get(known):
                leaves = base64.b64decode(self.document[known]["leaves"], validate=True)
                require(len(leaves) == 8 * len(digests), "R-DIGEST-3", f"{len(leaves)} bytes of leaves")
        recorded = self.document[tier]
        leaves = base64.b64decode(recorded["leaves"], validate=True)
        require(leaves == b"".join(digest[:8] for digest in digests), "R-DIGEST-4", "a leaf")
        require(hashlib.sha256(b"".join(digests)).hexdigest() == recorded["root"], "R-DIGEST-4", "the root")


def read_model(
    registry: Path, family: str, task: str, *, revision: int | str | None = None, tier: str = "compact"
) -> dict[str, Tensor]:
    """Read one model of a registry folder."""
    model_digest, basis_digest = resolve(read_log(registry), family, task, revision)
    folder = registry / "families" / family
    basis = Basis(folder / "basis" / basis_digest, basis_digest)
    return Model(folder / "models" / model_digest, model_digest, basis, basis_digest).tensors(tier)
