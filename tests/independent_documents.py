"""The documents and the log for the independent reader: JSON by the rules, fields by the tables, commits folded.

Written from spec/uws-1.md, sections 3 to 5. A refusal names the rule that was broken.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Json = Any


class Refusal(Exception):  # noqa: N818 - the specification's word
    """What the format does not allow; ``rule`` is the rule's id without brackets."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


def require(condition: object, rule: str, message: str = "") -> None:
    if not condition:
        raise Refusal(rule, message)


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
    "registry": "uws=1 id:nonce created:time tool:text200 writers?=one",
    "commit": "uws=1 number:count parent?:hex nonce:nonce time:time tool:text200 checkpoint?:count "
    "index?:[entry]+ actions:[action]+",
    "head": "uws=1 number:count tail?:[text]",
    "entry": "family:family architecture:hex digest:hex size_bytes:size",
    "signature": "uws=1 kind=signature statement:statement key:hex signature:signed",
    "statement": "registry:nonce number:count sha256:hex family?:family",
    "snapshot": "uws=1 kind=family family:family architecture:hex bases:[kept_basis] tasks:[kept_task] "
    "verifications?:[kept_verification]+",
    "verification_document": "uws=1 kind=verification registry:nonce family:family commit:count commit_sha256:hex "
    "time:time tool:text200 signed_off_by?:signer compared:bool evaluation?:text400 ok:bool problems?:[problem] "
    "more_problems?:count models:[verified]+",
    "verified": "task:task version:count digest:hex ok:bool tiers:[held_tier] comparison?:comparison "
    "problems?:[problem] more_problems?:count scores?:[examined]",
    "problem": "kind:text64 where:text1024",
    "comparison": "rel_error:positive mean_rel_error:positive worst_rel_error:positive worst_tensor?:name identical?:size",
    "examined": "metric:text200 higher_is_better:bool n?:count max_drop?:positive sides:[scored_side]+",
    "scored_side": "side:side_name value?:number drop?:number interval?:number,number",
    "kept_verification": "digest:hex size_bytes:size ok:bool commit:count time:time",
    "verification": "op=verification family:family digest:hex size_bytes:size ok:bool",
    "pending": "uws=1 kind:note prefixes?:[prefix]",
    "kept_basis": "digest:hex size_bytes:size commit:count",
    "kept_task": "task:task last_version:count versions:[kept_version] aliases:[alias_name,count]",
    "kept_version": "version:count basis_revision:count digest:hex size_bytes:size exact:bool commit:count time:time "
    "pack?:place",
    "place": f"digest:hex offset:size document:1..{2**24 + 65} length:count",
    "family": "op=family family:family architecture:hex",
    "basis": "op=basis family:family revision:count digest:hex size_bytes:size",
    "model": "op=model family:family task:task version:count basis_revision:count digest:hex size_bytes:size exact:bool "
    "pack?:place",
    "alias": "op=alias family:family task:task alias:alias version?:count",
    "delete": "op=delete family:family task:task version:count",
    "basis_document": "uws=1 kind=basis architecture:hex fraction_bits?=10 step:step core_length:length "
    "core_chunk:chunk core_page:page residual_chunk:chunk tensors:[tensor] mean?:array left?:array right?:array "
    "exponents?:array profile?:array shared?:array files?:[file] file_bytes?:array adapter?:adapter build:build",
    "adapter": "base_model:text4096 base_sha256?:hex config?:[text,text]",
    "low_rank": f"product:0..{MOST_TENSORS} side:which",
    "step": "mantissa:128..255 exponent:-200..100",
    "tensor": "name:name shape:[length] dtype:dtype mode:mode tied_to?:name left?:side right?:side "
    f"mean_grid?:-256..256 shift?:-64..64 group?:0..{MOST_TENSORS} low_rank?:low_rank",
    "side": f"block:1..{2**20} rank:1..{2**20}",
    "array": f"dtype:stored length:1..{2**42} chunk?:chunk page?:page shards:[object]",
    "object": f"size:0..{2**46} sha256:hex",
    "build": f"models:1..{2**32} sources:hex tool:text64 pcodec:text64 options?:[text,text]",
    "model_document": "uws=1 kind=model basis:hex step:step dtype?:dtype dtypes?:[name,dtype] absent?:[name] "
    "private?:[private] private_groups?:[group] core?:array private_bytes?:array "
    "private16?:array private32?:array private64?:array residual16?:array residual32?:array residual64?:array "
    "shared_files?:[text200] files?:[file] file_bytes?:array ranks?:[rank]+ scales?:text gauge?:array "
    "compact:digests exact?:digests lossless?=yes rel_error:positive errors:text source:source scores?:[score]",
    "file": f"name:text200 size:0..{2**26} sha256:hex",
    "private": "name:name shape:[length] dtype:dtype",
    "digests": "root:hex leaves:text",
    "source": f"sha256:hex size_bytes:0..{2**63 - 1} metadata?:[text,text]",
    "score": "metric:text200 tier:tier original:number reconstruction:number higher_is_better:bool "
    f"n?:1..{2**63 - 1} evaluation:text400 purpose?:purpose max_drop?:positive paired?:paired",
    "paired": "mean:number low:number high:number",
}
OPERATIONS = ("family", "basis", "model", "alias", "delete", "verification")
RANGES = {
    "count": f"1..{2**53}",
    "size": f"0..{2**53}",
    "rank": f"1..{2**14}",
    "length": f"0..{2**42}",
    "group": f"0..{2**17}",
    "chunk": f"1..{2**24}",
    "page": f"256..{2**24}",
}
DATE = "[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]"
DEVICES = r"(?!(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$))"
PATTERNS = {
    "text": (".*", 1 << 30),
    **{f"text{longest}": (".*", longest) for longest in (64, 200, 400, 1024, 4096)},
    "hex": ("[0-9a-f]{64}", 64),
    "nonce": ("[0-9a-f]{32}", 32),
    "time": (DATE + r"T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z", 40),
    "family": (DEVICES + "[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?", 100),
    "task": (r"[^\\@\x00-\x1f\x7f-\x9f]+", 200),
    "alias": ("[A-Za-z][A-Za-z0-9._-]*", 64),
    "signed": ("[0-9a-f]{128}", 128),
    "signer": (r"[^\x00-\x1f\x7f-\x9f]+", 200),
    "held_tier": ("compact|exact", 10),
    "side_name": ("original|compact|exact|mean|basis-free", 10),
    "note": ("lease|tombstone|sweep", 10),
    "prefix": (
        "families/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/((basis|models|packs)/[0-9a-f]{64}|verifications/[0-9a-f]{64}[.]json)|_log/snapshots/[0-9a-f]{64}[.]json",
        220,
    ),
    "alias_name": ("[A-Za-z][A-Za-z0-9._-]*", 64),
    "name": (".+", 1024),
    "dtype": ("|".join(KINDS), 10),
    "which": ("left|right", 5),
    "mode": ("coded|shared|private|tied", 10),
    "tier": ("compact|exact|mean", 10),
    "purpose": ("report|search|both", 10),
    "stored": ("uint8|int16|int32|uint16|uint32|uint64", 10),
}
MOST = {
    "[length]": 32,
    "[tensor]": MOST_TENSORS,
    "[private]": MOST_TENSORS,
    "[name]": MOST_TENSORS,
    "[group]": MOST_TENSORS,
}
MOST |= {"[file]": 64, "[text200]": 64}
MOST |= {
    "[problem]": 16,
    "[verified]+": MOST_TENSORS,
    "[held_tier]": 2,
    "[examined]": 64,
    "[scored_side]+": 5,
}
MOST |= {"[kept_verification]+": 16}


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
        good = isinstance(value, dict) and value.get("op") in OPERATIONS
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
        if name not in value:
            require(found[2], "R-JSON-7", f"{inside} is missing")
        elif value[name] is None:
            raise Refusal("R-JSON-8", f"{inside} is null")
        elif found[3] == "=":
            literal = True if found[4] == "yes" else int(found[4]) if found[4].isdigit() else found[4]
            same = type(value[name]) is type(literal) and value[name] == literal
            require(same, "R-JSON-7", f"{inside}: {value[name]!r:.60} is not {literal!r}")
        else:
            check_value(found[4], value[name], inside)
    require(kind != "paired" or value["low"] <= value["high"], "R-JSON-7", f"{where}: low and high")
    require(
        kind != "place" or value["document"] <= value["length"], "R-JSON-7", f"{where}: document and length"
    )


