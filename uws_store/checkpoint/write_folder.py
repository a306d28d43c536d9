"""Writing a checkpoint's folder: weights and the files beside them, all of it or nothing.

Owns the order in which a folder comes into being. Must not know what the files say.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uws_store.checkpoint.write import disk_errors, sync_folder, write_safetensors
from uws_store.errors import AlreadyExistsError

if TYPE_CHECKING:
    import torch

__all__ = ["write_folder"]


def write_folder(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    weights_name: str,
    side_files: Mapping[str, bytes],
    overwrite: bool = False,
) -> int:
    """Write weights and side files to a folder.

    A folder that is not there, or is empty, appears whole or not at all. In one that holds files, each file is replaced
    whole, the weights last.

    Parameters
    ----------
    path : path
        The folder; the one it lies in must exist.
    tensors, metadata
        As of :func:`~uws_store.checkpoint.write.write_safetensors`.
    weights_name : str
        The name of the weights in the folder.
    side_files : mapping of str to bytes
        The other files by their checked names (:data:`uws_store.metadata.files.FileName`).
    overwrite : bool
        Whether files that are there are replaced.

    Returns
    -------
    int
        Bytes of all files.

    Raises
    ------
    AlreadyExistsError
        When the folder holds files, or is a file, and nothing may be replaced (kind ``already-exists/folder``).
    UwsError
        As of :func:`~uws_store.checkpoint.write.write_safetensors`.
    """
    target = Path(path)
    with disk_errors(target):
        is_free = not os.path.lexists(target) or (target.is_dir() and next(target.iterdir(), None) is None)
    if not is_free and not (overwrite and target.is_dir()):
        raise AlreadyExistsError(
            f"{target} is there already and not empty; name a new folder, or ask to overwrite the files in it",
            kind="already-exists/folder",
        )
    if not is_free:
        return _fill(target, tensors, metadata, weights_name=weights_name, side_files=side_files)
    temporary = target.parent / f".uws-{secrets.token_hex(8)}.part"
    try:
        with disk_errors(target):
            temporary.mkdir()
        size = _fill(temporary, tensors, metadata, weights_name=weights_name, side_files=side_files)
        with disk_errors(target):
            if target.is_dir():
                target.rmdir()
            temporary.rename(target)
            sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return size


def _fill(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    weights_name: str,
    side_files: Mapping[str, bytes],
) -> int:
    for name, data in side_files.items():
        place = folder / name
        with disk_errors(place):
            place.parent.mkdir(exist_ok=True)
            draft = place.with_name(f".uws-{secrets.token_hex(8)}.part")
            try:
                with draft.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(place)
            finally:
                draft.unlink(missing_ok=True)
    size = write_safetensors(folder / weights_name, tensors, metadata, overwrite=True)
    return size + sum(map(len, side_files.values()))
