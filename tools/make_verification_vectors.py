#!/usr/bin/env python3
"""Make the vectors of verifications: a log that names records of them, a checkpoint, and what each family has.

``tools/make_verification_vectors.py FOLDER`` writes ``registry/`` and ``expected.json`` into a folder that does not exist.
As the other vectors, those under ``spec/vectors/v1/verified`` were made once. No family has objects but the records.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable

from forging import TOOL
from frozen import ForgedLog, digest_for, named_family, named_model, new_folder, write_expected

from uws_store import layout
from uws_store.metadata.log import (
    Action,
    DeleteAction,
    VerificationAction,
)
from uws_store.metadata.verification import (
    ComparisonRecord,
    ExaminedRecord,
    ProblemRecord,
    SideRecord,
    VerificationDocument,
    VerifiedModel,
)
from uws_store.registry import Registry
from uws_store.storage import LocalStorage, Storage

REGISTRY_ID = "0f1e2d3c4b5a6978" * 2
CHECKPOINTS = (4, 5)


def whole(family: str, commit: int) -> VerificationDocument:
    """A record with everything that one may have, of two models that are as recorded."""
    sides = (
        SideRecord(side="original", value=0.75),
        SideRecord(side="compact", value=0.5, drop=0.25, interval=(0.125, 0.375)),
        SideRecord(side="exact", value=0.75, drop=0, interval=(0, 0)),
        SideRecord(side="mean", value=-0.5, drop=1.25),
        SideRecord(side="basis-free"),
    )
    score = ExaminedRecord(metric="accuracy", higher_is_better=True, n=200, max_drop=0.5, sides=sides)
    return VerificationDocument(
        registry=REGISTRY_ID,
        family=family,
        commit=commit,
        commit_sha256=digest_for(f"commit {commit}"),
        time=f"2025-01-01T00:01:{commit:02d}Z",
        tool=TOOL,
        signed_off_by="Žofie 🙂 <zofie@example.org>",
        compared=True,
        evaluation="package.module:function 0123456789abcdef",
        ok=True,
        models=(
            VerifiedModel(
                task="größe 🙂",
                version=1,
                digest=digest_for(f"{family} größe 🙂 1"),
                ok=True,
                tiers=("compact", "exact"),
                comparison=ComparisonRecord(
                    rel_error=0.125, mean_rel_error=1, worst_rel_error=0.25, worst_tensor="w", identical=4
                ),
                scores=(score,),
            ),
            VerifiedModel(
                task="one", version=1, digest=digest_for(f"{family} one 1"), ok=True, tiers=("compact",)
            ),
        ),
    )


def broken(family: str, commit: int) -> VerificationDocument:
    """A record of problems: as many as are written down, and more; and nothing that may be left out."""
    problems = tuple(
        ProblemRecord(kind="format/digest", where=f"families/{family}/{number}") for number in range(16)
    )
    return VerificationDocument(
        registry=REGISTRY_ID,
        family=family,
        commit=commit,
        commit_sha256=digest_for(f"commit {commit}"),
        time=f"2025-01-01T00:02:{commit:02d}.5Z",
        tool=TOOL,
        compared=False,
        ok=False,
        problems=(ProblemRecord(kind="format/missing-object", where=f"families/{family}/basis"),),
        models=(
            VerifiedModel(
                task="one",
                version=2,
                digest=digest_for(f"{family} one 2"),
                ok=False,
                tiers=(),
                problems=problems,
                more_problems=7,
            ),
        ),
    )


def _commits() -> Iterable[tuple[list[Action], list[VerificationDocument]]]:
    yield (
        [
            *named_family("alpha"),
            named_model("alpha", "größe 🙂", 1, exact=True),
            named_model("alpha", "one", 1, exact=True),
        ],
        [],
    )
    yield [], [whole("alpha", 1)]
    yield (
        [
            *named_family("beta"),
            named_model("beta", "one", 1, exact=True),
            named_model("beta", "one", 2, exact=True),
            named_model("alpha", "one", 2, exact=True),
        ],
        [],
    )
    yield [], [broken("alpha", 3), broken("beta", 3)]
    yield [DeleteAction(family="beta", task="one", version=2)], [whole("alpha", 4)]
    # Twenty of beta: the first five are history, and the first of all may be named again.
    yield [], [whole("beta", commit) for commit in range(1, 21)]
    yield [], [broken("beta", 3)]


def write(storage: Storage) -> None:
    """Write the log and the records."""
    log = ForgedLog(storage, REGISTRY_ID, checkpoints=CHECKPOINTS)
    for actions, records in _commits():
        for record in records:
            data = record.to_bytes()
            digest = hashlib.sha256(data).hexdigest()
            storage.stage(layout.verification_path(record.family, digest), data)
            actions.append(
                VerificationAction(family=record.family, digest=digest, size_bytes=len(data), ok=record.ok)
            )
        log.commit(actions)


def verifications_of(registry: Registry) -> dict[str, list[dict[str, object]]]:
    """Tell what each family has, by the log alone."""
    return {
        family.name: [
            {"digest": held.digest, "size_bytes": held.size_bytes, "ok": held.ok}
            for held in family.verifications
        ]
        for family in registry.state().walk()
    }


def main(arguments: list[str] | None = None) -> int:
    """Make the vectors."""
    folder = new_folder("make_verification_vectors", __doc__, arguments)
    if folder is None:
        return 2
    storage = LocalStorage(folder / "registry", create=True)
    write(storage)
    write_expected(folder, json.dumps(verifications_of(Registry.over(storage)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
