#!/usr/bin/env python3
"""Make the vectors of the log: commits with checkpoints, their snapshots and a hint, and the names they amount to.

``tools/make_log_vectors.py FOLDER`` writes ``registry/`` and ``expected.json`` into a folder that does not exist, and
``newer/``, the same log after a writer of a later version went on with it. As the other vectors, those under ``spec/vectors/v1/log`` were made once. No family has objects: it is a log alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from frozen import ForgedLog, digest_for, named_family, named_model, new_folder, write_expected

from uws_store.metadata.log import (
    Action,
    AliasAction,
    BasisAction,
    DeleteAction,
)
from uws_store.registry import Registry, RegistryState
from uws_store.storage import LocalStorage, Storage

CHECKPOINTS = (4, 7)


def _commits() -> Iterable[list[Action]]:
    yield [*named_family("beta"), _model("beta", "one", 1)]
    yield [*named_family("alpha"), _model("alpha", "größe 🙂", 1), _model("alpha", "one", 1)]
    yield [_model("beta", "one", 2), AliasAction(family="beta", task="one", alias="prod", version=1)]
    yield [_model("alpha", "one", 2), _model("alpha", "gone", 1)]
    yield [DeleteAction(family="alpha", task="gone", version=1)]
    yield [
        BasisAction(family="beta", revision=2, digest=digest_for("beta 2"), size_bytes=2000),
        _model("beta", "one", 3, 2),
        AliasAction(family="beta", task="one", alias="old", version=1),
        AliasAction(family="beta", task="one", alias="prod", version=3),
    ]
    yield named_family("gamma")
    yield [AliasAction(family="beta", task="one", alias="old")]
    yield [_model("alpha", "gone", 2), _model("gamma", "a/b", 1)]


def _model(family: str, task: str, version: int, revision: int = 1) -> Action:
    return named_model(family, task, version, revision=revision, exact=version % 2 == 0)


def write(storage: Storage) -> None:
    """Write the log."""
    log = ForgedLog(storage, "fedcba9876543210" * 2, checkpoints=CHECKPOINTS)
    for actions in _commits():
        log.commit(actions)


def write_newer(registry: Path) -> None:
    """Go on with a log as a writer of version 2 would: a commit, then the registry's document; the head is stale."""
    paths = sorted((registry / "_log").glob("0*.json"))
    number = len(paths) + 1
    commit = {
        "uws": 2,
        "number": number,
        "parent": hashlib.sha256(paths[-1].read_bytes()).hexdigest(),
        "changes": "of a kind that version 1 does not know",
    }
    (registry / "_log" / f"{number:020d}.json").write_bytes(_json(commit))
    document = registry / "uws.json"
    document.write_bytes(_json(json.loads(document.read_bytes()) | {"uws": 2}))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def names_of(state: RegistryState) -> dict[str, object]:
    """Tell every name of a registry."""
    return {
        family.name: {
            "architecture": family.architecture,
            "bases": [basis.digest for basis in family.bases.values()],
            "tasks": {
                name: {
                    "last_version": task.last_version,
                    "versions": {str(entry.version): entry.digest for entry in task.versions.values()},
                    "aliases": dict(sorted(task.aliases.items())),
                }
                for name, task in sorted(family.tasks.items())
            },
        }
        for family in state.walk()
    }


def main(arguments: list[str] | None = None) -> int:
    """Make the vectors."""
    folder = new_folder("make_log_vectors", __doc__, arguments)
    if folder is None:
        return 2
    storage = LocalStorage(folder / "registry", create=True)
    write(storage)
    write_newer(Path(shutil.copytree(folder / "registry", folder / "newer")))
    names = names_of(Registry.over(storage).state())
    write_expected(folder, json.dumps(names, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
