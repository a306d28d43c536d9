"""The package as a reader under test: answers the suite's requests (see ``suite.py``)."""

from __future__ import annotations

import hashlib
import json
import sys

from uws_store import load_model
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


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
