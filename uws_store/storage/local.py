"""Objects as files of a local (or mounted) folder. Must not know what is stored.

How an object is created, and why so:

1. It is written whole to a temporary name in its own folder and flushed to the disk: whoever is killed on the
   way leaves a ``.tmp`` file that nobody reads, never half an object.
2. ``link`` gives it its name. Unlike ``rename``, which replaces, and unlike "look, then write", link fails when
   the name is taken: the file system itself picks the one winner, over NFS too.
3. The folder is flushed: only then does the name survive a power cut, and only then is the caller told.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, InvalidInputError, NotFoundError, StorageError, UwsError
from uws_store.storage.protocol import (
    TEMPORARY_PREFIX,
    check_path,
    missing,
    resolve_range,
    too_large,
    write_hints,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["LocalStorage"]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
# What link() answers where there are no hard links: FAT and some FUSE and network file systems.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV})
_LOCK_NAME = f"{TEMPORARY_PREFIX}-lock"


# Where a folder can be elsewhere without being a symbolic link, paths are resolved whole.
_WITHOUT_JUNCTIONS = os.name == "posix"


class LocalStorage:
    """The files of a folder.

    Files get the permissions that the umask leaves, so that a team's shared folder works. Symbolic links are
    followed only as long as they stay within the folder, and are never listed.

    Parameters
    ----------
    root : Path
        The folder; a link to it is resolved once, here.
    create : bool, optional
        Make the folder, and those above it, when it does not exist.

    Raises
    ------
    NotFoundError
        When the folder does not exist (``not-found/storage``).
    InvalidInputError
        When the path is not a folder (``invalid-input/storage-folder``).
    StorageError
        When it cannot be made or reached.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        try:
            if create:
                _make_root(root)
            self.root = root.resolve(strict=True)
            is_folder = self.root.is_dir()
        except (FileExistsError, NotADirectoryError):
            is_folder = False
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise NotFoundError(f"there is no folder {root}", kind="not-found/storage") from error
            raise _failure("open", root, error) from error
        if not is_folder:
            raise InvalidInputError(f"{root} is not a folder", kind="invalid-input/storage-folder")
        self._durable_folders: set[Path] = set()

    @property
    def url(self) -> str:
        """The absolute path of the folder."""
        return str(self.root)

    def __repr__(self) -> str:
        return f"LocalStorage({str(self.root)!r})"

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """See :meth:`Storage.read`."""
        target = self._locate(path)
        try:
            with _opened(target) as (descriptor, size_bytes):
                offset, count = resolve_range(size_bytes, start, end, where=str(target))
                data = _read_exactly(descriptor, offset, count)
        except OSError as error:
            raise self._read_failure(path, target, error) from error
        return _whole(data, count, target)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """See :meth:`Storage.read_at_most`."""
        target = self._locate(path)
        try:
            with _opened(target) as (descriptor, size_bytes):
                if size_bytes > limit_bytes:
                    raise too_large(path, limit_bytes, url=self.url)
                data = _read_exactly(descriptor, 0, size_bytes)
        except OSError as error:
            failure = self._read_failure(path, target, error)
            if isinstance(failure, NotFoundError):
                return None
            raise failure from error
        return _whole(data, size_bytes, target)

    def modified(self, path: str) -> float | None:
        """See :meth:`Storage.modified`; on a network disk this is the server's clock."""
        found = self._look_at(path)
        return None if found is None else found.st_mtime

    def size(self, path: str) -> int | None:
        """See :meth:`Storage.size`."""
        found = self._look_at(path)
        return None if found is None else found.st_size

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """See :meth:`Storage.put_if_absent`."""
        target = self._locate(path)
        try:
            created = False
            if not os.path.lexists(target):  # else the temporary file need not be written
                self._make_folder(target.parent)
                with _temporary(target, data) as temporary:
                    created = _name_if_absent(temporary, target)
            if not created and target.is_dir():
                raise StorageError(
                    f"{target}: is a folder, and an object cannot take its name", kind="storage/io"
                )
            # Also when another created it: this caller builds on it, and the other may be cut off before its flush.
            _flush_folder(target.parent)
        except OSError as error:
            raise _failure("create", target, error) from error
        if created:
            write_hints(self, hints)
        return created

    def stage(self, path: str, data: bytes) -> bool:
        """See :meth:`Storage.stage`."""
        return self.put_if_absent(path, data)

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Storage.put`."""
        target = self._locate(path)
        try:
            self._make_folder(target.parent)
            with _temporary(target, data) as temporary:
                temporary.replace(target)
            _flush_folder(target.parent)
        except OSError as error:
            raise _failure("write", target, error) from error

    def list(self, prefix: str) -> Iterator[str]:
        """See :meth:`Storage.list`; one folder at a time is held in memory."""
        if not prefix:
            return self._walk(self.root, "")
        return self._walk(self._locate(prefix), f"{prefix}/")

    def delete(self, path: str) -> None:
        """See :meth:`Storage.delete`; folders that become empty are left, for a writer may be about to use them."""
        target = self._locate(path)
        try:
            target.unlink()
            _flush_folder(target.parent)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise _failure("delete", target, error) from error

    def _look_at(self, path: str) -> os.stat_result | None:
        target = self._locate(path)
        try:
            found = target.stat()
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise _failure("look at", target, error) from error
        return found if stat.S_ISREG(found.st_mode) else None

    def _locate(self, path: str) -> Path:
        """Find the file of a path and check that no link leads out of the root, which costs one stat per part."""
        parts = check_path(path).split("/")
        target = self.root.joinpath(*parts)
        if _WITHOUT_JUNCTIONS and not _meets_link(str(self.root), parts):
            return target
        try:
            inside = target.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError) as error:  # a loop of links
            raise StorageError(f"{target}: cannot be resolved: {error}", kind="storage/io") from error
        if not inside:
            raise StorageError(
                f"{target}: a symbolic link leads out of the storage at {self.root}; put the file itself there",
                kind="storage/link-escape",
            )
        return target

    def _make_folder(self, folder: Path) -> None:
        """Make a folder so that it survives a power cut, whoever makes it: each name is flushed in its parent."""
        if folder == self.root or (folder in self._durable_folders and folder.is_dir()):
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        _flush_folder(folder.parent)
        self._durable_folders.add(folder)

    def _read_failure(self, path: str, target: Path, error: OSError) -> UwsError:
        if isinstance(error, UwsError):
            return error
        if error.errno in _ABSENT or error.errno == errno.ENXIO:
            return missing(path, url=self.url)
        return _failure("read", target, error)

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if not entry.name.startswith(TEMPORARY_PREFIX) and not entry.is_symlink()
                )
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise _failure("list", folder, error) from error
        for name in found:  # sorted with their slash, folders come where their files do
            if name.endswith("/"):
                yield from self._walk(folder / name[:-1], prefix + name)
                continue
            with contextlib.suppress(
                InvalidInputError
            ):  # a stranger's file, under a name that no object can have
                yield check_path(prefix + name)


def _make_root(root: Path) -> None:
    absent = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for folder in reversed(absent):
        _flush_folder(folder.parent)


@contextlib.contextmanager
def _opened(target: Path) -> Iterator[tuple[int, int]]:
    """Open a plain file for reading: its descriptor and its length in bytes."""
    # Not to wait: the name could be a pipe's.
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a plain file", str(target))
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


def _whole(data: bytes, count: int, target: Path) -> bytes:
    if len(data) < count:
        raise FormatError(
            f"{target}: shrank while it was read, {len(data)} of {count} bytes came",
            kind="format/truncated",
        )
    return data


def _read_exactly(descriptor: int, offset: int, count: int) -> bytes:
    parts: list[bytes] = []
    done = 0
    # One read is cut at 2 GiB by Linux.
    while done < count and (part := os.pread(descriptor, min(count - done, 1 << 30), offset + done)):
        parts.append(part)
        done += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def _temporary(target: Path, data: bytes) -> Iterator[Path]:
    """Write a flushed temporary file beside the target; it is gone afterwards, under that name."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}-{secrets.token_hex(12)}")
    # Mode 0o666 and the umask, as any program's file; tempfile would make it private to one user.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # already renamed, or a failure that is being reported
            temporary.unlink()


def _name_if_absent(temporary: Path, target: Path) -> bool:
    try:
        os.link(temporary, target)
    except FileExistsError:
        # Over NFS the answer to a link that succeeded may be lost and the retry find the name taken, by us.
        return target.samefile(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_if_absent(temporary, target)
    return True


def _rename_if_absent(temporary: Path, target: Path) -> bool:
    """Do without hard links: look and rename, under a lock that all writers of the folder take.

    Creating the name itself exclusively and writing into it would show readers half an object, and leave one
    behind when the writer is killed. The kernel gives up this lock when its holder dies, so nothing gets stuck.
    The lock's file stays: removing it while another waits for it would make two locks.
    """
    import fcntl  # noqa: PLC0415 - not on every platform, and needed only here

    descriptor = os.open(target.with_name(_LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(target):
            return False
        temporary.rename(target)
        return True
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot flush a folder and say so; there is nothing to wait for then.
        if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def _failure(action: str, target: Path, error: OSError) -> UwsError:
    if isinstance(error, UwsError):
        return error
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return StorageError(
            f"cannot {action} {target}: {reason}; free space on that disk (or raise the quota) and try again",
            kind="storage/no-space",
        )
    if error.errno in _NO_PERMISSION:
        return StorageError(
            f"cannot {action} {target}: {reason}; check who may write there, or choose another place",
            kind="storage/permission",
        )
    if error.errno == errno.ENAMETOOLONG:
        return InvalidInputError(f"cannot {action} {target}: {reason}", kind="invalid-input/path")
    return StorageError(f"cannot {action} {target}: {reason}", kind="storage/io")


def _meets_link(root: str, parts: Sequence[str]) -> bool:
    """Whether a symbolic link, or something that cannot be looked at, stands on the way down from a folder."""
    at = root
    for part in parts:
        at = f"{at}/{part}"
        try:
            if stat.S_ISLNK(os.lstat(at).st_mode):
                return True
        except FileNotFoundError:
            return False
        except OSError:
            return True
    return False
