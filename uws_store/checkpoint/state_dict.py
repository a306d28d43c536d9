"""Finding the weights in what ``torch.save`` was given: wrappers, optimizers, averages.

Owns which entry of a training checkpoint is the model, and what is left out. Pure: it must not know about files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from uws_store.checkpoint.base import listed
from uws_store.errors import InvalidInputError

__all__ = ["Weights", "weights_in"]

# The keys under which training programs put the model.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# Entries that hold tensors and are never the model.
_TRAINING_STATE = re.compile(r"optim|sched|scaler|rng|(^|_)(ema|swa|teacher)(_|$)", re.IGNORECASE)
# A moving average that stands among the weights themselves.
_AVERAGE_PREFIXES = ("model_ema.", "ema_model.")
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights found.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        By name, in the order of the checkpoint.
    notices : tuple of str
        What was left out, in sentences.
    """

    tensors: dict[str, torch.Tensor]
    notices: tuple[str, ...]


def weights_in(content: object, *, source: str) -> Weights:
    """Find the weights in the content of a torch file.

    Parameters
    ----------
    content : object
        A state dict, or a dictionary that holds one under ``state_dict``, ``model_state_dict``, ``model`` or
        ``module``, or as its only dictionary of tensors.
    source : str
        Where it came from, for messages.

    Raises
    ------
    InvalidInputError
        When there are no tensors (kind ``invalid-input/no-tensors``), there is more than one model
        (``invalid-input/ambiguous-checkpoint``), or a tensor's name is not text (``invalid-input/tensor-name``).
    """
    notices: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, Mapping):
            raise InvalidInputError(
                f"{source} holds a {type(content).__name__} and not a state dict; save model.state_dict()",
                kind="invalid-input/no-tensors",
            )
        key = _wrapper_key(content, source=source)
        if key is None:
            break
        others = [other for other in content if other != key]
        if others:
            notices.append(_left_out([str(other) for other in others], f"beside the weights in {key!r}"))
        content = content[key]
    return _flat(content, notices, source=source)


def _wrapper_key(content: Mapping[object, object], *, source: str) -> str | None:
    """Give the key of the entry that is the model, or None when the mapping itself is."""
    named = [key for key in _WRAPPERS if _holds_tensors(content.get(key), _MAX_DEPTH)]
    if not named and not _has_tensors(content):
        named = [
            key
            for key, value in content.items()
            if isinstance(key, str) and not _TRAINING_STATE.search(key) and _has_tensors(value)
        ]
    if len(named) > 1:
        raise InvalidInputError(
            f"{source} holds more than one set of weights, under {listed(named)}; save the one you mean by itself",
            kind="invalid-input/ambiguous-checkpoint",
        )
    return named[0] if named else None


def _has_tensors(value: object) -> bool:
    """Whether a value is a dictionary with at least one named tensor."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in value.items()
    )


def _holds_tensors(value: object, depth: int) -> bool:
    """Whether a value is a dictionary with named tensors, perhaps inside another wrapper."""
    if _has_tensors(value):
        return True
    return (
        depth > 1 and isinstance(value, Mapping) and any(_holds_tensors(v, depth - 1) for v in value.values())
    )


def _flat(content: object, notices: list[str], *, source: str) -> Weights:
    entries = dict(content.items()) if isinstance(content, Mapping) else {}
    tensors = {}
    for name, value in entries.items():
        if not isinstance(value, torch.Tensor):
            continue
        if not isinstance(name, str):
            raise InvalidInputError(
                f"{source} holds a tensor under {name!r}, which is a {type(name).__name__} and not a name; "
                "save model.state_dict()",
                kind="invalid-input/tensor-name",
            )
        tensors[name] = value
    if not tensors:
        raise InvalidInputError(
            f"{source} holds no tensors by name (its entries are {listed([str(key) for key in entries]) or 'none'}); "
            "save model.state_dict()",
            kind="invalid-input/no-tensors",
        )
    other = [str(name) for name in entries if name not in tensors]
    if other:
        notices.append(_left_out(other, "not tensors"))
    averages = [name for name in tensors if name.startswith(_AVERAGE_PREFIXES)]
    if averages and len(averages) < len(tensors):
        notices.append(_left_out(averages, "a moving average of the weights"))
        tensors = {name: tensor for name, tensor in tensors.items() if name not in set(averages)}
    return Weights(tensors, tuple(notices))


def _left_out(names: list[str], reason: str) -> str:
    return f"left out: {listed(names)} ({reason})"
