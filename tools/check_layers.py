#!/usr/bin/env python3
"""Hold the floors of the package: imports go strictly downward, and each third-party package has its owner.

Owns the table of floors and the table of owners. Reads source text only (standard library, nothing of the package is
imported), so it needs no environment: ``python3 tools/check_layers.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from read_imports import Import, Source, read_sources

PACKAGE = "uws_store"

# A file or a folder directly under the package; a folder's files share its floor. A module imports only from lower
# floors, so two modules of one floor do not know each other.
FLOORS: Mapping[str, int] = {
    "errors": 0,
    "config": 1,
    "device": 1,
    "dtypes": 1,
    "hub": 1,
    "names": 1,
    "pages": 1,
    "adapter": 1,
    "architecture": 2,
    "canonical": 2,
    "entropy": 2,
    "metadata": 2,
    "moments": 2,
    "quantize": 2,
    "residual": 2,
    "signing": 2,
    "storage": 2,
    "tensor_bytes": 2,
    "checkpoint": 3,
    "layout": 3,
    "low_rank": 3,
    "subspace": 3,
    "nulls": 4,
    "packs": 4,
    "plan": 4,
    "store": 4,
    "basis": 5,
    "executors": 5,
    "model": 6,
    "builder": 7,
    "loader": 7,
    "verifier": 7,
    "analysis": 8,
    "fidelity": 8,
    "registry": 8,
    "api": 9,
    "report": 9,
    "cli": 10,
    "__init__": 11,
    "__main__": 11,
}

# Third-party (and unsafe standard) packages by import name, and the modules that may import them.
OWNERS: Mapping[str, frozenset[str]] = {
    "adlfs": frozenset({"storage"}),
    "aiobotocore": frozenset({"storage"}),
    "aiohttp": frozenset({"storage"}),
    "botocore": frozenset({"storage"}),
    "click": frozenset({"cli"}),
    "cryptography": frozenset({"signing"}),
    "dask": frozenset({"executors"}),
    "distributed": frozenset({"executors"}),
    "fsspec": frozenset({"storage"}),
    "gcsfs": frozenset({"storage"}),
    "google_crc32c": frozenset({"store"}),
    "huggingface_hub": frozenset({"hub"}),
    "jinja2": frozenset({"report"}),
    "matplotlib": frozenset({"report"}),
    "numcodecs": frozenset({"store"}),
    "pcodec": frozenset({"entropy", "store"}),
    "rich": frozenset({"cli"}),
    "s3fs": frozenset({"storage"}),
    "safetensors": frozenset({"checkpoint"}),
    "tenacity": frozenset({"storage"}),
    # The classes of modules that a model's configuration names.
    "timm": frozenset({"loader"}),
    "transformers": frozenset({"loader"}),
    "yarl": frozenset({"storage"}),
    "zarr": frozenset({"store"}),
    # What can run code that a file names.
    "cloudpickle": frozenset(),
    "dill": frozenset(),
    "joblib": frozenset(),
    "marshal": frozenset(),
    "pickle": frozenset({"checkpoint"}),
    "shelve": frozenset(),
}
ANYWHERE = frozenset({"numpy", "pydantic", "pydantic_core", "torch", "typing_extensions"})

# Names inside an otherwise free package, and the modules that may use them.
GUARDED: Mapping[str, frozenset[str]] = {
    "os.environ": frozenset({"cli", "config"}),
    "os.environb": frozenset({"cli", "config"}),
    "os.getenv": frozenset({"cli", "config"}),
    "os.getenvb": frozenset({"cli", "config"}),
    "os.putenv": frozenset(),
    "torch.load": frozenset({"checkpoint"}),
    "torch.serialization": frozenset({"checkpoint"}),
}


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One broken rule.

    Attributes
    ----------
    path : str
        The file, relative to the repository.
    line : int
        Its line, from 1.
    message : str
        What stands there and what to do.
    """

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def find_violations(
    sources: Iterable[Source],
    *,
    floors: Mapping[str, int] = FLOORS,
    owners: Mapping[str, frozenset[str]] = OWNERS,
    guarded: Mapping[str, frozenset[str]] = GUARDED,
) -> tuple[Violation, ...]:
    """Return every broken rule of the given files, sorted by place.

    Parameters
    ----------
    sources : iterable of Source
        The package.
    floors, owners, guarded : mapping
        The tables to hold it to.
    """
    by_name = {source.dotted: source for source in sources}
    found: set[Violation] = set()
    edges: dict[str, dict[str, int]] = {name: {} for name in by_name}
    for source in by_name.values():
        if source.unit not in floors:
            message = f"module {source.unit} has no floor: add it to FLOORS in tools/check_layers.py"
            found.add(Violation(source.path, 1, message))
        for line in source.relative:
            found.add(Violation(source.path, line, "relative import: write the absolute name"))
        for entry in source.imports:
            target = _inner_target(entry.dotted, by_name, floors)
            if target is None:
                found.update(_outer_violation(source, entry, owners))
                continue
            if target != source.dotted:
                edges[source.dotted].setdefault(target, entry.line)
            found.update(_floor_violation(source, entry, target.split(".")[0], floors))
        for entry in source.uses:
            found.update(_guarded_violation(source, entry, guarded))
    found.update(_cycles(by_name, edges))
    return tuple(sorted(found))


