"""Reading the log: one commit after the other, none skipped, each bound to the one before by its digest.

Must not know what commits mean (``fold.py``). What stands in the log is untrusted until it is checked here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, StorageError
from uws_store.layout import HEAD_PATH, commit_path
from uws_store.metadata.log import Commit, HeadHint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uws_store.metadata.document import Document
    from uws_store.storage import Storage

__all__ = [
    "LogRecord",
    "has_grown",
    "head_hint",
    "read_commit",
    "read_head",
    "read_limited",
    "read_newest",
    "read_recent",
]

_SHORT_LOG = 256
"""A log without a hint that is no longer than this is read from its beginning."""


def read_limited(storage: Storage, path: str, document: type[Document]) -> bytes | None:
    """Read a document's bytes, no more than it may have; None when there is no such object. One request.

    Raises
    ------
    FormatError
        When it is larger than such a document may be (``format/size``): it is not read then.
    """
    return storage.read_at_most(path, document.max_bytes)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A commit as it is stored.

    Attributes
    ----------
    commit : Commit
        What it says.
    data : bytes
        Its bytes.
    sha256 : str
        Hex digest of these.
    """

    commit: Commit
    data: bytes
    sha256: str


def read_commit(storage: Storage, number: int, *, parent: str | None) -> LogRecord | None:
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
    LogRecord or None
        The commit; None when it is not there.

    Raises
    ------
    FormatError
        When it is malformed, or not this number (``format/log-number``), or does not follow from the one before
        (``format/log-chain``).
    """
    record = _read_any(storage, number)
    if record is not None:
        _require_parent(record, parent, url=storage.url)
    return record


def read_recent(storage: Storage, hint: HeadHint) -> list[LogRecord] | None:
    """Read the commits from the newest checkpoint to the one that a hint points to.

    The hint is not trusted: the commit it points to is read from the log, and what the hint says of those before is
    held to the digests of the chain. One request when it carries them along, else one for each.

    Returns
    -------
    list of LogRecord or None
        Ascending; the first is a checkpoint or commit 1. None when the hint leads to no checkpoint.

    Raises
    ------
    FormatError
        When a commit is malformed, missing (``format/log-gap``) or out of the chain, or the one that is named as a
        checkpoint is none (``format/checkpoint``).
    """
    newest = _read_any(storage, hint.number)
    if newest is None:
        return None
    carried = _carried(hint, newest)
    if carried is not None:
        return carried
    if newest.commit.index is not None or newest.commit.number == 1:
        return [newest]
    number = newest.commit.checkpoint
    if number is None:
        return None
    records: list[LogRecord] = []
    while number < newest.commit.number:
        record = _read_any(storage, number)
        if record is None:
            raise FormatError(
                f"{storage.url}: commit {number} is missing and commit {newest.commit.number} exists; the log is "
                f"damaged, restore {commit_path(number)} from a copy of the registry",
                kind="format/log-gap",
            )
        if records:
            _require_parent(record, records[-1].sha256, url=storage.url)
        elif record.commit.index is None:
            raise FormatError(
                f"{storage.url}: commit {number} is named as a checkpoint and has no index; the log was tampered with",
                kind="format/checkpoint",
            )
        records.append(record)
        number += 1
    _require_parent(newest, records[-1].sha256, url=storage.url)
    return [*records, newest]


def _carried(hint: HeadHint, newest: LogRecord) -> list[LogRecord] | None:
    """Take the commits that a hint carries along, if they are those that the newest one follows."""
    texts = [text.encode() for text in hint.tail or ()]
    if not texts or texts[-1] != newest.data:
        return None
    records: list[LogRecord] = []
    number, expected = newest.commit.number, newest.sha256
    for data in reversed(texts):
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != expected or number < 1:
            return None
        # Its digest stands in the chain: it is what was published, and is read like any other.
        commit = newest.commit if not records else Commit.parse(data, where="the head")
        if commit.number != number:  # whoever reads it from the log says so
            return None
        records.append(LogRecord(commit, data, sha256))
        number, expected = number - 1, commit.parent or ""
    first = records[-1].commit
    return records[::-1] if first.index is not None or first.number == 1 else None


def _read_any(storage: Storage, number: int) -> LogRecord | None:
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
    return LogRecord(commit, data, hashlib.sha256(data).hexdigest())


def _require_parent(record: LogRecord, parent: str | None, *, url: str) -> None:
    if record.commit.parent != parent:
        raise FormatError(
            f"{url}/{commit_path(record.commit.number)}: follows a commit with digest {record.commit.parent}, and the "
            f"one before it has {parent}; the log was tampered with, or parts of two registries were mixed",
            kind="format/log-chain",
        )


def read_newest(storage: Storage) -> HeadHint | None:
    """Find out where the newest commit may be: by the hint, or where there is none by looking.

    A log that is long is not read from its beginning because a hint was lost: its end is found in some twenty
    requests.
    """
    hint = read_head(storage)
    if hint is not None or storage.size(commit_path(_SHORT_LOG)) is None:
        return hint
    low, high = _SHORT_LOG, 2 * _SHORT_LOG
    while storage.size(commit_path(high)) is not None:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if storage.size(commit_path(middle)) is None:
            high = middle
        else:
            low = middle
    return HeadHint(number=low)


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
    if hint is not None and hint.number > number:
        # Only a place to look: a hint that is stale or wrong is shown to be so by the log itself.
        beyond.add(hint.number)
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


def read_head(storage: Storage, *, may_be_unreachable: bool = True) -> HeadHint | None:
    """Read the hint at the newest commit; None when there is none that can be read.

    Parameters
    ----------
    storage : Storage
        Where the log is.
    may_be_unreachable : bool
        Take a storage that does not answer for one without a hint; otherwise that is raised.
    """
    try:
        data = read_limited(storage, HEAD_PATH, HeadHint)
        if data is not None:
            return HeadHint.parse(data, where=f"{storage.url}/{HEAD_PATH}")
    except FormatError:
        pass
    except StorageError as error:
        # Some storages refuse to tell a stranger that an object is not there.
        if error.kind == "storage/unreachable" and not may_be_unreachable:
            raise
    return None


def head_hint(number: int, *, tail: Sequence[bytes] = ()) -> dict[str, bytes]:
    """Make the hint at the newest commit, to be stored with it, and let it carry those since the checkpoint.

    The commit stands without it.
    """
    try:
        data = HeadHint(number=number, tail=tuple(text.decode() for text in tail) or None).to_bytes()
    except FormatError:  # too long
        data = HeadHint(number=number).to_bytes()
    return {HEAD_PATH: data}
