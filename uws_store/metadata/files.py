"""Records of side files: the small files beside a checkpoint's weights, such as a configuration and a tokenizer.

Owns what such a file may be called and how large it may be. Must not know what the files say.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from uws_store.errors import FormatError
from uws_store.metadata.arrays import ArrayRecord, Sha256Hex
from uws_store.metadata.document import Part

__all__ = ["MAX_FILES", "MAX_FILE_BYTES", "FileName", "FileRecord", "check_files", "require_file"]

MAX_FILES = 64
"""Most side files of a model."""

MAX_FILE_BYTES = 1 << 26
"""Longest side file, in bytes: the largest tokenizers take half of this."""

# One name, or one in a numbered folder as sentence-transformers has them. Nothing here climbs, hides or is a program.
_NAME = r"^([0-9]{1,2}_[A-Za-z]{1,40}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}\.(json|txt|model|jinja)$"
_DEVICE = re.compile(r"(?:^|/)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])\.", re.IGNORECASE)


def _no_device(name: str) -> str:
    if _DEVICE.search(name):
        raise ValueError("the name of a device is no file's everywhere")
    return name


FileName = Annotated[str, StringConstraints(pattern=_NAME), AfterValidator(_no_device)]


class FileRecord(Part):
    """One side file.

    Attributes
    ----------
    name : str
        Its path in the checkpoint's folder.
    size : int
        Bytes.
    sha256 : str
        SHA-256 of the bytes, hex.
    """

    name: FileName
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256Hex

    @classmethod
    def of(cls, name: str, data: bytes) -> FileRecord:
        """Make the record of a file's bytes."""
        return cls(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def check_files(records: Iterable[FileRecord], shared: Iterable[str], array: ArrayRecord | None) -> None:
    """Check the side files of a document against each other and against the array they lie in.

    Raises
    ------
    ValueError
        When two names are one where case is not told apart, or the sizes do not sum to the array's length.
    """
    held = tuple(records)
    names = [*(record.name for record in held), *shared]
    if len({name.casefold() for name in names}) != len(names):
        raise ValueError("two side files have one name")
    stored, found = sum(record.size for record in held), array.length if array else 0
    if stored != found:
        raise ValueError(f"side files have {stored} bytes, their array {found}")
    if array is not None and array.dtype != "uint8":
        raise ValueError(f"side files are uint8, not {array.dtype}")


def require_file(data: bytes, record: FileRecord, *, where: str) -> bytes:
    """Compare a side file's bytes with its record.

    Raises
    ------
    FormatError
        When the SHA-256 differs (kind ``format/digest``).
    """
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise FormatError(
            f"{where}: the side file {record.name} has SHA-256 {found}, the record says {record.sha256}",
            kind="format/digest",
        )
    return data
