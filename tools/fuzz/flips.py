"""A flipped bit anywhere in a stored family: detected, or harmless; never wrong weights.

Every object of the golden vectors is damaged, one bit at a time, in a copy in memory; then every model is loaded at every
tier, and single tensors by range, with the files that lay beside it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from targets import VECTORS, files_below
from torch import Tensor

from uws_store import open_family
from uws_store.errors import UwsError
from uws_store.registry import Registry, read_verification
from uws_store.registry.state import ModelEntry, VerificationEntry
from uws_store.storage import MemoryStorage
from uws_store.tensor_bytes import digest_of

__all__ = ["Flip", "choose", "damaged_reads"]


@dataclass(frozen=True, slots=True)
class Flip:
    """One bit of one object."""

    path: str
    at: int
    bit: int


def choose(*, per_object: int | None, seed: int, registry: Path = VECTORS) -> Iterator[Flip]:
    """Choose bits to flip: one random bit of every byte, or of some bytes of every object."""
    source = random.Random(seed)  # noqa: S311 - nothing secret
    for path, data in files_below(registry).items():
        places: Iterable[int] = range(len(data))
        if per_object is not None and per_object < len(data):
            places = sorted(source.sample(range(len(data)), per_object))
        for at in places:
            yield Flip(path, at, source.randrange(8))


def damaged_reads(flips: Iterable[Flip], *, registry: Path = VECTORS) -> tuple[Counter[str], list[str]]:
    """Read the family with each bit flipped.

    Returns
    -------
    outcomes : Counter of str
        How many flips were harmless, and how many were refused, by kind. The newest commit is bound by no later one: a
        flip there may change what it says.
    findings : list of str
        Flips that gave wrong weights, or raised anything but a UwsError.
    """
    files = files_below(registry)
    expected = _read(files)
    newest = max(path for path in files if path.startswith("_log/0"))
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    for flip in flips:
        damaged = bytearray(files[flip.path])
        damaged[flip.at] ^= 1 << flip.bit
        try:
            found = _read(files | {flip.path: bytes(damaged)}, only=flip.path)
        except UwsError as error:
            outcomes[error.kind] += 1
        except Exception as error:  # noqa: BLE001 - this is the finding
            findings.append(f"{flip}: {type(error).__name__}: {error}")
        else:
            kinds = {value for value in found.values() if "/" in value}
            wrong = [key for key, value in found.items() if "/" not in value and value != expected[key]]
            if wrong and flip.path == newest:
                outcomes["the newest commit says something else"] += 1
            elif wrong:
                findings.append(f"{flip}: wrong: {wrong[0]}")
            else:
                outcomes[next(iter(sorted(kinds)), "harmless")] += 1
    return outcomes, findings


def _read(files: dict[str, bytes], *, only: str = "") -> dict[str, str]:
    """Digests of all tensors, or the kind of the error, by model, tier and way of reading."""
    # The name tells registries apart for caches that live as long as the process.
    storage = MemoryStorage(hashlib.sha256(repr((only, hash(files.get(only)))).encode()).hexdigest()[:32])
    for path, data in files.items():
        storage.put(path, data)
    opened = Registry.over(storage)
    # A damaged log may name another family.
    name = min(opened.state().families)
    family = open_family(name, registry=opened)
    state = opened.state().family(name)
    entries = [entry for task in state.tasks.values() for entry in task.versions.values()]
    said = [
        (name, [], []),
        *sorted(
            (task.name, sorted(task.versions), sorted(task.aliases.items())) for task in state.tasks.values()
        ),
        sorted(entry.digest for entry in entries),
    ]
    found = {
        f"verification {held.digest}": _verification(opened, kept.name, held)
        for kept in opened.state().families.values()
        for held in kept.verifications
        if not only or held.digest in only
    }
    found |= {"the log": hashlib.sha256(repr(said).encode()).hexdigest()}
    if only and ("/verifications/" in only or not only.startswith("families/")):
        return found  # the same digests lead to the same objects, which are whole
    done: set[str] = set()
    for entry in entries:
        # Of a damaged basis one model will do; of a damaged model it alone.
        if only and f"/{_holder(entry)}/" not in f"{only}/":
            if f"/{entry.basis_digest}/" not in only or entry.basis_digest in done:
                continue
            done.add(entry.basis_digest)
        for tier in ("compact", "exact") if entry.exact else ("compact",):
            for way in ("whole", "ranges"):
                key = f"{entry.task}@{entry.version} {tier} {way}"
                try:
                    weights = family.load(entry.task, revision=entry.version, tier=tier)
                    tensors: dict[str, Tensor] = (
                        weights.materialize()
                        if way == "whole"
                        else {name: weights[name] for name in reversed(list(weights))}
                    )
                except UwsError as error:
                    found[key] = error.kind
                else:
                    digests = b"".join(digest_of(tensors[name]) for name in sorted(tensors))
                    found[key] = hashlib.sha256(digests).hexdigest()
        key = f"{entry.task}@{entry.version} side files"
        try:
            files_held = family.load(entry.task, revision=entry.version).side_files()
        except UwsError as error:
            found[key] = error.kind
        else:
            found[key] = hashlib.sha256(repr(sorted(files_held.items())).encode()).hexdigest()
    return found


def _holder(entry: ModelEntry) -> str:
    """The digest of the folder or the pack that holds a model."""
    return entry.digest if entry.pack is None else entry.pack.digest


def _verification(registry: Registry, family: str, held: VerificationEntry) -> str:
    """Digest of what a record says, or the kind of the error."""
    try:
        return read_verification(registry.storage, family, held).sha256()
    except UwsError as error:
        return error.kind
