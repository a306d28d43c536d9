"""A look at a torch file's pickle without running it: what it would call.

Owns finding the file's kind and the constructors its pickle names. Runs nothing and allocates no tensor. Must not
know about weights or names of models.
"""

from __future__ import annotations

import errno
import io
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uws_store.checkpoint.weight_file import damaged, file_errors, first_bytes
from uws_store.errors import InvalidInputError, UwsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

__all__ = ["TorchPickle", "refused_pickle", "scan"]

_PROTOCOL_2 = b"\x80\x02"
# The number every torch file of the old kind begins with, as a pickle.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# An old file is these four pickles, then the storages.
_LEGACY_PICKLES = 4
# torch writes its records uncompressed; others may pack them, and a pruned model packs well.
_MAX_INFLATION = 16
_INFLATION_BYTES = 64 << 20
_ZIP = b"PK\x03\x04"
# Constructors of tensors that are not plain arrays of numbers, and what these are.
_UNSUPPORTED = {
    "_rebuild_qtensor": "quantised",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "without data (on the meta device)",
}


@dataclass(frozen=True, slots=True)
class TorchPickle:
    """What was found.

    Attributes
    ----------
    can_map : bool
        Whether its tensors can be mapped into memory: a zip archive whose records are not compressed.
    """

    can_map: bool


def scan(path: Path) -> TorchPickle:
    """Look at a torch file and refuse what would not load as plain tensors.

    Raises
    ------
    FormatError
        When it is damaged or not a torch file (kind ``format/checkpoint``).
    InvalidInputError
        When it holds more than weights (kind ``invalid-input/pickle``), or a tensor that is sparse, quantised,
        nested or without data (``invalid-input/tensor-kind``).
    """
    head = first_bytes(path, 32)
    if head.startswith(_ZIP):
        return _scan_zip(path)
    if head.startswith(_PROTOCOL_2 + _LEGACY_MAGIC):
        with file_errors(path), path.open("rb") as file:
            _check_constructors(path, _opcodes(path, file, pickles=_LEGACY_PICKLES))
        return TorchPickle(can_map=False)
    if head.startswith(b"\x80"):
        what = (
            "uses another pickle protocol than torch's"
            if _LEGACY_MAGIC in head
            else "is a pickle, but not torch's"
        )
        raise refused_pickle(path, f"it {what}")
    raise damaged(path, "it is not a file of torch.save")


def refused_pickle(path: Path, reason: str) -> InvalidInputError:
    """Make the error for a file that could only be loaded by running what it holds."""
    return InvalidInputError(
        f"{path} is not loaded, since {reason}, and loading it could run any program; in the program that wrote it, "
        "save the weights alone: safetensors.torch.save_model(model, 'model.safetensors')",
        kind="invalid-input/pickle",
    )


def _scan_zip(path: Path) -> TorchPickle:
    try:
        with file_errors(path), path.open("rb") as file:
            records, content = _records(path, file)
    except UwsError as error:
        # An offset that lies is asked of the operating system, which calls it an invalid argument.
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL:
            raise damaged(path, "its archive is damaged") from error
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        raise damaged(path, f"its archive is damaged or was cut short ({error})") from error
    if content[:2] != _PROTOCOL_2:
        raise refused_pickle(path, "it uses another pickle protocol than torch's")
    if any(name.encode() in content for name in _UNSUPPORTED):
        _check_constructors(path, _opcodes(path, io.BytesIO(content), pickles=1))
    return TorchPickle(can_map=all(info.compress_type == zipfile.ZIP_STORED for info in records.values()))


def _records(path: Path, file: IO[bytes]) -> tuple[dict[str, zipfile.ZipInfo], bytes]:
    """Give an archive's records by their names in its one folder, and the pickle among them."""
    with zipfile.ZipFile(file) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in records:
            raise refused_pickle(path, "it is a TorchScript program")
        if "data.pkl" not in records:
            raise damaged(path, "it is a zip archive, but not one of torch.save")
        pickled = records["data.pkl"]
        _refuse_bombs(path, archive.infolist())
        if pickled.compress_size > path.stat().st_size:
            raise damaged(path, "its archive is damaged: a record is larger than the file")
        # torch can be told to write no checksums (set_crc32_options), and then zipfile finds wrong ones.
        del pickled.CRC
        with archive.open(pickled) as record:
            return records, record.read()


def _refuse_bombs(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuse compressed records that are out of proportion to the file: torch unpacks them into memory."""
    packed = sum(info.file_size for info in records if info.compress_type != zipfile.ZIP_STORED)
    most = _MAX_INFLATION * path.stat().st_size + _INFLATION_BYTES
    if packed > most:
        raise damaged(
            path,
            f"its compressed records would take {packed} bytes, and at most {most} are unpacked of its size",
        )


def _opcodes(path: Path, file: IO[bytes], *, pickles: int) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    """Give the operations of the pickles a file begins with, and their arguments."""
    for _ in range(pickles):
        try:
            for opcode, argument, _ in pickletools.genops(file):
                yield opcode, argument
        except (ValueError, OverflowError, struct.error, MemoryError, Warning) as error:
            # A length that lies is asked of the memory; a backslash in a name draws a warning, perhaps an error.
            raise damaged(path, f"its pickle is damaged or was cut short ({error})") from error


def _check_constructors(path: Path, opcodes: Iterator[tuple[pickletools.OpcodeInfo, object]]) -> None:
    """Refuse the first tensor of a kind we cannot keep, by name: the text before its constructor."""
    texts: dict[object, str] = {}
    name = "?"
    is_text = False
    for opcode, argument in opcodes:
        if opcode.name in {"BINGET", "LONG_BINGET"} and argument in texts:
            name = texts[argument]
        elif opcode.name in {"BINPUT", "LONG_BINPUT"} and is_text:
            texts[argument] = name
        is_text = isinstance(argument, str) and "UNICODE" in opcode.name
        if is_text:
            name = str(argument)
        if opcode.name == "GLOBAL" and isinstance(argument, str):
            kind = _UNSUPPORTED.get(argument.rpartition(" ")[2])
            if kind:
                raise InvalidInputError(
                    f"tensor {name!r} of {path} is {kind}; save it as a plain tensor, for example with "
                    "to_dense() or dequantize()",
                    kind="invalid-input/tensor-kind",
                )
