"""Frozen registries: nonces and times that are the same every time, what they hold, and the command that writes them.

Owns what every maker of vectors shares. Must not know what any one of them puts into its registry.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch
from forging import TOOL, ForgedBasis

from uws_store import layout
from uws_store.basis import Basis
from uws_store.builder.encoded import EncodedModel
from uws_store.metadata.group import PLAIN_GROUP
from uws_store.metadata.log import (
    Action,
    BasisAction,
    Commit,
    FamilyAction,
    HeadHint,
    IndexEntry,
    ModelAction,
    RegistryDocument,
)
from uws_store.model import Model, Tier
from uws_store.registry import Registry
from uws_store.registry.fold import Draft
from uws_store.registry.log import head_hint
from uws_store.registry.reading import View, after
from uws_store.registry.snapshot import write_snapshots
from uws_store.storage import LocalStorage, Storage, open_storage
from uws_store.tensor_bytes import digest_of

FAMILY = "vectors"


def put_objects(storage: Storage, prefix: str, objects: Mapping[str, bytes]) -> int:
    """Store objects below a folder and count their bytes."""
    for path, data in objects.items():
        storage.put_if_absent(f"{prefix}/{path}", data)
    return sum(len(data) for data in objects.values())


class Forge:
    """A registry whose nonces and times are fixed, so that its bytes are too.

    Parameters
    ----------
    storage : Storage
        An empty place.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._number = 0
        self._parent: str | None = None
        self._bases: list[tuple[str, int]] = []
        document = RegistryDocument(id="0123456789abcdef" * 2, created="2025-01-01T00:00:00Z", tool=TOOL)
        storage.put_if_absent(layout.REGISTRY_DOCUMENT, document.to_bytes())
        for path in layout.family_groups(FAMILY):
            storage.put_if_absent(path, PLAIN_GROUP)

    def basis(self, forged: ForgedBasis, *, revision: int) -> tuple[BasisAction, Basis]:
        """Store a basis and open it."""
        prefix = layout.basis_prefix(FAMILY, forged.digest)
        size = put_objects(self.storage, prefix, forged.objects)
        action = BasisAction(family=FAMILY, revision=revision, digest=forged.digest, size_bytes=size)
        return action, Basis.open(self.storage, prefix, digest=forged.digest)

    def model(self, task: str, model: EncodedModel, *, version: int = 1, revision: int = 1) -> ModelAction:
        """Store a model."""
        size = put_objects(self.storage, layout.model_prefix(FAMILY, model.digest), model.objects)
        return ModelAction(
            family=FAMILY,
            task=task,
            version=version,
            basis_revision=revision,
            digest=model.digest,
            size_bytes=size,
            exact=model.document.exact_digests is not None,
        )

    def commit(self, actions: Iterable[Action], *, index: tuple[IndexEntry, ...] | None = None) -> None:
        """Append a commit."""
        self._number += 1
        commit = Commit(
            number=self._number,
            parent=self._parent,
            nonce=f"{self._number:032x}",
            time=f"2025-01-01T00:00:{self._number:02d}Z",
            tool=TOOL,
            index=index,
            actions=tuple(actions),
        )
        data = commit.to_bytes()
        self.storage.put_if_absent(layout.commit_path(self._number), data)
        self.storage.put(layout.HEAD_PATH, HeadHint(number=self._number).to_bytes())
        self._parent = hashlib.sha256(data).hexdigest()


class ForgedLog:
    """A registry that is a log alone, with checkpoints at given commits; nonces and times are fixed.

    Parameters
    ----------
    storage : Storage
        An empty place.
    registry_id : str
        Its id.
    checkpoints : collection of int
        Commits that carry a checkpoint.
    """

    def __init__(self, storage: Storage, registry_id: str, *, checkpoints: Collection[int]) -> None:
        self.storage = storage
        self._checkpoints = checkpoints
        self._view = View()
        document = RegistryDocument(id=registry_id, created="2025-01-01T00:00:00Z", tool=TOOL)
        storage.put_if_absent(layout.REGISTRY_DOCUMENT, document.to_bytes())

    def commit(self, actions: Iterable[Action]) -> None:
        """Append a commit."""
        view, actions = self._view, tuple(actions)
        number = view.state.number + 1
        time = f"2025-01-01T00:00:{number:02d}Z"
        draft = Draft(view.state)
        for action in actions:
            draft.apply(action, commit=number, time=time)
        index = write_snapshots(self.storage, view.state) if number in self._checkpoints else None
        commit = Commit(
            number=number,
            parent=view.state.sha256,
            nonce=f"{number:032x}",
            time=time,
            tool=TOOL,
            checkpoint=view.checkpoint,
            index=index,
            actions=actions,
        )
        data = commit.to_bytes()
        self._view = view = after(view, commit, data, draft)
        path = layout.commit_path(number)
        self.storage.put_if_absent(path, data, hints=head_hint(number, tail=view.tail))


