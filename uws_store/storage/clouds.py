"""Object stores through fsspec: S3 and what speaks its language, Google Cloud Storage, Azure.

Owns how each creates an object only if it is absent, how an upload is checked, and how often a request is repeated.
Must not know paths, ranges or errors of ours.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import tenacity

from uws_store.storage.faults import fault_of
from uws_store.storage.remote import Backend, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AzureBackend", "GcsBackend", "S3Backend"]

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
# Of one request, by botocore; s3fs repeats that once more.
_ATTEMPTS = 4
_CONFLICT = 409
_PRECONDITION_FAILED = 412
# Above it an upload is made in parts. S3 takes 5 GiB in one, and checks each request's digest on arrival.
_LARGEST_PUT_BYTES = 1 << 30
_PART_BYTES = 64 << 20


def _is_conflict(error: BaseException) -> bool:
    return not isinstance(error, FileExistsError) and fault_of(error).status == _CONFLICT


class _FilesBackend(Backend):
    """What fsspec does alike for every store.

    Attributes
    ----------
    _files
        The store's fsspec file system.
    """

    _files: Any

    def remove(self, key: str) -> None:
        """See :meth:`Backend.remove`."""
        self._files.rm_file(key)

    def keys(self, prefix: str) -> Iterable[str]:
        """See :meth:`Backend.keys`."""
        found: list[str] = self._files.find(prefix)
        return found


class S3Backend(_FilesBackend):
    """Amazon S3, and any server that speaks its language.

    Parameters
    ----------
    **options
        What :class:`s3fs.S3FileSystem` takes.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the library's own
        from s3fs import S3FileSystem  # noqa: PLC0415 - an optional package

        config = {
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
            # Older servers refuse the checksums that newer clients add; Content-MD5 they all check.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            **options.pop("config_kwargs", {}),
        }
        self._files = S3FileSystem(config_kwargs=config, use_listings_cache=False, **options)
        self._files.retries = 2

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`."""
        # One stream: s3fs would ask for the size first, to read large objects in several.
        data: bytes = self._files.cat_file(path=key, start=start, end=end, max_concurrency=1)
        return data

    def info(self, key: str) -> ObjectInfo:
        """See :meth:`Backend.info`."""
        # Not s3fs' own info, which lists the bucket when there is no such object.
        bucket, _, name = key.partition("/")
        found = self._files.call_s3("head_object", Bucket=bucket, Key=name)
        return ObjectInfo(int(found["ContentLength"]), found["LastModified"].timestamp())

    @tenacity.retry(
        retry=tenacity.retry_if_exception(_is_conflict),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=2),
        stop=tenacity.stop_after_attempt(10),
        reraise=True,
    )
    def create(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.create`; a conflict with a request in flight is waited out."""
        try:
            self._upload(key, data, mode="create")
        except FileExistsError:
            raise
        except Exception as error:
            # Not every server names the condition that failed, and then s3fs does not tell it from other errors.
            if fault_of(error).status == _PRECONDITION_FAILED:
                raise FileExistsError(key) from error
            raise

    def replace(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.replace`."""
        self._upload(key, data, mode="overwrite")

    def entries(self, prefix: str) -> Iterable[tuple[str, ObjectInfo | None]]:
        """See :meth:`Backend.entries`."""
        found: dict[str, Any] = self._files.find(prefix, detail=True)
        return [
            (key, ObjectInfo(int(info["size"]), info["LastModified"].timestamp()))
            for key, info in found.items()
        ]

    def _upload(self, key: str, data: bytes, *, mode: str) -> None:
        if len(data) <= _LARGEST_PUT_BYTES:
            md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
            # s3fs makes one request of what is shorter than two chunks.
            self._files.pipe_file(key, data, mode=mode, chunksize=len(data) + 1, ContentMD5=md5)
            return
        self._files.pipe_file(key, data, mode=mode, chunksize=_PART_BYTES)
        size_bytes = self.info(key).size
        if size_bytes != len(data):
            raise OSError(f"{len(data)} bytes were sent and {size_bytes} have arrived")


class GcsBackend(_FilesBackend):
    """Google Cloud Storage.

    Parameters
    ----------
    **options
        What :class:`gcsfs.GCSFileSystem` takes; it repeats failed requests itself.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the library's own
        # Not the class that gcsfs gives by default, which asks over gRPC first what kind a bucket is: that is one more
        # request, and where only the endpoint of the option answers it takes a minute to fail.
        from gcsfs.core import GCSFileSystem  # noqa: PLC0415 - an optional package

        # It logs an error that it raises too, with a traceback.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        if options.pop("anon", False):
            options["token"] = "anon"  # noqa: S105 - the library's word for none
        self._files = GCSFileSystem(use_listings_cache=False, **{"timeout": _READ_TIMEOUT_S, **options})

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`."""
        data: bytes = self._files.cat_file(path=key, start=start, end=end)
        return data

    def info(self, key: str) -> ObjectInfo:
        """See :meth:`Backend.info`."""
        # Not gcsfs' own info, which lists the bucket too.
        bucket, _, name = key.partition("/")
        found = self._files.call("GET", "b/{}/o/{}", bucket, name, json_out=True)
        return ObjectInfo(int(found["size"]), dt.datetime.fromisoformat(found["updated"]).timestamp())

    def create(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.create`; made by `ifGenerationMatch=0`, checked by the MD5 that the answer gives."""
        self._files.pipe_file(key, data, mode="create", consistency="md5")

    def replace(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.replace`."""
        self._files.pipe_file(key, data, consistency="md5")


class AzureBackend(_FilesBackend):
    """Azure Blob Storage.

    Parameters
    ----------
    **options
        What :class:`adlfs.AzureBlobFileSystem` takes; the Azure SDK repeats failed requests itself.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the library's own
        from adlfs import AzureBlobFileSystem  # noqa: PLC0415 - an optional package

        timeouts = {"connection_timeout": _CONNECT_TIMEOUT_S, "read_timeout": _READ_TIMEOUT_S}
        self._files = AzureBlobFileSystem(use_listings_cache=False, **{**timeouts, **options})

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`; the last bytes cost a request for the size."""
        if start is not None and start < 0:
            start = max(0, self.info(key).size + start)
        data: bytes = self._files.cat_file(path=key, start=start, end=end)
        return data

    def info(self, key: str) -> ObjectInfo:
        """See :meth:`Backend.info`."""
        found = self._files.info(key)
        if found["type"] != "file":
            raise FileNotFoundError(key)
        modified = found.get("last_modified")
        return ObjectInfo(int(found["size"]), None if modified is None else modified.timestamp())

    def create(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.create`."""
        self._files.pipe_file(key, data, overwrite=False, validate_content=True)

    def replace(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.replace`."""
        self._files.pipe_file(key, data, overwrite=True, validate_content=True)
