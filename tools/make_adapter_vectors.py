#!/usr/bin/env python3
"""Write the vectors of the format for families of adapters: a small registry, and what every tensor of it is.

``tools/make_adapter_vectors.py FOLDER``; the frozen ones in ``spec/vectors/v1/adapters`` are never made again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from frozen import FAMILY, Forge, new_folder, put_objects, write_registry

from uws_store import layout
from uws_store.builder import Fidelity, Members, build_basis, encode_model
from uws_store.checkpoint import scan_zoo, write_safetensors
from uws_store.metadata.log import BasisAction, FamilyAction
from uws_store.storage import Storage

CONFIG = '{"base_model_name_or_path": "org/base", "lora_alpha": 8, "peft_type": "LORA", "r": %d}'
SHAPES = {"attention": (12, 9), "conv": (6, 8), "embedding": (5, 7)}


def forge_zoo(folder: Path) -> None:
    """Write six adapters of ranks 2 and 4, of several dtypes."""
    rng = np.random.default_rng(3)
    spaces = {
        name: (rng.standard_normal((m, 5)), rng.standard_normal((5, n))) for name, (m, n) in SHAPES.items()
    }
    for index, dtype in enumerate((torch.float32, torch.float16, torch.float32, torch.bfloat16) * 2):
        rank = 4 if index % 2 else 2
        tensors: dict[str, torch.Tensor] = {}
        for name, (left, right) in spaces.items():
            a = torch.from_numpy(rng.standard_normal((rank, 5)) @ right)
            b = torch.from_numpy(left @ rng.standard_normal((5, rank))) * 0.05
            if name == "conv":
                a, b = a.reshape(rank, 2, 2, 2), b.reshape(-1, rank, 1, 1)
            ends = (
                ("lora_embedding_A", "lora_embedding_B")
                if name == "embedding"
                else ("lora_A.weight", "lora_B.weight")
            )
            for end, factor in zip(ends, (a, b), strict=True):
                tensors[f"base_model.model.{name}.{end}"] = factor.to(dtype).contiguous()
        if index == 5:
            tensors["base_model.model.conv.lora_A.weight"][0, 0, 0, 0] = float("nan")
        member = folder / f"task-{index}"
        member.mkdir(parents=True)
        write_safetensors(member / "adapter_model.safetensors", tensors, {"format": "pt"})
        (member / "adapter_config.json").write_text(CONFIG % rank, encoding="utf-8")


def forge_adapters(storage: Storage) -> None:
    """Write the registry."""
    forge = Forge(storage)
    with tempfile.TemporaryDirectory() as zoo:
        forge_zoo(Path(zoo))
        with Members(scan_zoo(Path(zoo))) as members:
            built = build_basis(members, fidelity=Fidelity("change-error", 0.1))
            size = put_objects(storage, layout.basis_prefix(FAMILY, built.basis.digest), built.objects)
            forge.commit(
                [
                    FamilyAction(family=FAMILY, architecture=members.report.digest),
                    BasisAction(family=FAMILY, revision=1, digest=built.basis.digest, size_bytes=size),
                    *(
                        forge.model(name, encode_model(built.basis, members.checkpoints[task], exact=exact))
                        for name, task, exact in (
                            ("exact", "task-1", True),
                            ("small", "task-0", True),
                            ("plain", "task-2", False),
                            ("odd", "task-5", True),
                            ("brain", "task-3", True),
                        )
                    ),
                ]
            )


def main(arguments: list[str] | None = None) -> int:
    """Make the vectors."""
    folder = new_folder("make_adapter_vectors", __doc__, arguments)
    if folder is None:
        return 2
    write_registry(folder, forge_adapters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
