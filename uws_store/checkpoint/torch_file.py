"""The reader of one file of ``torch.save``: mapped where possible, and never unpickled.

Owns the call of ``torch.load``. Must not know about safetensors or folders.
"""

from __future__ import annotations

import pickle
import re
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from uws_store.checkpoint.base import TensorInfo, owned_copy
from uws_store.checkpoint.pickle_scan import refused_pickle, scan
from uws_store.checkpoint.state_dict import weights_in
from uws_store.checkpoint.weight_file import WeightFile, damaged, file_errors
from uws_store.dtypes import dtype_of_torch
from uws_store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TorchFile"]

# What a broadcast tensor may grow beyond its file when it is written out.
_MAX_EXPANSION_BYTES = 64 << 20
_FORBIDDEN_GLOBAL = re.compile(r"GLOBAL (\S+)")


class TorchFile(WeightFile):
    """One file of ``torch.save``.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    FormatError
        When the file is damaged, cut short, or something else (kind ``format/checkpoint``).
    InvalidInputError
        When it holds more than weights (kind ``invalid-input/pickle``), weights cannot be found in it (kinds of
        :func:`~uws_store.checkpoint.state_dict.weights_in`), or a tensor's dtype or kind is not supported
        (``invalid-input/dtype``, ``invalid-input/tensor-kind``).
    UwsError
        As of :func:`~uws_store.checkpoint.weight_file.file_errors`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        weights = weights_in(_loaded(path), source=str(path))
        self._tensors = {name: tensor.detach() for name, tensor in weights.tensors.items()}
        self.tensors = MappingProxyType(
            {name: self._info(name, tensor) for name, tensor in self._tensors.items()},
        )
        self.tied = _tied(self._tensors)
        self.notices = weights.notices
        self.metadata = MappingProxyType({})

    def _info(self, name: str, tensor: torch.Tensor) -> TensorInfo:
        kind = _kind_problem(tensor)
        if kind:
            raise InvalidInputError(
                f"tensor {name!r} of {self.path} is {kind}; save it as a plain tensor on the CPU",
                kind="invalid-input/tensor-kind",
            )
        try:
            info = TensorInfo(name, dtype_of_torch(tensor.dtype), tuple(tensor.shape))
        except InvalidInputError as error:
            raise InvalidInputError(f"tensor {name!r} of {self.path}: {error}", kind=error.kind) from error
        if info.size_bytes > self.stamp.size_bytes + _MAX_EXPANSION_BYTES:
            raise InvalidInputError(
                f"tensor {name!r} of {self.path} has {info.size_bytes} bytes in a file of {self.stamp.size_bytes}: "
                "it repeats the same numbers; save it without the repetition",
                kind="invalid-input/tensor-kind",
            )
        return info

    def _read(self, info: TensorInfo) -> torch.Tensor:
        return owned_copy(self._tensors[info.name])

    def _read_rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        return owned_copy(self._tensors[info.name][start:stop])

    def _close(self) -> None:
        self._tensors = {}


def _loaded(path: Path) -> object:
    found = scan(path)
    with file_errors(path):
        try:
            # A path of text, since torch maps a file only by its name.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=found.can_map)
        except pickle.UnpicklingError as error:
            names = sorted(set(_FORBIDDEN_GLOBAL.findall(str(error))))
            holds = f"it holds {', '.join(names)}" if names else "it holds more than tensors"
            raise refused_pickle(path, f"{holds} beside its weights") from error
        except (MemoryError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            # torch's allocator raises RuntimeError and has no type of its own for it.
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            # torch's reader ends on damaged bytes with whatever they lead it to: KeyError, EOFError, OSError...
            raise damaged(path, f"torch.load fails with {type(error).__name__}: {error}") from error


def _kind_problem(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type != "cpu":
        return f"without data (on the {tensor.device.type} device)"
    return None


def _tied(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    """Group the names that are the same view of the same storage, in file order."""
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            view = (
                tensor.data_ptr(),
                tensor.dtype,
                tensor.shape,
                tensor.stride(),
                tensor.is_conj(),
                tensor.is_neg(),
            )
            groups.setdefault(view, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)
