"""Filling a torch module with a model's weights.

Owns the rules of ``into=``: everything is reconstructed and checked first, so that a failure leaves the module as
it was; the wording of missing and unexpected keys is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from uws_store.errors import IncompatibleError
from uws_store.loader.correspond import inner_module, own_names

__all__ = ["Fit", "fill_module", "fit_module"]

M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a module's own tensors correspond to a state dict.

    Attributes
    ----------
    module : torch.nn.Module
        The module itself, without what is wrapped around it.
    own : dict of str to torch.Tensor
        What of the module will be filled, by the state dict's names: its parameters and persistent buffers.
    keys : dict of str to str
        What the module calls them.
    on_meta : bool
        Whether some of the module has no memory, so that it must be filled by assignment.
    """

    module: torch.nn.Module
    own: dict[str, torch.Tensor]
    keys: dict[str, str]
    on_meta: bool


def fit_module(
    module: torch.nn.Module,
    names: Mapping[str, object],
    *,
    strict: bool,
    name: str,
    shape_of: Callable[[str], tuple[int, ...]],
) -> Fit:
    """Compare a module with a state dict that need not exist yet; touches neither.

    Parameters
    ----------
    module : torch.nn.Module
        With or without memory behind its parameters; one that is compiled or data-parallel stands for what is in it.
    names : mapping
        Keyed by the state dict's names.
    strict : bool
        As in :meth:`torch.nn.Module.load_state_dict`. A key is not missing when the module ties it to one that is
        there.
    name : str
        What is loaded, for messages.
    shape_of : callable
        Shape of a tensor of the state dict.

    Raises
    ------
    IncompatibleError
        When keys or shapes do not fit, or a tensor without memory would be left (kind ``incompatible/module``).
    InvalidInputError
        When it is no module (kind ``invalid-input/module``).
    """
    module = inner_module(module)
    own = module.state_dict(keep_vars=True)
    keys = own_names(module, names)
    there = set(keys.values())
    filled = {id(value) for key, value in own.items() if key in there}
    missing = [key for key, value in own.items() if key not in there and id(value) not in filled]
    unexpected = [name for name, key in keys.items() if key not in own]
    problems: list[str] = []
    if strict and unexpected:
        problems.append(
            "Unexpected key(s) in state_dict: " + ", ".join(f'"{key}"' for key in unexpected) + ". "
        )
    if strict and missing:
        problems.append("Missing key(s) in state_dict: " + ", ".join(f'"{key}"' for key in missing) + ". ")
    fitting = {key: own[mine] for key, mine in keys.items() if isinstance(own.get(mine), torch.Tensor)}
    problems += [
        f"size mismatch for {key}: copying a param with shape {torch.Size(shape_of(key))} from checkpoint, "
        f"the shape in current model is {value.shape}."
        for key, value in fitting.items()
        if shape_of(key) != tuple(value.shape)
    ]
    empty = [key for key in missing if isinstance(own[key], torch.Tensor) and own[key].is_meta]
    if not strict and empty:
        problems.append("these have no memory and no weights to load: " + ", ".join(empty))
    lost = [key for key, value in module.named_buffers() if value.is_meta and key not in own]
    if strict and lost:
        problems.append(
            "these buffers are not persistent, so no checkpoint has them, and they have no memory: "
            + ", ".join(lost)
            + ". Make them on a device before, or pass strict=False and make them after"
        )
    if problems:
        raise IncompatibleError(
            f"Error(s) in loading state_dict for {type(module).__name__} from {name}:\n\t"
            + "\n\t".join(problems),
            kind="incompatible/module",
        )
    return Fit(
        module,
        fitting,
        {key: keys[key] for key in fitting},
        any(value.is_meta for value in fitting.values()),
    )


def fill_module(module: M, tensors: Mapping[str, torch.Tensor], *, strict: bool, name: str) -> M:
    """Load weights into a module, in place, or by assignment where the module is on the meta device.

    Parameters
    ----------
    module : torch.nn.Module
        With or without memory behind its parameters. Parameters that are one stay one.
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
    fit = fit_module(
        module, tensors, strict=strict, name=name, shape_of=lambda key: tuple(tensors[key].shape)
    )
    inner = fit.module
    ties = _ties(inner) if fit.on_meta else []
    # What was made in inference mode can be written there alone, and everything else is trained on outside of it.
    with torch.inference_mode(any(own.is_inference() for own in fit.own.values())):
        # Names were compared above; torch would call a tied one missing.
        own_tensors = {key: tensors[name] for name, key in fit.keys.items()}
        inner.load_state_dict(own_tensors, strict=False, assign=fit.on_meta)
    for names in ties:
        # Assignment gives each name a parameter of its own.
        source = next((key for key in names if key in own_tensors), None)
        if source is not None:
            for key in names:
                _set_parameter(inner, key, inner.get_parameter(source))
    return module


def _ties(module: torch.nn.Module) -> list[list[str]]:
    """Names of parameters that are one, those of each in a list."""
    names: dict[int, list[str]] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(key)
    return [keys for keys in names.values() if len(keys) > 1]


def _set_parameter(module: torch.nn.Module, key: str, parameter: torch.nn.Parameter) -> None:
    owner, _, last = key.rpartition(".")
    setattr(module.get_submodule(owner), last, parameter)