class Version(NamedTuple):
    """A model's digest, its basis's, and where it lies in a pack."""

    model: str
    basis: str
    place: Json | None = None


@dataclass
class Task:
    versions: dict[int, Version] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    last: int = 0


@dataclass
class Family:
    bases: list[str] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    verifications: list[tuple[str, int, bool]] = field(default_factory=list)  # digest, length, ok


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
        data = read_file(commit_path(registry, number), most_bytes=1 << 22, rule="R-LOG-6")
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
    if op == "verification":
        held = [digest for digest, _, _ in family.verifications]
        require(action["digest"] not in held, "R-FOLD-12", action["digest"])
        made = (action["digest"], action["size_bytes"], action["ok"])
        family.verifications = [*family.verifications, made][-16:]
        return
    if op == "basis":
        require(action["revision"] == len(family.bases) + 1, "R-FOLD-4", f"revision {action['revision']}")
        family.bases.append(action["digest"])
        return
    if op == "model":
        require(action["basis_revision"] <= len(family.bases), "R-FOLD-5", "basis revision")
        task = family.tasks.setdefault(action["task"], Task())
        require(action["version"] == task.last + 1, "R-FOLD-6", f"version {action['version']}")
        task.last = action["version"]
        basis = family.bases[action["basis_revision"] - 1]
        task.versions[task.last] = Version(action["digest"], basis, action.get("pack"))
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


