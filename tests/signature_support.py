"""Registries with a signature, good ones and ones that are bad in one way, made without a key from the frozen vectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec_support import FAMILY, VECTORS, Json, append_commit, log_path, read_commits, to_json, write_commits

HELD: dict[str, Any] = json.loads((VECTORS / "signatures.json").read_text(encoding="utf-8"))
PUBLIC = bytes.fromhex(HELD["public_key"])
BY_NAME: dict[str, Json] = {case["name"]: case["document"] for case in HELD["cases"]}
FOLDER = f"_signatures/{BY_NAME['a family']['key']}"
PATHS = {FAMILY: f"{FOLDER}/families/{FAMILY}.json", None: f"{FOLDER}/registry.json"}
NUMBER: int = BY_NAME["a family"]["statement"]["number"]
SIGNED = f"_log/{NUMBER:020d}.json"
ALIAS = {"op": "alias", "family": FAMILY, "task": "plain", "alias": "later", "version": 1}
Change = Callable[[Path], object]


@dataclass(frozen=True)
class SignatureCase:
    """One registry, held to the key of the vectors for one family or (None) for all.

    Attributes
    ----------
    change : callable
        Changes a registry that has both good signatures.
    kind, rule, where : str
        The error, the rule that is broken and the object that breaks it; empty when all is well.
    """

    name: str
    change: Change
    family: str | None = FAMILY
    kind: str = ""
    rule: str = ""
    where: str = ""


def signed_registry(folder: Path) -> Path:
    """Copy the registry of the vectors, and put the good signatures there."""
    shutil.copytree(VECTORS / HELD["registry"], folder)
    for family, name in ((FAMILY, "a family"), (None, "all families")):
        stored(name, family)(folder)
    return folder


def stored(name: str, family: str | None = FAMILY) -> Change:
    """Put a document of the vectors where a signature of a family, or of all, stands."""
    return lambda registry: _write(registry, family, to_json(BY_NAME[name]))


def edited(edit: Callable[[Json], object]) -> Change:
    """Change the family's signature in place."""

    def change(registry: Path) -> None:
        document = json.loads((registry / PATHS[FAMILY]).read_bytes())
        edit(document)
        _write(registry, FAMILY, to_json(document))

    return change


def _write(registry: Path, family: str | None, data: bytes) -> None:
    path = registry / PATHS[family]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _other_registry(registry: Path) -> None:
    document = json.loads((registry / "uws.json").read_bytes())
    (registry / "uws.json").write_bytes(to_json({**document, "id": "f" * 32}))


def _older_log(registry: Path) -> None:
    log_path(registry, NUMBER).unlink()
    (registry / "_log" / "head").unlink()


def _rewritten(number: int) -> Change:
    def change(registry: Path) -> None:
        commits = read_commits(registry)
        commits[number - 1]["time"] = "2025-06-01T00:00:00Z"
        write_commits(registry, commits)

    return change


def _broken_chain(registry: Path) -> None:
    append_commit(registry, ALIAS)
    path = log_path(registry, NUMBER + 1)
    path.write_bytes(to_json({**json.loads(path.read_bytes()), "parent": "0" * 64}))


def _bad(
    name: str, change: Change, kind: str, rule: str, where: str, family: str | None = FAMILY
) -> SignatureCase:
    return SignatureCase(name, change, family, kind, rule, where)


HERE = PATHS[FAMILY]
CASES = [
    SignatureCase("a family", lambda _: None),
    SignatureCase("all families", lambda _: None, None),
    SignatureCase("commits since", lambda registry: append_commit(registry, ALIAS)),
    _bad("another commit than was signed", stored("another commit than was signed"), "format/signature", "R-SIGN-2", HERE),
    _bad("another family than was signed", stored("another family than was signed"), "format/signature", "R-SIGN-2", HERE),
    _bad("signed by another key", stored("signed by another key"), "format/signature", "R-SIGN-2", HERE),
    _bad("a flipped bit in the signature", edited(lambda document: document.update(signature=f"{int(document['signature'], 16) ^ 1:0128x}")), "format/signature", "R-SIGN-2", HERE),
    _bad("the signature of all families for one", stored("all families"), "format/signature", "R-SIGN-2", HERE),
    _bad("the signature of one family for all", stored("a family", None), "format/signature", "R-SIGN-2", PATHS[None], None),
    _bad("the signature of another registry", _other_registry, "format/signature", "R-SIGN-2", HERE),
    _bad("an older log", _older_log, "format/rollback", "R-SIGN-2", SIGNED),
    _bad("a rewritten commit", _rewritten(NUMBER), "format/rollback", "R-SIGN-2", SIGNED),
    _bad("a log rewritten before the commit", _rewritten(3), "format/rollback", "R-SIGN-2", SIGNED),
    _bad("a log that breaks off after the commit", _broken_chain, "format/log-chain", "R-LOG-4", f"_log/{NUMBER + 1:020d}.json"),
    _bad("a signature that is too short", edited(lambda document: document.update(signature="00" * 63)), "format/document", "R-JSON-7", HERE),
    _bad("an unknown field in the statement", edited(lambda document: document["statement"].update(more=1)), "format/document", "R-JSON-6", HERE),
    _bad("no statement", edited(lambda document: document.pop("statement")), "format/document", "R-JSON-7", HERE),
    _bad("a signature longer than any", lambda registry: (registry / HERE).write_bytes(b" " * 4097), "format/size", "R-JSON-2", HERE),
    _bad("a signature that is no JSON", lambda registry: (registry / HERE).write_bytes(b"{"), "format/json", "R-JSON-1", HERE),
]  # fmt: skip
