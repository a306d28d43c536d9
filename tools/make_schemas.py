#!/usr/bin/env python3
"""Write the JSON schemas of the format's documents, or check that those in spec/schemas/ are up to date.

``tools/make_schemas.py`` writes them; ``tools/make_schemas.py --check`` writes nothing and fails when one differs.
The documents' classes are the source: fields, types, ranges and which fields must be there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uws_store.metadata.basis import BasisDocument
from uws_store.metadata.document import Document
from uws_store.metadata.log import Commit, HeadHint, RegistryDocument
from uws_store.metadata.model import ModelDocument
from uws_store.metadata.pending import PendingNote
from uws_store.metadata.plan import PlanDocument
from uws_store.metadata.signature import SignatureDocument
from uws_store.metadata.snapshot import FamilySnapshot
from uws_store.metadata.verification import VerificationDocument

DOCUMENTS: Mapping[str, type[Document]] = {
    "basis": BasisDocument,
    "commit": Commit,
    "head": HeadHint,
    "model": ModelDocument,
    "plan": PlanDocument,
    "pending": PendingNote,
    "registry": RegistryDocument,
    "signature": SignatureDocument,
    "snapshot": FamilySnapshot,
    "verification": VerificationDocument,
}
"""File stem to document."""

SCHEMAS = Path(__file__).resolve().parent.parent / "spec" / "schemas"


def schema_of(name: str) -> dict[str, Any]:
    """Make the schema of one document (JSON Schema, draft 2020-12)."""
    made = DOCUMENTS[name].model_json_schema(mode="validation")
    _forget_prose(made)
    _forget_null(made)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:uws:1:{name}",
        "description": "Necessary, not sufficient: uws-1.md has rules that a schema cannot state.",
        **{key: value for key, value in made.items() if key != "description"},
    }


def _forget_prose(schema: object) -> None:
    """Drop docstrings: the specification describes the fields, and a better sentence is no change of the format."""
    if isinstance(schema, dict):
        for key in ("description", "title", "examples"):
            if isinstance(schema.get(key), str | list):
                del schema[key]
        for value in schema.values():
            _forget_prose(value)
    elif isinstance(schema, list):
        for value in schema:
            _forget_prose(value)


def _forget_null(schema: object) -> None:
    """Drop null where a field has no value: in code that is None, in a document the field is left out."""
    if isinstance(schema, dict):
        choices = schema.get("anyOf")
        if isinstance(choices, list) and {"type": "null"} in choices:
            (only,) = (choice for choice in choices if choice != {"type": "null"})
            del schema["anyOf"], schema["default"]
            schema.update(only)
        for value in schema.values():
            _forget_null(value)
    elif isinstance(schema, list):
        for value in schema:
            _forget_null(value)


def schema_bytes(name: str) -> bytes:
    """Write a schema as it stands in its file."""
    return (json.dumps(schema_of(name), indent=2, sort_keys=True) + "\n").encode()


def stale(folder: Path) -> list[str]:
    """Name the files that a run would change."""
    expected = {f"{name}.json" for name in DOCUMENTS}
    found = {path.name for path in folder.glob("*.json")}
    differing = {
        f"{name}.json"
        for name in DOCUMENTS
        if f"{name}.json" in found and (folder / f"{name}.json").read_bytes() != schema_bytes(name)
    }
    return sorted((expected ^ found) | differing)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the schemas; the exit code is 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when a file is not up to date"
    )
    parser.add_argument("--folder", type=Path, default=SCHEMAS, help="where the schemas stand")
    options = parser.parse_args(arguments)
    names = stale(options.folder)
    if options.check:
        for name in names:
            print(f"make_schemas: {options.folder / name} is not up to date; run tools/make_schemas.py")
        return 1 if names else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in DOCUMENTS:
        (options.folder / f"{name}.json").write_bytes(schema_bytes(name))
    print(f"make_schemas: {len(DOCUMENTS)} schemas in {options.folder}, {len(names)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
