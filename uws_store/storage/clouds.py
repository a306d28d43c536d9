"""Object stores through fsspec: S3 and what speaks its language, Google Cloud Storage, Azure.

Owns how each creates an object only if it is absent, how an upload is checked, how often a request is repeated, and
that no client takes more of an answer than it needs. Must not know paths or errors of ours.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import tenacity
from fsspec.asyn import sync

from uws_store.errors import StorageError
from uws_store.storage.bounded import PAGE_KEYS, Listing, Wanted, range_header, require_plain
from uws_store.storage.faults import fault_of
from uws_store.storage.remote import Backend, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["AzureBackend", "GcsBackend", "S3Backend"]

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
# Of one request, by botocore; s3fs repeats that once more.
_ATTEMPTS = 4
_CONFLICT = 409
_PARTIAL_CONTENT = 206
_PRECONDITION_FAILED = 412
# Above it an upload is made in parts. S3 takes 5 GiB in one, and checks each request's digest on arrival.
_LARGEST_PUT_BYTES = 1 << 30
_PART_BYTES = 64 << 20
_PIECE_BYTES = 1 << 18


def _is_broken_off(error: BaseException) -> bool:
    """Tell whether an answer ended before it was all there."""
    return fault_of(error).kind == "storage/unreachable"


_REPEATED = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_broken_off),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
    stop=tenacity.stop_after_attempt(2),
    reraise=True,
)


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
        return (key for key, _ in self.entries(prefix))


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
            "http_session_cls": _bounded_s3_session(),
            **options.pop("config_kwargs", {}),
        }
        self._files = S3FileSystem(config_kwargs=config, use_listings_cache=False, **options)
        self._files.retries = 2

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`."""
        data: bytes = sync(self._files.loop, self._get, key, start, end)
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
        bucket, _, below = prefix.partition("/")
        listing = Listing()
        more: dict[str, str] = {}
        while True:
            page = self._files.call_s3(
                "list_objects_v2",
                Bucket=bucket,
                Prefix=f"{below}/" if below else "",
                MaxKeys=PAGE_KEYS,
                **more,
            )
            listing.take(
                {
                    f"{bucket}/{item['Key']}": ObjectInfo(int(item["Size"]), item["LastModified"].timestamp())
                    for item in page.get("Contents", ())
                }
            )
            if not page.get("IsTruncated"):
                return listing.found.items()
            more = {"ContinuationToken": page["NextContinuationToken"]}

    @_REPEATED
    async def _get(self, key: str, start: int | None, end: int | None) -> bytes:
        bucket, _, name = key.partition("/")
        asked = {} if start is None else {"Range": range_header(start, end)}
        answer = await self._files._call_s3("get_object", Bucket=bucket, Key=name, **asked)  # noqa: SLF001 - call_s3, awaited
        async with answer["Body"] as body:
            require_plain(answer.get("ContentEncoding"))
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            wanted = Wanted(start, end, is_part=status == _PARTIAL_CONTENT)
            while piece := await body.read(_PIECE_BYTES):
                if not wanted.take(piece):
                    break
            return wanted.data()

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

        from uws_store.storage.answers import session_options  # noqa: PLC0415 - needs aiohttp

        # It logs an error that it raises too, with a traceback.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        if options.pop("anon", False):
            options["token"] = "anon"  # noqa: S105 - the library's word for none
        session = {
            **session_options(connect_s=_CONNECT_TIMEOUT_S, read_s=_READ_TIMEOUT_S),
            **options.pop("session_kwargs", {}),
        }
        defaults = {"timeout": _READ_TIMEOUT_S, "requests_timeout": session["timeout"]}
        self._files = GCSFileSystem(
            use_listings_cache=False, session_kwargs=session, **{**defaults, **options}
        )

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`."""
        data: bytes = self._files.cat_file(path=key, start=start, end=end)
        return data

    def info(self, key: str) -> ObjectInfo:
        """See :meth:`Backend.info`."""
        # Not gcsfs' own info, which lists the bucket too.
        bucket, _, name = key.partition("/")
        found = self._files.call("GET", "b/{}/o/{}", bucket, name, json_out=True)
        return _of_gcs(found)

    def create(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.create`; made by `ifGenerationMatch=0`, checked by the MD5 that the answer gives."""
        self._files.pipe_file(key, data, mode="create", consistency="md5")

    def replace(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.replace`."""
        self._files.pipe_file(key, data, consistency="md5")

    def entries(self, prefix: str) -> Iterable[tuple[str, ObjectInfo | None]]:
        """See :meth:`Backend.entries`."""
        bucket, _, below = prefix.partition("/")
        asked = {
            "prefix": f"{below}/" if below else None,
            "fields": "nextPageToken,items(name,size,updated)",
            "maxResults": PAGE_KEYS,
        }
        listing = Listing()
        while True:
            page = self._files.call("GET", "b/{}/o", bucket, json_out=True, **asked)
            listing.take({f"{bucket}/{item['name']}": _of_gcs(item) for item in page.get("items", ())})
            asked["pageToken"] = page.get("nextPageToken")
            if not asked["pageToken"]:
                return listing.found.items()


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
        sync(self._files.loop, self._bound)

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`; the last bytes cost a request for the size."""
        if start is not None and start < 0:
            start = max(0, self.info(key).size + start)
        data: bytes = self._files.cat_file(path=key, start=start, end=end, max_concurrency=1)
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

    def entries(self, prefix: str) -> Iterable[tuple[str, ObjectInfo | None]]:
        """See :meth:`Backend.entries`."""
        listing: Listing = sync(self._files.loop, self._list, prefix)
        return listing.found.items()

    async def _list(self, prefix: str) -> Listing:
        container, _, below = prefix.partition("/")
        listing = Listing()
        async with self._files.service_client.get_container_client(container) as client:
            listed = client.list_blobs(
                name_starts_with=f"{below}/" if below else None,
                include=["metadata"],
                results_per_page=PAGE_KEYS,
            )
            async for page in listed.by_page():
                listing.take(
                    {
                        f"{container}/{blob.name}": ObjectInfo(int(blob.size), blob.last_modified.timestamp())
                        async for blob in page
                        # Where folders are objects too.
                        if (blob.metadata or {}).get("hdi_isfolder") != "true"
                    }
                )
        return listing

    async def _bound(self) -> None:
        """Give the client's transport a session of ours before it makes its own."""
        import aiohttp  # noqa: PLC0415 - an optional package

        from uws_store.storage.answers import session_options  # noqa: PLC0415 - needs aiohttp

        transport = self._files.service_client._pipeline._transport  # noqa: SLF001 - adlfs takes no transport
        if transport.session is not None:  # of a file system that fsspec had kept
            return
        transport.session = aiohttp.ClientSession(
            trust_env=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            **session_options(connect_s=_CONNECT_TIMEOUT_S, read_s=_READ_TIMEOUT_S),
        )


def _of_gcs(item: Mapping[str, str]) -> ObjectInfo:
    return ObjectInfo(int(item["size"]), dt.datetime.fromisoformat(item["updated"]).timestamp())


def _bounded_s3_session() -> type:
    """Make the class of the sessions that s3fs opens."""
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped] # noqa: PLC0415 - an optional package
    from botocore.exceptions import HTTPClientError  # type: ignore[import-untyped] # noqa: PLC0415 - comes with it

    from uws_store.storage.answers import BoundedAnswer  # noqa: PLC0415 - needs aiohttp

    class Answer(BoundedAnswer):
        cuts_ranges = False

    class BoundedSession(AIOHTTPSession):  # type: ignore[misc, unused-ignore]
        async def _get_session(self, proxy_url: str | None) -> Any:  # noqa: ANN401 - of an optional package
            session = await super()._get_session(proxy_url)
            session._response_class = Answer  # noqa: SLF001 - aiobotocore takes no class of answers
            return session

        async def send(self, request: Any) -> Any:  # noqa: ANN401 - of an optional package
            try:
                return await super().send(request)
            except HTTPClientError as error:
                # What was cut off is not asked for again.
                if isinstance(error.__context__, StorageError):
                    raise error.__context__ from None
                raise

    return BoundedSession
