#!/usr/bin/env python3
"""Make the golden vectors: a small registry whose every byte is frozen, and the digests of what it holds.

``tools/make_vectors.py FOLDER`` writes ``registry/`` and ``expected.json`` into a folder that does not exist, and the
same of a registry with side files into ``files/`` in it. The
vectors under ``spec/vectors/`` were made once and are never made again: a version of the format keeps the registries
that were written in it. Run it to see what another version of the tools would write, or to begin a new version.

The basis is forged, not fitted (``tools/forging.py``). The same seeds give the same bytes on one kind of machine with
one version of PCodec.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from forging import ROWS, encode, forge_basis, forge_checkpoint, odd_checkpoint
from frozen import FAMILY, Forge, new_folder, tell_size, write_registry

from uws_store.canonical import Step
from uws_store.metadata.log import (
    AliasAction,
    DeleteAction,
    FamilyAction,
)
from uws_store.storage import Storage


def forge_registry(storage: Storage) -> None:
    """Write the registry of the vectors."""
    forge = Forge(storage)
    plain_rows = [replace(row, left=None, right=None, group=0) for row in ROWS]
    first, second = forge_basis(ROWS, seed=1), forge_basis(plain_rows, seed=2)
    basis_action, basis = forge.basis(first, revision=1)
    plain = encode(basis, forge_checkpoint(ROWS, first, seed=11), exact=False)
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            basis_action,
            forge.model("plain", plain),
            forge.model("exact", encode(basis, forge_checkpoint(ROWS, first, seed=12), exact=True)),
        ]
    )
    forge.commit([forge.model("odd", encode(basis, odd_checkpoint(ROWS, first), exact=True))])
    forge.commit([AliasAction(family=FAMILY, task="plain", alias="prod", version=1)])
    # One dtype for all, and a name that no path could hold.
    uniform = forge_checkpoint(ROWS, first, seed=13, dtype="BF16")
    forge.commit([forge.model("org/größe 🙂", encode(basis, uniform, exact=True))])
    # Coefficients beyond 16 bits.
    fine = forge_checkpoint(ROWS, first, seed=14)
    forge.commit([forge.model("fine", encode(basis, fine, exact=False, step=Step(129, -24)))])
    revision, other = forge.basis(second, revision=2)
    tensors = forge_checkpoint(plain_rows, second, seed=15)
    forge.commit([revision, forge.model("plain", encode(other, tensors, exact=False), version=2, revision=2)])
    # A version that shares its objects with another, and is withdrawn.
    forge.commit(
        [forge.model("gone", plain), AliasAction(family=FAMILY, task="gone", alias="old", version=1)]
    )
    forge.commit(
        [
            AliasAction(family=FAMILY, task="gone", alias="old"),
            DeleteAction(family=FAMILY, task="gone", version=1),
            AliasAction(family=FAMILY, task="plain", alias="next", version=2),
        ]
    )


def forge_files_registry(storage: Storage) -> None:
    """Write a registry of models with side files: shared, own, of another name, empty, and none."""
    forge = Forge(storage)
    rows = (ROWS[2], ROWS[4], ROWS[6])
    tokenizer = json.dumps({"größe": list(range(300))}, ensure_ascii=False).encode()
    common = {"config.json": b'{"labels": 2}', "tokenizer.json": tokenizer, "merges.txt": b""}
    forged = forge_basis([replace(row, group=0) for row in rows], seed=31, files=common)
    action, basis = forge.basis(forged, revision=1)
    tensors = forge_checkpoint(rows, forged, seed=32)
    own = {"config.json": b'{"labels": 3}', "1_Pooling/config.json": b"{}", "spiece.model": b"\x0a\x00\xff"}
    kinds: dict[str, dict[str, bytes] | None] = {
        "same": common,
        "other": own | {"tokenizer.json": tokenizer},
        "alone": own,
        "empty": {"merges.txt": b""},
        "bare": None,
    }
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            action,
            *(
                forge.model(task, encode(basis, tensors, exact=True, files=files))
                for task, files in kinds.items()
            ),
        ]
    )


def forge_groups(storage: Storage) -> None:
    """Write the registry of the vectors whose models keep read groups whole."""
    forge = Forge(storage)
    first = forge_basis(ROWS, seed=1)
    basis_action, basis = forge.basis(first, revision=1)
    # One group of few values beside two that follow the basis.
    mixed = forge_checkpoint(ROWS, first, seed=31)
    mixed["embed.weight"] = torch.sign(mixed["embed.weight"]) * 0.37
    mixed["head.weight"] = mixed["embed.weight"].clone()
    mixed["e4m3.weight"] = torch.zeros_like(mixed["e4m3.weight"])
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            basis_action,
            forge.model("mixed", encode(basis, mixed, exact=True, exact_overhead=0.3)),
            # Every group, with tensors missing, of other shapes and dtypes, and not finite.
            forge.model("odd", encode(basis, odd_checkpoint(ROWS, first), exact=True, exact_overhead=-0.99)),
        ]
    )
    uniform = forge_checkpoint(ROWS, first, seed=33, dtype="BF16")
    forge.commit([forge.model("all", encode(basis, uniform, exact=True, exact_overhead=-0.99))])


def forge_whole(storage: Storage) -> None:
    """Write the registry of the vectors whose arrays are single chunks, with a model that codes nothing."""
    forge = Forge(storage)
    rows = [replace(row, group=0) for row in (ROWS[1], ROWS[2], ROWS[4], ROWS[8], ROWS[13], ROWS[15])]
    # The one read group fills the one chunk of the core.
    counts = (row.matrix[0] * row.matrix[1] for row in rows if row.mode == "coded")
    forged = forge_basis(rows, seed=41, core_chunk=sum(counts), array_chunk=1 << 17)
    action, basis = forge.basis(forged, revision=1)
    tensors = forge_checkpoint(rows, forged, seed=42)
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            action,
            forge.model("coded", encode(basis, tensors, exact=True)),
            forge.model("lossless", encode(basis, tensors, exact=True, exact_overhead=-0.99)),
        ]
    )


def make(folder: Path) -> None:
    """Write the vectors into a folder."""
    write_registry(folder, forge_registry)
    write_registry(folder / "files", forge_files_registry)
    write_registry(folder / "groups", forge_groups)
    write_registry(folder / "whole", forge_whole)


def main(arguments: list[str] | None = None) -> int:
    """Make the vectors and tell their size."""
    folder = new_folder("make_vectors", __doc__, arguments)
    if folder is None:
        return 2
    make(folder)
    tell_size("make_vectors", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
