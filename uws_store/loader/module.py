"""Filling a torch module with a model's weights.

Owns the rules of ``into=``: everything is reconstructed and checked first, so that a failure leaves the module as
it was; the wording of missing and unexpected keys is torch's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch

from uws_store.errors import IncompatibleError

__all__ = ["fill_module"]

M = TypeVar("M", bound=torch.nn.Module)


def fill_module(module: M, tensors: Mapping[str, torch.Tensor], *, strict: bool, name: str) -> M:
    """Load weights into a module, in place, or by assignment where the module is on the meta device.

    Parameters
    ----------
    module : torch.nn.Module
        With or without memory behind its parameters.
    tensors : mapping of str to torch.Tensor
        The whole state dict, already reconstructed.
    strict : bool
        As in :meth:`torch.nn.Module.load_state_dict`.
    name : str
        What is loaded, for messages.

    Returns
    -------
    torch.nn.Module
        The same module.

    Raises
    ------
    IncompatibleError
        When keys or shapes do not fit (kind ``incompatible/module``); the module is as it was.
    """
    own = module.state_dict()
    on_meta = any(value.is_meta for value in own.values())
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    problems: list[str] = []
    if strict and unexpected:
        problems.append(
            "Unexpected key(s) in state_dict: " + ", ".join(f'"{key}"' for key in unexpected) + ". "
        )
    if strict and missing:
        problems.append("Missing key(s) in state_dict: " + ", ".join(f'"{key}"' for key in missing) + ". ")
    problems += [
        f"size mismatch for {key}: copying a param with shape {tensors[key].shape} from checkpoint, "
        f"the shape in current model is {own[key].shape}."
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if not strict and on_meta and (left := [key for key in missing if own[key].is_meta]):
        problems.append("these have no memory and no weights to load: " + ", ".join(left))
    if problems:
        raise IncompatibleError(
            f"Error(s) in loading state_dict for {type(module).__name__} from {name}:\n\t"
            + "\n\t".join(problems),
            kind="incompatible/module",
        )
    # With assign the module takes the tensors themselves; a tied tensor stays tied because it is one tensor.
    module.load_state_dict(dict(tensors), strict=strict, assign=on_meta)
    return module
