"""Files of ``torch.save``, good and bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from uws_store.checkpoint import open_checkpoint
from uws_store.errors import UwsError


class Bomb:
    """Runs when it is unpickled."""

    exploded = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "exploded", True))


def bits(tensor: torch.Tensor) -> bytes:
    return (
        bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""
    )


def saved(path: Path, content: object, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def names_in(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return list(checkpoint.tensors)


def refusal(path: Path) -> str:
    with pytest.raises(UwsError) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)
    return error.value.kind


WEIGHTS = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
