#!/usr/bin/env python3
"""Make the vectors of the log: commits with checkpoints, their snapshots and a hint, and the names they amount to.

``tools/make_log_vectors.py FOLDER`` writes ``registry/`` and ``expected.json`` into a folder that does not exist. As
the other vectors, those under ``spec/vectors/v1/log`` were made once. No family has objects: it is a log alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from uws_store import layout
from uws_store.metadata.log import (
    Action,
    AliasAction,
    BasisAction,
    Commit,
    DeleteAction,
    FamilyAction,
    ModelAction,
    RegistryDocument,
)
from uws_store.registry import Registry, RegistryState
from uws_store.registry.fold import Draft
from uws_store.registry.log import head_hint
from uws_store.registry.reading import View, after
from uws_store.registry.snapshot import write_snapshots
from uws_store.storage import LocalStorage, Storage

TOOL = "uws-store vectors"
CHECKPOINTS = (4, 7)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _family(name: str) -> list[Action]:
    return [
        FamilyAction(family=name, architecture=_digest(f"{name} architecture")),
        BasisAction(family=name, revision=1, digest=_digest(f"{name} 1"), size_bytes=1000),
    ]


def _model(family: str, task: str, version: int, revision: int = 1) -> Action:
    return ModelAction(
        family=family,
        task=task,
        version=version,
        basis_revision=revision,
        digest=_digest(f"{family} {task} {version}"),
        size_bytes=100 + version,
        exact=version % 2 == 0,
    )


def _commits() -> Iterable[list[Action]]:
    yield [*_family("beta"), _model("beta", "one", 1)]
    yield [*_family("alpha"), _model("alpha", "größe 🙂", 1), _model("alpha", "one", 1)]
    yield [_model("beta", "one", 2), AliasAction(family="beta", task="one", alias="prod", version=1)]
    yield [_model("alpha", "one", 2), _model("alpha", "gone", 1)]
    yield [DeleteAction(family="alpha", task="gone", version=1)]
    yield [
        BasisAction(family="beta", revision=2, digest=_digest("beta 2"), size_bytes=2000),
        _model("beta", "one", 3, 2),
        AliasAction(family="beta", task="one", alias="old", version=1),
        AliasAction(family="beta", task="one", alias="prod", version=3),
    ]
    yield _family("gamma")
    yield [AliasAction(family="beta", task="one", alias="old")]
    yield [_model("alpha", "gone", 2), _model("gamma", "a/b", 1)]


def write(storage: Storage) -> None:
    """Write the log."""
    document = RegistryDocument(id="fedcba9876543210" * 2, created="2025-01-01T00:00:00Z", tool=TOOL)
    storage.put_if_absent(layout.REGISTRY_DOCUMENT, document.to_bytes())
    view = View()
    for number, actions in enumerate(_commits(), 1):
        time = f"2025-01-01T00:00:{number:02d}Z"
        draft = Draft(view.state)
        for action in actions:
            draft.apply(action, commit=number, time=time)
        commit = Commit(
            number=number,
            parent=view.state.sha256,
            nonce=f"{number:032x}",
            time=time,
            tool=TOOL,
            checkpoint=view.checkpoint,
            index=write_snapshots(storage, view.state) if number in CHECKPOINTS else None,
            actions=tuple(actions),
        )
        data = commit.to_bytes()
        view = after(view, commit, data, draft)
        storage.put_if_absent(layout.commit_path(number), data, hints=head_hint(number, tail=view.tail))


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists():
        print(f"make_log_vectors: {folder} exists; vectors are never overwritten", file=sys.stderr)
        return 2
    storage = LocalStorage(folder / "registry", create=True)
    write(storage)
    text = json.dumps(names_of(Registry.over(storage).state()), indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
