"""The independent reader as a reader under the conformance suite (tools/conformance/suite.py)."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from independent_documents import Refusal
from independent_reader import read_model
from independent_signatures import check_signature


def answer(request: dict[str, object]) -> dict[str, object]:
    try:
        tensors = read_model(
            Path(str(request["registry"])),
            str(request["family"]),
            str(request["task"]),
            revision=int(str(request["version"])),
            tier=str(request["tier"]),
        )
    except Refusal as refusal:
        return {"refused": refusal.rule}
    return {
        "tensors": [
            {
                "name": name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "sha256": hashlib.sha256(tensor.data).hexdigest(),
            }
            for name, tensor in tensors.items()
        ]
    }


def hold(request: dict[str, object]) -> dict[str, object]:
    family = request["family"]
    try:
        number = check_signature(
            Path(str(request["registry"])),
            bytes.fromhex(str(request["key"])),
            None if family is None else str(family),
        )
    except Refusal as refusal:
        return {"refused": refusal.rule}
    return {"signed": number}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps((hold if "key" in request else answer)(request)) + "\n")
        sys.stdout.flush()