def _inner_target(dotted: str, by_name: Mapping[str, Source], floors: Mapping[str, int]) -> str | None:
    """Return the module of the package that an import reaches, or None when it is not of the package."""
    parts = dotted.split(".")
    if parts[0] != PACKAGE:
        return None
    inner = parts[1:]
    while inner:
        name = ".".join(inner)
        for candidate in (name, f"{name}.__init__"):
            if candidate in by_name:
                return candidate
        if len(inner) == 1 and name in floors:
            return name
        inner.pop()
    return "__init__"


def _floor_violation(
    source: Source, entry: Import, target: str, floors: Mapping[str, int]
) -> Iterator[Violation]:
    if target == source.unit or source.unit not in floors or target not in floors:
        return
    mine, theirs = floors[source.unit], floors[target]
    if theirs >= mine:
        message = (
            f"{source.unit} (floor {mine}) imports {target} (floor {theirs}): imports go to lower floors only"
        )
        yield Violation(source.path, entry.line, message)


def _outer_violation(
    source: Source, entry: Import, owners: Mapping[str, frozenset[str]]
) -> Iterator[Violation]:
    package = entry.dotted.split(".")[0]
    if package in owners:
        if source.unit not in owners[package]:
            allowed = ", ".join(sorted(owners[package])) or "no module"
            yield Violation(
                source.path, entry.line, f"{source.unit} imports {package}, which belongs to {allowed}"
            )
    elif package not in sys.stdlib_module_names and package not in ANYWHERE:
        message = f"{package} has no owner: add it to OWNERS in tools/check_layers.py"
        yield Violation(source.path, entry.line, message)


def _guarded_violation(
    source: Source, entry: Import, guarded: Mapping[str, frozenset[str]]
) -> Iterator[Violation]:
    for name, allowed in guarded.items():
        if (entry.dotted == name or entry.dotted.startswith(f"{name}.")) and source.unit not in allowed:
            where = ", ".join(sorted(allowed)) or "no module"
            yield Violation(source.path, entry.line, f"{source.unit} uses {name}, which belongs to {where}")


def _cycles(by_name: Mapping[str, Source], edges: Mapping[str, Mapping[str, int]]) -> Iterator[Violation]:
    """Yield one violation for each group of files that import each other in a ring."""
    reach = {name: _reachable(name, edges) for name in edges}
    told: set[str] = set()
    for name in sorted(edges):
        if name in told or name not in reach[name]:
            continue
        ring = sorted(other for other in reach[name] if name in reach[other])
        told.update(ring)
        line = min(line for target, line in edges[name].items() if target in ring)
        message = f"import cycle: {', '.join(ring)}: move what they share to a file below them"
        yield Violation(by_name[name].path, line, message)


def _reachable(start: str, edges: Mapping[str, Mapping[str, int]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(edges.get(name, ()))
    return seen


def main(arguments: list[str] | None = None) -> int:
    """Check the package under ``--root`` and return the exit code: 0 clean, 1 violations, 2 nothing to check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args(arguments)
    try:
        sources = read_sources(options.root, PACKAGE)
    except (FileNotFoundError, SyntaxError) as error:
        print(f"check_layers: {error}", file=sys.stderr)
        return 2
    violations = find_violations(sources)
    for violation in violations:
        print(violation)
    units = {source.unit for source in sources}
    print(f"check_layers: {len(sources)} files in {len(units)} modules, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
