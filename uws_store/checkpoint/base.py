"""What a checkpoint is to the rest of the package: named tensors that are read one at a time.

Owns the interface, and the rules every reader keeps: bits are copied, never converted, and memory is never shared.
Must not know about any file format.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from uws_store.dtypes import DType
from uws_store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from uws_store.adapter import AdapterConfig

__all__ = ["Checkpoint", "TensorInfo", "check_rows", "listed", "owned_copy", "tensor_info"]

# An integer type of each width: moving integers keeps every bit, NaN payloads and odd booleans included.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Attributes
    ----------
    name : str
        The tensor's name, without a ``module.`` that all names of its checkpoint begin with.
    dtype : DType
        Its element type.
    shape : tuple of int
        Its sizes; empty for a 0-d tensor.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes its elements take."""
        return self.numel * self.dtype.size_bytes


class Checkpoint(ABC):
    """The weights of one model, read lazily.

    A context manager. Reads may come from several threads.

    Attributes
    ----------
    source : str
        Where it was opened from, for messages and records.
    tensors : Mapping of str to TensorInfo
        Every tensor, aliases included, in file order.
    tied : tuple of tuple of str
        Groups of names that are one tensor: the same storage, seen in the same way.
    notices : tuple of str
        What was left out or renamed, in sentences for the user.
    metadata : Mapping of str to str
        The text a safetensors file carries in its header.
    file_size_bytes : int
        The size of its weight files.
    side_files : tuple of str
        Names of the small files beside the weights that travel with them; none for a checkpoint that is no folder.
    adapter : AdapterConfig or None
        What an ``adapter_config.json`` beside the weights says.
    """

    source: str
    tensors: Mapping[str, TensorInfo]
    tied: tuple[tuple[str, ...], ...]
    notices: tuple[str, ...]
    metadata: Mapping[str, str]
    file_size_bytes: int
    side_files: tuple[str, ...] = ()
    adapter: AdapterConfig | None = None

    def read_side_file(self, name: str) -> bytes:
        """Read one of :attr:`side_files`.

        Raises
        ------
        NotFoundError
            When there is no such file (kind ``not-found/side-file``).
        FormatError
            When it is too large, or not what its name says (kind ``format/side-file``).
        """
        raise NotFoundError(f"{self.source} has no side file {name!r}", kind="not-found/side-file")

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Returns
        -------
        torch.Tensor
            On the CPU, contiguous, bit-identical to the file, in memory nobody else sees.

        Raises
        ------
        NotFoundError
            When there is no such tensor (kind ``not-found/tensor``), or the file is gone
            (``not-found/checkpoint``).
        InvalidInputError
            When the file was changed since it was opened (kind ``invalid-input/checkpoint-changed``), or the
            checkpoint is closed (``invalid-input/closed``).
        FormatError
            When the file is damaged (kind ``format/checkpoint``).
        StorageError
            When the disk fails.
        """

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows ``start`` to ``stop`` (not included) of a tensor's first dimension, and only these.

        Returns
        -------
        torch.Tensor
            As of :meth:`read`; its first size is ``stop - start``.

        Raises
        ------
        InvalidInputError
            When the rows do not lie in the tensor, or it has no dimension (kind ``invalid-input/rows``).
        UwsError
            As of :meth:`read`.
        """

    @abstractmethod
    def sha256(self) -> str:
        """Compute the SHA-256 of the weight files' bytes, in the order of their names, as 64 hexadecimal digits.

        For one file this is what ``sha256sum`` prints. The first call costs one pass over the files.
        """

    def identity(self) -> str:
        """Tell one state of the weight files from another, without reading them: the same on every machine."""
        return f"{self.source} {self.file_size_bytes}"

    def note_sha256(self, digest: str) -> None:  # noqa: B027 - a reader without a digest of files ignores it
        """Take a digest that was computed by another reader of the same files in the same state."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. Closing twice is fine."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give each tensor's shape, in file order."""
        return {name: info.shape for name, info in self.tensors.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tensor_info(tensors: Mapping[str, TensorInfo], name: str, *, source: str) -> TensorInfo:
    """Look a tensor up by name.

    Raises
    ------
    NotFoundError
        When there is none (kind ``not-found/tensor``).
    """
    try:
        return tensors[name]
    except KeyError as error:
        raise NotFoundError(
            f"{source} has no tensor {name!r}; it has {listed(tensors)}", kind="not-found/tensor"
        ) from error


def check_rows(info: TensorInfo, start: int, stop: int, *, source: str) -> None:
    """Check that rows lie in a tensor.

    Raises
    ------
    InvalidInputError
        When they do not (kind ``invalid-input/rows``).
    """
    if not info.shape or not 0 <= start <= stop <= info.shape[0]:
        raise InvalidInputError(
            f"rows {start} to {stop} do not lie in tensor {info.name!r} of shape {list(info.shape)} in {source}",
            kind="invalid-input/rows",
        )


def owned_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a dense CPU tensor, bit by bit, into contiguous memory of its own."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    bits = plain.view(_BITS[plain.element_size()])
    return bits.clone(memory_format=torch.contiguous_format).view(plain.dtype)


def listed(names: Mapping[str, object] | tuple[str, ...] | list[str], *, most: int = 5) -> str:
    """Give the first few of some names, for a message."""
    shown = [repr(name) for name in list(names)[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