def read_verification(registry: Path, family: str, action: tuple[str, int, bool]) -> dict[str, Json]:
    """The record of a verification that the log names."""
    digest, size_bytes, ok = action
    path = registry / "families" / family / "verifications" / f"{digest}.json"
    data = read_file(path, most_bytes=1 << 26, rule="R-VERIFY-1")
    require(len(data) == size_bytes, "R-VERIFY-1", "length")
    require(hashlib.sha256(data).hexdigest() == digest, "R-VERIFY-1", "digest")
    record = load_json(data, most_bytes=1 << 26)
    check_record("verification_document", record, "verification")
    require((record["family"], record["ok"]) == (family, ok), "R-VERIFY-1", "family or ok")
    tasks = [model["task"] for model in record["models"]]
    require(tasks == sorted(set(tasks)), "R-VERIFY-2", "tasks")
    for part in (record, *record["models"]):
        wrong = bool(part.get("problems")) or not all(model["ok"] for model in part.get("models", ()))
        require(part["ok"] != wrong, "R-VERIFY-2", "ok")
        require("more_problems" not in part or len(part["problems"]) == 16, "R-VERIFY-2", "more")
    for score in [score for model in record["models"] for score in model.get("scores", ())]:
        sides = [side["side"] for side in score["sides"]]
        require(len(set(sides)) == len(sides), "R-VERIFY-2", "sides")
        ends = [side["interval"] for side in score["sides"] if "interval" in side]
        require(all(low <= high for low, high in ends), "R-VERIFY-2", "interval")
    return record


def resolve(families: dict[str, Family], family: str, task: str, revision: int | str | None) -> Version:
    """What a name stands for."""
    try:
        found = families[family].tasks[task]
        if revision is None:
            return found.versions[max(found.versions, default=0)]
        return found.versions[found.aliases[revision] if isinstance(revision, str) else revision]
    except KeyError as error:
        raise Refusal("R-FOLD-10", f"{family}/{task}@{revision}") from error
