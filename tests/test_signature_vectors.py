"""The vectors of signatures: what is valid, and what was tampered with or signed by another, by the specification alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from independent_documents import check_record

from uws_store.metadata.signature import SignatureDocument

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519", reason="signs")
from cryptography.exceptions import InvalidSignature  # noqa: E402 - only where it is installed

VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors" / "v1"
HELD = json.loads((VECTORS / "signatures.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", HELD["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("reader", ["package", "specification"])
def test_a_vector_is_judged_as_it_says(case: dict[str, Any], reader: str) -> None:
    document = case["document"]
    check_record("signature", document, "signature")
    public = bytes.fromhex(HELD["public_key"])
    assert document["key"] == hashlib.sha256(public).hexdigest()
    text = json.dumps(document["statement"], sort_keys=True, separators=(",", ":")).encode()
    signed = b"uws-1 signature\n" + text
    if reader == "package":
        signed = SignatureDocument.parse(json.dumps(document).encode(), where="x").statement.signed_bytes()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(
            bytes.fromhex(document["signature"]), signed
        )
    except InvalidSignature:
        assert not case["valid"]
    else:
        assert case["valid"]


def test_the_vectors_are_of_the_newest_commit_of_their_registry() -> None:
    newest = max((VECTORS / HELD["registry"] / "_log").glob("0*.json"))
    statement = HELD["cases"][0]["document"]["statement"]
    assert statement["number"] == int(newest.stem)
    assert statement["sha256"] == hashlib.sha256(newest.read_bytes()).hexdigest()
    assert {case["valid"] for case in HELD["cases"]} == {True, False}
