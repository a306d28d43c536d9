"""Side files out of the array in which a basis or a model keeps them, checked against their records."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from uws_store.metadata.files import FileRecord, require_file
from uws_store.store import ArrayReader

__all__ = ["read_files"]


def read_files(
    reader: ArrayReader | None, records: Sequence[FileRecord], *, names: Collection[str], where: str
) -> dict[str, bytes]:
    """Read some of the side files that lie end to end in an array, with one range each.

    Parameters
    ----------
    reader : ArrayReader or None
        None where all files are empty.
    records : sequence of FileRecord
        All files of the array, in its order; their sizes sum to its length.
    names : collection of str
        The files that are wanted.
    where : str
        Whose they are, for messages.

    Raises
    ------
    FormatError
        When stored bytes are damaged (kinds ``format/...``).
    """
    found: dict[str, bytes] = {}
    stops = itertools.accumulate(record.size for record in records)
    for record, stop in zip(records, stops, strict=True):
        if record.name in names:
            data = reader.read(stop - record.size, stop).tobytes() if reader and record.size else b""
            found[record.name] = require_file(data, record, where=where)
    return found
