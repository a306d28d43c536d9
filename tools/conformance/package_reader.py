"""The package as a reader under test: answers the suite's requests (see ``suite.py``)."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from uws_store import load_model
from uws_store.api import check_signature
from uws_store.errors import UwsError
from uws_store.tensor_bytes import bytes_of


def answer(request: dict[str, object]) -> dict[str, object]:
    """Read one model."""
    try:
        weights = load_model(
            str(request["family"]),
            str(request["task"]),
            registry=str(request["registry"]),
            revision=int(str(request["version"])),
            tier="exact" if request["tier"] == "exact" else "compact",
        )
        tensors = weights.materialize()
    except UwsError as error:
        return {"refused": error.kind}
    return {
        "tensors": [
            {
                "name": name,
                "dtype": weights.model.sources[name].dtype.name,
                "shape": list(tensor.shape),
                "sha256": hashlib.sha256(bytes_of(tensor)).hexdigest(),
            }
            for name, tensor in tensors.items()
        ]
    }


def hold(request: dict[str, object]) -> dict[str, object]:
    """Hold a registry to a key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - optional
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415 - likewise

    family = request["family"]
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(request["key"])))
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key.pem"
        key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        try:
            found = check_signature(
                None if family is None else str(family), key=key, registry=str(request["registry"])
            )
        except UwsError as error:
            return {"refused": error.kind}
    return {"signed": found.number}


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps((hold if "key" in request else answer)(request)), flush=True)


if __name__ == "__main__":
    main()
