"""Values made of frozen dataclasses, tensors and plain data, to bytes and back.

Nothing in the bytes names what to make of them: the type that is asked for does, so that bytes from a disk can make
nothing else. Must not know which values there are.
"""

from __future__ import annotations

import dataclasses
import io
import json
import types
import zipfile
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

__all__ = ["pack", "unpack"]

T = TypeVar("T")

_TREE = "tree"


def pack(value: object) -> bytes:
    """Write a value as a NumPy archive: its tensors, and a JSON tree of all the rest."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def tree(part: object) -> object:
        if isinstance(part, torch.Tensor):
            arrays[f"t{len(arrays)}"] = part.cpu().numpy()
            return len(arrays) - 1
        if dataclasses.is_dataclass(part):
            return [tree(getattr(part, field.name)) for field in dataclasses.fields(part)]
        if isinstance(part, Mapping):
            return [[key, tree(held)] for key, held in part.items()]
        if isinstance(part, list | tuple):
            return [tree(held) for held in part]
        if isinstance(part, bytes):
            return part.hex()
        return part.hex() if isinstance(part, float) else part

    text = json.dumps(tree(value)).encode()
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{_TREE: np.frombuffer(text, np.uint8)}, **arrays)
    return file.getvalue()


def unpack(data: bytes, kind: type[T]) -> T:
    """Read what :func:`pack` wrote as a value of a type.

    Raises
    ------
    ValueError
        When the bytes are no such value.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            value: T = _make(json.loads(arrays[_TREE].tobytes()), kind, arrays)
            return value
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, RecursionError) as error:
        raise ValueError(f"these bytes are no {kind.__name__}: {error}") from error


def _make(tree: Any, kind: Any, arrays: Mapping[str, Any]) -> Any:  # noqa: ANN401 - types are values here
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        if tree is None:
            return None
        kind = next(one for one in inner if one is not type(None))
        return _make(tree, kind, arrays)
    if kind is torch.Tensor:
        # np.load gives memory of its own that may be written to.
        return torch.from_numpy(np.ascontiguousarray(arrays[f"t{int(tree)}"])).reshape(
            arrays[f"t{int(tree)}"].shape
        )
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        fields = dataclasses.fields(kind)
        made = [_make(held, hints[field.name], arrays) for held, field in zip(tree, fields, strict=True)]
        return kind(**{field.name: value for field, value in zip(fields, made, strict=True)})
    if origin is Literal:
        if tree not in inner:
            raise ValueError(f"expected one of {inner}, found {tree!r}")
        return tree
    if origin is tuple:
        kinds = [inner[0]] * len(tree) if inner[-1:] == (Ellipsis,) else inner
        return tuple(_make(held, one, arrays) for held, one in zip(tree, kinds, strict=True))
    if origin is list:
        return [_make(held, inner[0], arrays) for held in tree]
    if origin is not None and issubclass(origin, Mapping):
        return {_make(key, inner[0], arrays): _make(held, inner[1], arrays) for key, held in tree}
    if kind is bytes:
        return bytes.fromhex(tree)
    if kind is float:
        # A whole number may stand where a real one is expected, here as in Python.
        return float(tree) if isinstance(tree, int) else float.fromhex(tree)
    if origin is None and not isinstance(tree, kind):
        raise ValueError(f"expected {kind}, found {tree!r}")
    return tree