def digest_for(text: str) -> str:
    """A digest of nothing but a name: what stands for a basis or a model where a log has no objects."""
    return hashlib.sha256(text.encode()).hexdigest()


def named_family(name: str) -> list[Action]:
    """A family with one basis, in a log that has no objects."""
    return [
        FamilyAction(family=name, architecture=digest_for(f"{name} architecture")),
        BasisAction(family=name, revision=1, digest=digest_for(f"{name} 1"), size_bytes=1000),
    ]


def named_model(family: str, task: str, version: int, *, revision: int = 1, exact: bool) -> Action:
    """A version of a model, in a log that has no objects."""
    return ModelAction(
        family=family,
        task=task,
        version=version,
        basis_revision=revision,
        digest=digest_for(f"{family} {task} {version}"),
        size_bytes=100 + version,
        exact=exact,
    )


def expectations(storage: Storage) -> dict[str, object]:
    """Tell what every model of a registry is at every tier."""
    registry = Registry.over(storage)
    state = registry.state()
    models: list[dict[str, object]] = []
    for entry in state.models():
        prefix = layout.basis_prefix(entry.family, entry.basis_digest)
        basis = Basis.open(storage, prefix, digest=entry.basis_digest)
        model = Model.open(registry.storage_of(entry), entry.prefix, digest=entry.digest, basis=basis)
        tiers: tuple[Tier, ...] = ("mean", "compact", "exact") if model.has_exact else ("mean", "compact")
        models.append(
            {
                "family": entry.family,
                "task": entry.task,
                "version": entry.version,
                **_expected_files(model.side_files()),
                "tensors": {
                    name: {
                        "dtype": source.dtype.name,
                        "shape": list(source.shape),
                        "stored": source.kind,
                        **{
                            tier: digest_of(model.tensor(name, tier=tier, device=torch.device("cpu"))).hex()
                            for tier in tiers
                        },
                    }
                    for name, source in model.sources.items()
                },
            }
        )
    aliases = [
        {"family": family.name, "task": task.name, "alias": alias, "version": version}
        for family in state.families.values()
        for task in family.tasks.values()
        for alias, version in task.aliases.items()
    ]
    return {"commit": state.number, "aliases": aliases, "models": models}


def _expected_files(files: Mapping[str, bytes]) -> dict[str, object]:
    """Tell what side files are; nothing where there are none."""
    return (
        {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}} if files else {}
    )


def write_registry(folder: Path, forge: Callable[[Storage], None]) -> None:
    """Write a registry, and beside it what every model of it is at every tier."""
    storage = LocalStorage(folder / "registry", create=True)
    forge(storage)
    write_expected(folder, to_text(expectations(open_storage(str(folder / "registry")))))


def write_expected(folder: Path, text: str) -> None:
    """Write beside a registry what a reader shall find in it."""
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def to_text(value: object, depth: int = 0) -> str:
    """Write JSON with a line for each tensor: small, and a difference can be read."""
    if depth == 4 or not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        lines = [
            f"{json.dumps(key, ensure_ascii=False)}: {to_text(part, depth + 1)}"
            for key, part in value.items()
        ]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(to_text(part, depth + 1) for part in value) + "\n]"


def new_folder(tool: str, description: str | None, arguments: list[str] | None) -> Path | None:
    """Read a maker's command line and make the folder it names; None, and a line on stderr, when it exists.

    Parameters
    ----------
    tool : str
        The maker's name.
    description : str or None
        Its docstring: the first line is what ``--help`` says.
    arguments : list of str or None
        The command line; the process's own when None.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists():
        print(f"{tool}: {folder} exists; vectors are never overwritten", file=sys.stderr)
        return None
    folder.mkdir(parents=True)
    return folder


def tell_size(tool: str, folder: Path) -> None:
    """Print how many files were made, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    print(f"{tool}: {len(sizes)} files, {sum(sizes)} bytes in {folder}")
