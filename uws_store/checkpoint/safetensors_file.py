"""The reader of one safetensors file.

Owns the library's handles. The header is the library's to parse; here it is only looked at closely enough to say
what is wrong with a file that is not one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from uws_store.checkpoint.base import TensorInfo, owned_copy
from uws_store.checkpoint.weight_file import WeightFile, damaged, file_errors, first_bytes
from uws_store.dtypes import DTYPES
from uws_store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import torch

__all__ = ["SafetensorsFile"]

_LENGTH_BYTES = 8
# The library's own limit; a number beyond it is text or noise read as a length.
_MAX_HEADER_BYTES = 100_000_000
_ZIP = b"PK\x03\x04"


class SafetensorsFile(WeightFile):
    """One safetensors file.

    Whole tensors are read with ``pread`` into memory of their own: a mapping would show the file's pages in the
    process's memory, and end it with a signal when another process cuts the file short.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    FormatError
        When the file is damaged, cut short, or something else (kind ``format/checkpoint``).
    InvalidInputError
        When a tensor's dtype is not in our table (kind ``invalid-input/dtype``).
    UwsError
        As of :func:`~uws_store.checkpoint.weight_file.file_errors`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        _check_frame(path, self.stamp.size_bytes)
        self._handle: Any = _opened(path, backend="pread")
        self.tensors = MappingProxyType({info.name: info for info in _infos(self._handle, path)})
        # Two names cannot share bytes in this format.
        self.tied = ()
        self.notices = ()
        self.metadata = MappingProxyType(dict(self._handle.metadata() or {}))

    def _read(self, info: TensorInfo) -> torch.Tensor:
        try:
            tensor: torch.Tensor = self._handle.get_tensor(info.name)
        except (SafetensorError, RuntimeError) as error:
            raise damaged(self.path, f"tensor {info.name!r} cannot be read ({error})") from error
        return tensor if tensor.is_contiguous() else owned_copy(tensor)

    def _read_rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        # Here a mapping, for its time only: through pread the library reads the whole tensor to cut rows from it.
        mapping: Any = _opened(self.path, backend="mmap")
        with mapping:
            try:
                rows: torch.Tensor = mapping.get_slice(info.name)[start:stop]
            except (SafetensorError, RuntimeError) as error:
                raise damaged(self.path, f"tensor {info.name!r} cannot be read ({error})") from error
            return owned_copy(rows)

    def _close(self) -> None:
        self._handle.__exit__(None, None, None)


def _opened(path: Path, *, backend: str) -> Any:  # noqa: ANN401 - the library's handle has no useful type
    try:
        with file_errors(path):
            return safe_open(path, framework="pt", device="cpu", backend=backend)
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


def _check_frame(path: Path, size_bytes: int) -> None:
    """Say in words what is wrong with a file that cannot be a whole safetensors file."""
    head = first_bytes(path, _LENGTH_BYTES + 1)
    if head.startswith(_ZIP):
        raise damaged(path, "it is a zip archive, perhaps written by torch.save (rename it to .pt)")
    if len(head) < _LENGTH_BYTES:
        raise damaged(
            path, f"it has {size_bytes} bytes, and a safetensors file begins with 8 that hold a length"
        )
    header_bytes = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if header_bytes > _MAX_HEADER_BYTES or head[_LENGTH_BYTES:] not in {b"{", b""}:
        raise damaged(path, "it is not a safetensors file")
    if _LENGTH_BYTES + header_bytes > size_bytes:
        raise damaged(
            path,
            f"it was cut short: its header needs {_LENGTH_BYTES + header_bytes} bytes and it has {size_bytes}",
        )


def _infos(handle: Any, path: Path) -> Iterator[TensorInfo]:  # noqa: ANN401 - the library's handle has no useful type
    for name, dtype, shape in _in_file_order(_entries(handle)):
        if dtype not in DTYPES:
            raise InvalidInputError(
                f"tensor {name!r} of {path} has dtype {dtype}, which is not supported; known are {', '.join(DTYPES)}",
                kind="invalid-input/dtype",
            )
        yield TensorInfo(name, DTYPES[dtype], shape)


def _entries(handle: Any) -> Iterator[tuple[str, str, tuple[int, ...]]]:  # noqa: ANN401 - as above
    for name in handle.offset_keys():
        view = handle.get_slice(name)
        yield name, view.get_dtype(), tuple(view.get_shape())


def _in_file_order(
    entries: Iterable[tuple[str, str, tuple[int, ...]]],
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Sort tensors of no bytes that stand at one offset by name: the library gives them in any order."""
    empty: list[tuple[str, str, tuple[int, ...]]] = []
    for entry in entries:
        if 0 in entry[2]:
            empty.append(entry)
            continue
        yield from sorted(empty)
        empty.clear()
        yield entry
    yield from sorted(empty)
