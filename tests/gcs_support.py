"""A stand-in for Google Cloud Storage that the real `gcsfs` client talks to: its JSON interface, buckets in memory.

It knows what the package uses: uploads whole and in parts with `ifGenerationMatch=0` (412 when the object exists), MD5
in the answer, metadata, ranges, listings in pages and refusals as the service words them."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from loopback_support import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

BUCKET = "uws-tests"
TOKEN = "ya29.stand-in-token-never-be-seen"
PAGE = 3
"""Objects on a page of a listing: few, so that pages are turned."""


@dataclass
class Blob:
    """An object."""

    data: bytes
    generation: int
    written: float = field(default_factory=time.time)


@dataclass
class Bucket:
    """The objects, the uploads that are under way, and every request that was made."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    uploads: dict[str, tuple[str, bool, bytearray]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    honours_conditions: bool = True
    answer: int | None = None
    """A status to refuse everything with."""
    generation: int = 0

    def put(self, name: str, data: bytes, *, only_if_absent: bool) -> Response:
        """Store an object. No await within, so uploads end one after the other."""
        if only_if_absent and self.honours_conditions and name in self.blobs:
            return refuse(412, "At least one of the pre-conditions you specified did not hold.")
        self.generation += 1
        self.blobs[name] = Blob(data, self.generation)
        return JSONResponse(self.resource(name))

    def resource(self, name: str) -> dict[str, Any]:
        """An object's metadata."""
        blob = self.blobs[name]
        when = dt.datetime.fromtimestamp(blob.written, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(len(blob.data)),
            "md5Hash": base64.b64encode(hashlib.md5(blob.data).digest()).decode(),
            "generation": str(blob.generation),
            "timeCreated": when,
            "updated": when,
        }


def refuse(status: int, message: str) -> Response:
    """Refuse as the service does."""
    return JSONResponse({"error": {"code": status, "message": message, "errors": []}}, status)


def make_app(bucket: Bucket) -> Starlette:  # noqa: PLR0915 - one short function per request
    """Make the application."""

    async def listing(request: Request) -> Response:
        asked = request.query_params
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        first, count = asked.get("pageToken", ""), min(PAGE, int(asked.get("maxResults", PAGE)))
        names = [name for name in sorted(bucket.blobs) if name.startswith(prefix) and name > first]
        found, folders = [], set()
        for name in names:
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                found.append(name)
        page: dict[str, Any] = {"kind": "storage#objects", "prefixes": sorted(folders)}
        page["items"] = [bucket.resource(name) for name in found[:count]]
        if len(found) > count:
            page["nextPageToken"] = found[count - 1]
        return JSONResponse(page)

    async def about(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(bucket.resource(name)) if name in bucket.blobs else refuse(404, "No such object")

    async def remove(request: Request) -> Response:
        if bucket.blobs.pop(request.path_params["name"], None) is None:
            return refuse(404, "No such object")
        return Response(status_code=204)

    async def download(request: Request) -> Response:
        blob = bucket.blobs.get(request.path_params["name"])
        if blob is None:
            return refuse(404, "No such object")
        asked, data = request.headers.get("range", ""), blob.data
        if not asked:
            return Response(data)
        low, _, high = asked.removeprefix("bytes=").partition("-")
        start = int(low) if low else max(0, len(data) - int(high))
        end = min(len(data), int(high) + 1) if low and high else len(data)
        if start >= len(data):
            return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
        return Response(data[start:end], 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    async def upload(request: Request) -> Response:
        asked = request.query_params
        absent = asked.get("ifGenerationMatch") == "0"
        body = await request.body()
        if asked["uploadType"] == "resumable":
            name = json.loads(body)["name"]
            if absent and bucket.honours_conditions and name in bucket.blobs:
                return refuse(412, "At least one of the pre-conditions you specified did not hold.")
            key = secrets.token_hex(16)
            bucket.uploads[key] = name, absent, bytearray()
            return Response(headers={"Location": f"{request.base_url}resumable/{key}?ifGenerationMatch=0"})
        boundary = b"--" + request.headers["content-type"].partition('boundary="')[2].rstrip('"').encode()
        _, head, rest = body.split(boundary, 2)
        data = rest[: rest.rindex(b"\n" + boundary + b"--")].partition(b"\n\n")[2]
        return bucket.put(json.loads(head.partition(b"\n\n")[2])["name"], data, only_if_absent=absent)

    async def part(request: Request) -> Response:
        name, absent, held = bucket.uploads[request.path_params["key"]]
        span, _, total = request.headers["content-range"].removeprefix("bytes ").partition("/")
        assert int(span.partition("-")[0]) == len(held)
        held += await request.body()
        if len(held) < int(total):
            return Response(status_code=308, headers={"Range": f"bytes=0-{len(held) - 1}"})
        del bucket.uploads[request.path_params["key"]]
        return bucket.put(name, bytes(held), only_if_absent=absent)

    async def give_up(request: Request) -> Response:
        return Response(status_code=499 if bucket.uploads.pop(request.path_params["key"], None) else 404)

    async def token(request: Request) -> Response:
        asked = parse_qs((await request.body()).decode())
        bucket.requests.append("token")
        return (
            JSONResponse({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
            if asked["assertion"][0].count(".") == 2
            else refuse(400, "invalid grant")
        )

    def guarded(
        endpoint: Callable[[Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            bucket.requests.append(f"{request.method} {request.url.path}")
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return refuse(401, "Anonymous caller does not have storage.objects.get access")
            if request.path_params.get("bucket", BUCKET) != BUCKET:
                return refuse(404, "The specified bucket does not exist.")
            if bucket.answer is not None:
                return refuse(bucket.answer, "tests@example does not have access")
            return await endpoint(request)

        return run

    routes = [
        ("/storage/v1/b/{bucket}/o", listing, "GET"),
        ("/storage/v1/b/{bucket}/o/{name:path}", about, "GET"),
        ("/storage/v1/b/{bucket}/o/{name:path}", remove, "DELETE"),
        ("/download/storage/v1/b/{bucket}/o/{name:path}", download, "GET"),
        ("/upload/storage/v1/b/{bucket}/o", upload, "POST"),
        ("/resumable/{key}", part, "POST"),
        ("/resumable/{key}", give_up, "DELETE"),
    ]
    made = [Route(path, guarded(run), methods=[method]) for path, run, method in routes]
    return Starlette(routes=[*made, Route("/token", token, methods=["POST"])])


def gcs_options(endpoint: str, key: str) -> dict[str, Any]:
    """Options for a stand-in: a service account that gets its tokens there.

    Parameters
    ----------
    endpoint : str
        The stand-in's address.
    key : str
        A private RSA key, PEM.
    """
    account = {
        "type": "service_account",
        "client_email": "tests@example.iam.gserviceaccount.com",
        "private_key": key,
        "token_uri": f"{endpoint}/token",
    }
    return {"endpoint_url": endpoint, "project": "tests", "token": account}


def private_key() -> str:
    """Make a private RSA key."""
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text: bytes = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return text.decode()


@contextlib.contextmanager
def gcs_server() -> Iterator[tuple[Bucket, str]]:
    """Run a stand-in in a thread of this process; gives it and its address."""
    bucket = Bucket()
    with served(make_app(bucket)) as address:
        yield bucket, address
