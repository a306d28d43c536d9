#!/usr/bin/env python3
"""Write the vectors of packs: a registry whose models lie in two packs and in folders, and what every tensor of it is.

``tools/make_pack_vectors.py FOLDER``; the frozen ones in ``spec/vectors/v1/packs`` are never made again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from forging import ROWS, encode, forge_basis, forge_checkpoint
from frozen import FAMILY, Forge, new_folder, tell_size, write_registry

from uws_store import layout
from uws_store.builder import EncodedModel
from uws_store.metadata.log import AliasAction, BasisAction, FamilyAction, ModelAction
from uws_store.packs import make_pack, model_objects
from uws_store.registry import Registry
from uws_store.registry.snapshot import write_snapshots
from uws_store.storage import Storage


def _packed(
    storage: Storage, models: Mapping[str, EncodedModel], *, versions: Mapping[str, int]
) -> list[ModelAction]:
    """Store models in one pack."""
    distinct = {model.digest: model for model in models.values()}
    pack = make_pack(
        (
            digest,
            [
                model.objects[layout.GROUP_PATH],
                *(model.objects[path] for path, _ in model_objects(model.document)),
            ],
        )
        for digest, model in distinct.items()
    )
    storage.put_if_absent(layout.pack_path(FAMILY, pack.digest), pack.data)
    return [
        ModelAction(
            family=FAMILY,
            task=task,
            version=versions.get(task, 1),
            basis_revision=1,
            digest=model.digest,
            size_bytes=model.size_bytes,
            exact=model.document.exact_digests is not None,
            pack=pack.places[model.digest],
        )
        for task, model in models.items()
    ]


def forge_packs(storage: Storage) -> None:
    """Write the registry."""
    forge = Forge(storage)
    rows = [replace(row, group=0) for row in (ROWS[1], ROWS[2], ROWS[4], ROWS[8], ROWS[13], ROWS[15])]
    files = {"config.json": b'{"labels": 3}', "merges.txt": b"a b\n"}
    forged = forge_basis(rows, seed=51, core_chunk=1 << 8)
    action, basis = forge.basis(forged, revision=1)
    assert isinstance(action, BasisAction)
    plain = encode(basis, forge_checkpoint(rows, forged, seed=52), exact=False)
    exact = encode(basis, forge_checkpoint(rows, forged, seed=53), exact=True)
    odd = encode(basis, forge_checkpoint(rows, forged, seed=55), exact=True, files=files)
    alone = encode(basis, forge_checkpoint(rows, forged, seed=54, dtype="BF16"), exact=True)
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            action,
            # One model under two names lies there once.
            *_packed(storage, {"plain": plain, "exact": exact, "same": plain}, versions={}),
            forge.model("alone", alone),
        ]
    )
    # The same model again, now in a folder of its own; and one more pack.
    forge.commit(
        [
            forge.model("exact", exact, version=2),
            *_packed(storage, {"odd": odd, "plain": alone}, versions={"plain": 2}),
        ]
    )
    forge.commit(
        [AliasAction(family=FAMILY, task="plain", alias="prod", version=1)],
        index=write_snapshots(storage, Registry.over(storage).state()),
    )


def main(arguments: list[str] | None = None) -> int:
    """Make the vectors and tell their size."""
    folder = new_folder("make_pack_vectors", __doc__, arguments)
    if folder is None:
        return 2
    write_registry(folder, forge_packs)
    tell_size("make_pack_vectors", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
