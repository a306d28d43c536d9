"""The vectors of signatures: what is valid, and what was tampered with or signed by another, by the specification alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from independent_documents import Refusal, check_record
from independent_signatures import check_signature as their_check
from independent_signatures import is_signed
from signature_support import CASES, NUMBER, PUBLIC, SignatureCase, signed_registry

from uws_store.api import check_signature
from uws_store.errors import UwsError
from uws_store.metadata.signature import SignatureDocument

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519", reason="signs")
from cryptography.exceptions import InvalidSignature  # noqa: E402 - only where it is installed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: E402 - likewise

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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("reader", ["package", "specification"])
def test_both_readers_hold_a_registry_to_a_signature(
    case: SignatureCase, reader: str, tmp_path: Path
) -> None:
    registry = signed_registry(tmp_path / "registry")
    case.change(registry)
    found: int | str
    if reader == "package":
        key = tmp_path / "key.pem"
        public = ed25519.Ed25519PublicKey.from_public_bytes(PUBLIC)
        key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        try:
            found = check_signature(case.family, key=key, registry=str(registry)).number
        except UwsError as error:
            found = error.kind
        assert found == (case.kind or NUMBER)
    else:
        try:
            found = their_check(registry, PUBLIC, case.family)
        except Refusal as refusal:
            found = refusal.rule
        assert found == (case.rule or NUMBER)


def test_the_independent_arithmetic_agrees_with_the_library() -> None:
    for number in range(8):
        key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        public, message = key.public_key().public_bytes_raw(), b"m" * number
        signature = key.sign(message)
        assert is_signed(public, message, signature)
        assert not is_signed(public, message + b"x", signature)
        assert not is_signed(bytes([public[0] ^ 1, *public[1:]]), message, signature)
        assert not is_signed(public, message, bytes([signature[0] ^ 1, *signature[1:]]))
        assert not is_signed(public, message, signature[:32] + b"\xff" * 32)
