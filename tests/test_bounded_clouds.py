"""An endpoint of a cloud that lies is cut off: nothing is taken that was not asked for, through any of three clients."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from azure_support import azure_options
from remote_support import s3_options, serving

from uws_store.errors import FormatError, StorageError, UwsError
from uws_store.registry import Registry
from uws_store.storage import Storage, bounded, open_storage

GIGABYTE = 1 << 30
# What a socket holds comes on top of what is taken, and a client may ask twice.
MOST_SENT_BYTES = 64 << 20
MOST_HELD_BYTES = 64 << 20

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


class Liar(http.server.BaseHTTPRequestHandler):
    """Speaks as S3, Google Cloud Storage and Azure do, and lies in one way."""

    protocol_version = "HTTP/1.1"
    lie = ""
    sent = 0
    pages = 0
    over: threading.Event

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "HEAD":
            self.send_response(200)
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
            self.send_header("Content-Length", str(GIGABYTE))
            self.end_headers()
            return
        if type(self).lie in PAGES and self.command == "GET":
            self.whole(self.page())
            return
        getattr(self, type(self).lie.replace(" ", "_"), self.endless)()

    do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815 - the server's names

    def head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def whole(self, data: bytes, status: int = 200) -> None:
        self.head(status, Content_Length=str(len(data)))
        self.wfile.write(data)

    def zeros(self, frame: Callable[[bytes], bytes] = lambda piece: piece) -> None:
        block = bytes(1 << 18)
        with contextlib.suppress(ConnectionError):
            for _ in range(GIGABYTE // len(block)):
                self.wfile.write(frame(block))
                type(self).sent += len(block)
        self.close_connection = True

    def first(self) -> int:
        asked = self.headers.get("x-ms-range", self.headers.get("Range", "bytes=0-"))
        return int(asked.removeprefix("bytes=").partition("-")[0] or 0)

    def span(self, size: int = GIGABYTE) -> str:
        return f"bytes {self.first()}-{self.first() + size - 1}/{GIGABYTE}"

    def a_longer_part(self) -> None:
        self.head(206, Content_Length=str(GIGABYTE), Content_Range=self.span(), x_ms_blob_type="BlockBlob")
        self.zeros()

    def a_part_without_a_length(self) -> None:
        self.head(206, Transfer_Encoding="chunked", Content_Range=self.span(), x_ms_blob_type="BlockBlob")
        self.zeros(lambda piece: b"%x\r\n%b\r\n" % (len(piece), piece))

    def the_whole_object(self) -> None:
        self.head(200, Content_Length=str(GIGABYTE))
        self.zeros()

    def something_packed(self) -> None:
        self.head(
            206,
            Content_Length=str(GIGABYTE),
            Content_Encoding="gzip",
            Content_Range=self.span(),
            x_ms_blob_type="BlockBlob",
        )
        pack = zlib.compressobj(1, wbits=31)
        self.zeros(lambda piece: pack.compress(piece) + pack.flush(zlib.Z_SYNC_FLUSH))

    def a_refusal_without_an_end(self) -> None:
        self.head(403, Transfer_Encoding="chunked")
        self.zeros(lambda piece: b"%x\r\n%b\r\n" % (len(piece), piece))

    def endless(self) -> None:
        self.head(200 if self.command == "GET" else 201, Content_Length=str(GIGABYTE))
        self.zeros()

    def too_little(self) -> None:
        self.head(206, Content_Length="10", Content_Range=self.span(10), x_ms_blob_type="BlockBlob")
        self.wfile.write(bytes(10))

    def silence(self) -> None:
        self.head(206, Content_Length="100", Content_Range=self.span(100), x_ms_blob_type="BlockBlob")
        self.wfile.write(bytes(10))
        type(self).over.wait(60)
        self.close_connection = True

    def page(self) -> bytes:
        """A page of a listing that another follows."""
        type(self).pages += 1
        number = type(self).pages if type(self).lie == "new keys for ever" else 1
        count = 0 if type(self).lie == "empty pages" else 100
        names = [f"registry/{number:09d}-{each:03d}" for each in range(count)]
        asked = parse_qs(urlsplit(self.path).query)
        when = "2026-11-21T00:00:00.000Z"
        if "list-type" in asked:
            keys = "".join(
                f"<Contents><Key>{name}</Key><Size>1</Size><LastModified>{when}</LastModified></Contents>"
                for name in names
            )
            return (
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>'
                f"<NextContinuationToken>more</NextContinuationToken>{keys}</ListBucketResult>"
            ).encode()
        if "comp" in asked:
            blobs = "".join(
                f"<Blob><Name>{name}</Name><Properties><Last-Modified>Sat, 21 Nov 2026 00:00:00 GMT</Last-Modified>"
                "<Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
                for name in names
            )
            return (
                f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{blobs}</Blobs>'
                "<NextMarker>more</NextMarker></EnumerationResults>"
            ).encode()
        items = [{"name": name, "size": "1", "updated": when} for name in names]
        return json.dumps({"items": items, "nextPageToken": "more"}).encode()

    def log_message(self, *_: object) -> None:
        pass


PAGES = ("new keys for ever", "the same page", "empty pages")


def s3(address: str, options: dict[str, Any] | None = None) -> Storage:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    return open_storage("s3://bucket/registry", storage_options=options or s3_options(address))


def gcs(address: str) -> Storage:
    pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")
    options = {"anon": True, "endpoint_url": address, "project": "p"}
    return open_storage("gs://bucket/registry", storage_options=options)


def azure(address: str) -> Storage:
    pytest.importorskip("adlfs", reason="az:// needs adlfs")
    return open_storage("az://bucket/registry", storage_options=azure_options(address))


@pytest.fixture(params=[s3, gcs, azure], ids=["s3", "gcs", "azure"])
def opening(request: pytest.FixtureRequest) -> Callable[[str], Storage]:
    found: Callable[[str], Storage] = request.param
    return found


@contextlib.contextmanager
def lying(lie: str) -> Iterator[tuple[str, type[Liar]]]:
    """Run an endpoint, and hold what is sent and what Python allocates at a time to a few MiB."""
    handler: type[Liar] = type("Handler", (Liar,), {"lie": lie, "over": threading.Event()})
    with serving(handler) as address:
        tracemalloc.start()
        try:
            yield address, handler
            assert tracemalloc.get_traced_memory()[1] < MOST_HELD_BYTES
            assert handler.sent < MOST_SENT_BYTES
        finally:
            tracemalloc.stop()
            handler.over.set()


@pytest.mark.parametrize(
    "lie", ["a longer part", "a part without a length", "the whole object", "something packed"]
)
def test_more_than_was_asked_for_is_not_taken(opening: Callable[[str], Storage], lie: str) -> None:
    refused = lie == "something packed" or (lie == "the whole object" and opening is azure)
    with lying(lie) as (address, _):
        storage = opening(address)
        with pytest.raises(UwsError) as caught:
            storage.read_at_most("object", 1000)
        assert caught.value.kind == ("storage/io" if refused else "format/size")
        with contextlib.nullcontext() if not refused else pytest.raises(StorageError):
            assert storage.read("object", start=5, end=25) == bytes(20)


def test_a_log_entry_of_a_gigabyte_is_refused(opening: Callable[[str], Storage]) -> None:
    with lying("a longer part") as (address, _), pytest.raises(FormatError) as caught:
        Registry.open(opening(address).url)
    assert caught.value.kind == "format/size"


def test_what_was_asked_for_must_come(opening: Callable[[str], Storage]) -> None:
    with lying("too little") as (address, _), pytest.raises(FormatError) as caught:
        opening(address).read("object", start=0, end=100)
    assert caught.value.kind == "format/truncated"


@pytest.mark.parametrize("lie", ["endless", "a refusal without an end"])
def test_what_is_no_object_has_an_end(opening: Callable[[str], Storage], lie: str) -> None:
    calls: list[Callable[[Storage], object]] = [
        lambda storage: list(storage.list("")),
        lambda storage: storage.put_if_absent("a", b"1"),
    ]
    if opening is gcs:
        calls.append(lambda storage: storage.size("a"))
    if lie == "a refusal without an end":
        calls.append(lambda storage: storage.read_at_most("a", 1000))
    for call in calls:
        with lying(lie) as (address, _):
            with pytest.raises(StorageError) as caught:
                call(opening(address))
            assert caught.value.kind in {"storage/io", "storage/permission"}


@pytest.mark.parametrize("lie", PAGES)
def test_a_listing_has_an_end(
    opening: Callable[[str], Storage], lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MOST_LISTED", 2000)
    monkeypatch.setattr(bounded, "MOST_IDLE_PAGES", 10)
    with lying(lie) as (address, handler):
        with pytest.raises(StorageError) as caught:
            list(opening(address).list(""))
        assert caught.value.kind == "storage/io"
        assert handler.pages <= 22


def test_silence_ends_a_request_of_s3() -> None:
    with lying("silence") as (address, _):
        options = s3_options(address)
        options["config_kwargs"]["read_timeout"] = 0.2
        with pytest.raises(StorageError) as caught:
            s3(address, options).read("object", start=0, end=100)
    assert caught.value.kind == "storage/unreachable"


def test_silence_ends_a_request_of_gcs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")

    async def at_once(_: float) -> None:
        """Stands for the client's pause of up to half a minute between attempts."""

    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))
    monkeypatch.setattr("uws_store.storage.clouds._READ_TIMEOUT_S", 0.2)
    with lying("silence") as (address, _), pytest.raises(StorageError) as caught:
        gcs(address).read("object", start=0, end=100)
    assert caught.value.kind == "storage/unreachable"
