"""Writing a safetensors file: all of it, or nothing.

Owns the bytes of the files we write, which are the same for the same tensors and metadata every time. The library
cannot promise that (it writes metadata in the order of a hash with a random seed), nor does it say what the
operating system said when a disk is full. Must not know what the tensors are for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from uws_store.dtypes import DType, dtype_of_torch
from uws_store.errors import AlreadyExistsError, InvalidInputError, NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import IO

__all__ = ["disk_errors", "sync_folder", "write_safetensors"]

# The data begins on such a boundary, as the library has it.
_ALIGNMENT_BYTES = 8
# The library's order, by which each tensor begins on a multiple of its element's size. Kept, so that a file the
# library wrote and we write again is the same file.
_DTYPE_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
_METADATA_KEY = "__metadata__"
# File systems that have no hard links say so with one of these.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK})


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Write tensors to a safetensors file, atomically and durably.

    The file appears whole or not at all, also when the process is killed or the disk is full. The same input gives
    the same bytes. Tied tensors are written as full copies.

    Parameters
    ----------
    path : path
        The file. Its folder must exist.
    tensors : Mapping of str to torch.Tensor
        Dense tensors of any device, written bit by bit. Each is copied only while it is written.
    metadata : Mapping of str to str, optional
        Text for the header, written as it is. None writes ``format: pt``, which some readers ask for.
    overwrite : bool
        Whether a file that is there is replaced.

    Returns
    -------
    int
        The size of the file in bytes.

    Raises
    ------
    AlreadyExistsError
        When the file is there and may not be replaced (kind ``already-exists/file``).
    NotFoundError
        When the folder is not there (kind ``not-found/folder``).
    InvalidInputError
        When a tensor, a name or the metadata cannot be written (kinds ``invalid-input/tensor-kind``,
        ``invalid-input/tensor-name``, ``invalid-input/dtype``, ``invalid-input/metadata``), or the path holds a NUL
        (``invalid-input/path``).
    StorageError
        When the disk is full or fails (kind ``storage/no-space``, ``storage/permission`` or ``storage/io``).
    """
    target = Path(path)
    if "\0" in str(target):
        raise InvalidInputError(f"{str(target)!a} is no path; name another file", kind="invalid-input/path")
    items = {name: (_checked(name, tensor), tensor) for name, tensor in tensors.items()}
    order = sorted(items, key=lambda name: (_DTYPE_ORDER.index(items[name][0].name), name))
    texts = _checked_metadata({"format": "pt"} if metadata is None else metadata)
    header = _header({name: items[name] for name in order}, texts)
    if not overwrite and os.path.lexists(target):
        raise _exists(target)
    temporary = target.parent / f".uws-{secrets.token_hex(8)}.part"
    try:
        with disk_errors(target), temporary.open("xb") as file:
            file.write(header)
            for name in order:
                _write_bits(file, items[name][1])
            file.flush()
            os.fsync(file.fileno())
            size_bytes = file.tell()
        with disk_errors(target):
            _put_in_place(temporary, target, overwrite=overwrite)
            sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return size_bytes


def _checked(name: object, tensor: object) -> DType:
    """Check that a tensor can be written under a name, and give its dtype."""
    if name == _METADATA_KEY or not _is_text(name):
        raise InvalidInputError(
            f"{name!a} cannot be the name of a tensor; rename it", kind="invalid-input/tensor-name"
        )
    if not isinstance(tensor, torch.Tensor):
        raise InvalidInputError(
            f"{name!r} is a {type(tensor).__name__} and not a tensor; leave it out",
            kind="invalid-input/tensor-kind",
        )
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise InvalidInputError(
            f"tensor {name!r} is sparse, quantised, nested or without data; make it a plain tensor",
            kind="invalid-input/tensor-kind",
        )
    try:
        return dtype_of_torch(tensor.dtype)
    except InvalidInputError as error:
        raise InvalidInputError(f"tensor {name!r}: {error}", kind=error.kind) from error


def _checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in metadata.items():
        if not (_is_text(key) and _is_text(value)):
            raise InvalidInputError(
                f"metadata {key!a}: {value!a} is not text by text; safetensors keeps nothing else",
                kind="invalid-input/metadata",
            )
    return metadata


def _is_text(text: object) -> bool:
    """Whether it is a str that UTF-8 can express."""
    return isinstance(text, str) and not any("\ud800" <= character <= "\udfff" for character in text)


def _header(items: Mapping[str, tuple[DType, torch.Tensor]], metadata: Mapping[str, str]) -> bytes:
    """Make the header: its length, then JSON padded with spaces."""
    entries: dict[str, object] = {_METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, (dtype, tensor) in items.items():
        end = offset + tensor.numel() * dtype.size_bytes
        entries[name] = {"dtype": dtype.name, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _write_bits(file: IO[bytes], tensor: torch.Tensor) -> None:
    if tensor.numel():
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def _put_in_place(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(target)
        return
    try:
        # A rename would replace a file that another process made meanwhile; a link does not.
        os.link(temporary, target)
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise _exists(target) from error
        temporary.rename(target)


def sync_folder(folder: Path) -> None:
    """Make a new name durable, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exists(target: Path) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{target} is there already; name another file, or ask to overwrite it", kind="already-exists/file"
    )


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's errors about a file to be written into ours."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"{target} cannot be written, since its folder does not exist; make it first",
            kind="not-found/folder",
        ) from error
    except PermissionError as error:
        raise StorageError(f"{target} may not be written: {error}", kind="storage/permission") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StorageError(
                f"{target} was not written, since there is no space for it ({error.strerror}); make room and try again",
                kind="storage/no-space",
            ) from error
        raise StorageError(f"{target} cannot be written: {error}", kind="storage/io") from error
