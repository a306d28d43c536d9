"""Reading the log: one commit after the other, none skipped, each bound to the one before by its digest.

Must not know what commits mean (``fold.py``). What stands in the log is untrusted until it is checked here.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, StorageError
from uws_store.layout import HEAD_PATH, commit_path
from uws_store.metadata.log import Commit, HeadHint

if TYPE_CHECKING:
    from uws_store.metadata.document import Document
    from uws_store.storage import Storage

__all__ = ["has_grown", "head_hint", "read_commit", "read_head", "read_limited"]


def read_limited(storage: Storage, path: str, document: type[Document]) -> bytes | None:
    """Read a document's bytes, no more than it may have; None when there is no such object. One request.

    Raises
    ------
    FormatError
        When it is larger than such a document may be (``format/size``): it is not read then.
    """
    return storage.read_at_most(path, document.max_bytes)


def read_commit(storage: Storage, number: int, *, parent: str | None) -> tuple[Commit, str] | None:
    """Read one commit and check that it is the one that follows.

    Parameters
    ----------
    storage : Storage
        Where the log is.
    number : int
        The commit to read.
    parent : str or None
        SHA-256 of the bytes of the commit before, None for the first.

    Returns
    -------
    tuple of Commit and str, or None
        The commit and the SHA-256 of its bytes; None when it is not there.

    Raises
    ------
    FormatError
        When it is malformed, or not this number (``format/log-number``), or does not follow from the one before
        (``format/log-chain``).
    """
    path = commit_path(number)
    data = read_limited(storage, path, Commit)
    if data is None:
        return None
    where = f"{storage.url}/{path}"
    commit = Commit.parse(data, where=where)
    if commit.number != number:
        raise FormatError(
            f"{where}: says it is commit {commit.number}; the log was tampered with or copied wrongly",
            kind="format/log-number",
        )
    if commit.parent != parent:
        raise FormatError(
            f"{where}: follows a commit with digest {commit.parent}, and the one before it has {parent}; the log was "
            "tampered with, or parts of two registries were mixed",
            kind="format/log-chain",
        )
    return commit, hashlib.sha256(data).hexdigest()


def has_grown(storage: Storage, number: int, *, use_hint: bool) -> bool:
    """Having found no commit `number`: tell whether it appeared meanwhile, and refuse a log that goes on behind it.

    Parameters
    ----------
    storage : Storage
        Where the log is.
    number : int
        The commit that was missing.
    use_hint : bool
        Look also where the head hint points, which costs two requests and finds gaps of any width.

    Raises
    ------
    FormatError
        When later commits exist (``format/log-gap``): reading on would lose what the missing one said, and
        writing here would change history.
    """
    beyond = {number + 1}
    hint = read_head(storage) if use_hint else None
    if hint is not None and hint > number:
        # Only a place to look: a hint that is stale or wrong is shown to be so by the log itself.
        beyond.add(hint)
    later = [other for other in sorted(beyond) if storage.size(commit_path(other)) is not None]
    if not later:
        return False
    # Looked at again: writers may have been at work between the two looks.
    if storage.size(commit_path(number)) is not None:
        return True
    raise FormatError(
        f"{storage.url}: commit {number} is missing and commit {later[0]} exists; the log is damaged, restore "
        f"{commit_path(number)} from a copy of the registry",
        kind="format/log-gap",
    )


def read_head(storage: Storage) -> int | None:
    """Read the hint at the newest commit; None when there is none that can be read."""
    with contextlib.suppress(FormatError, StorageError):
        data = read_limited(storage, HEAD_PATH, HeadHint)
        if data is not None:
            return HeadHint.parse(data, where=f"{storage.url}/{HEAD_PATH}").number
    return None


def head_hint(number: int) -> dict[str, bytes]:
    """Make the hint at the newest commit, to be stored with it. The commit stands without."""
    return {HEAD_PATH: HeadHint(number=number).to_bytes()}
