"""Side files of a zoo: which are the same in several models, and so stand once, in the basis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from uws_store import layout
from uws_store.basis import Basis
from uws_store.checkpoint import Checkpoint
from uws_store.metadata.files import FileRecord
from uws_store.store import EncodedArray, encode_array

__all__ = ["common_files", "own_files", "pack_files"]


def common_files(checkpoints: Mapping[str, Checkpoint]) -> dict[str, bytes]:
    """Give, for each name of a side file, the content that most checkpoints have, where it is that of two or more.

    Every side file is read once, so that one that cannot travel is refused before anything is fitted.
    """
    counts: dict[str, Counter[str]] = {}
    first: dict[tuple[str, str], str] = {}
    for task, checkpoint in checkpoints.items():
        for name in checkpoint.side_files:
            digest = FileRecord.of(name, checkpoint.read_side_file(name)).sha256
            counts.setdefault(name, Counter())[digest] += 1
            first.setdefault((name, digest), task)
    common: dict[str, bytes] = {}
    for name in sorted(counts):
        digest, count = min(counts[name].items(), key=lambda item: (-item[1], item[0]))
        if count > 1:
            common[name] = checkpoints[first[name, digest]].read_side_file(name)
    return common


def own_files(basis: Basis, checkpoint: Checkpoint) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Part a checkpoint's side files into those that the basis has and the model's own.

    Returns
    -------
    shared : tuple of str
        Names of files that the basis has with the same bytes.
    own : dict of str to bytes
        The others.
    """
    known = {record.name: record for record in basis.document.files}
    shared: list[str] = []
    own: dict[str, bytes] = {}
    for name in checkpoint.side_files:
        data = checkpoint.read_side_file(name)
        if known.get(name) == FileRecord.of(name, data):
            shared.append(name)
        else:
            own[name] = data
    return tuple(shared), own


def pack_files(files: Mapping[str, bytes]) -> tuple[tuple[FileRecord, ...], EncodedArray | None]:
    """Lay files end to end in one array, and make their records."""
    joined = b"".join(files.values())
    array = (
        encode_array(np.frombuffer(joined, np.uint8), chunk=layout.PRIVATE_CHUNK, page=None)
        if joined
        else None
    )
    return tuple(FileRecord.of(name, data) for name, data in files.items()), array
