"""A stand-in for the Hub's buckets that the real `huggingface_hub` and `hf_xet` clients talk to.

The Hub's own interface is answered over HTTP. The content goes by `hf_xet` as it would to the Hub's store (chunked, packed
into xorbs, described by shards), but into a folder: the write token names a ``local://`` address, which the client knows.
What is not exercised so is its transport to a store behind HTTP."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hf_xet
from hub_support import TOKEN, Hub
from hub_support import make_app as make_hub_app
from loopback_support import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass
class BucketFile:
    data: bytes
    xet_hash: str
    uploaded: float


@dataclass
class Buckets:
    """The buckets, the folder that stands for the store of their content, and every request that was made."""

    store: Path
    buckets: dict[str, dict[str, BucketFile]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    changes_left: int | None = None

    def content(self, xet_hash: str) -> bytes:
        """Put a file together from the xorbs that the client stored."""
        group = hf_xet.XetSession().new_download_stream_group(endpoint=f"local://{self.store}")
        return b"".join(group.download_stream(hf_xet.XetFileInfo(xet_hash)))


def make_app(hub: Buckets) -> Starlette:  # noqa: PLR0915 - one short function per request
    """Make the application."""

    def refuse(status: int, code: str) -> Response:
        return JSONResponse({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def name_of(request: Request) -> str:
        return f"{request.path_params['org']}/{request.path_params['name']}"

    def may_write(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    def told(path: str, file: BucketFile) -> dict[str, Any]:
        when = dt.datetime.fromtimestamp(file.uploaded, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "type": "file",
            "path": path,
            "size": len(file.data),
            "xetHash": file.xet_hash,
            "uploadedAt": when,
        }

    async def info(request: Request) -> Response:
        found = hub.buckets.get(name_of(request))
        if found is None:
            return refuse(404, "RepoNotFound")
        size = sum(len(file.data) for file in found.values())
        created = "2026-01-01T00:00:00.000Z"
        return JSONResponse(
            {
                "id": name_of(request),
                "private": True,
                "createdAt": created,
                "size": size,
                "totalFiles": len(found),
            }
        )

    async def create(request: Request) -> Response:
        if not may_write(request):
            return refuse(401, "Unauthorized")
        hub.buckets.setdefault(name_of(request), {})
        return JSONResponse({"url": f"{request.base_url}buckets/{name_of(request)}"})

    async def token(request: Request) -> Response:
        if not may_write(request):
            return refuse(401, "Unauthorized")
        return JSONResponse(
            {"casUrl": f"local://{hub.store}", "exp": int(time.time()) + 3600, "accessToken": "x"}
        )

    async def batch(request: Request) -> Response:
        if not may_write(request):
            return refuse(401, "Unauthorized")
        if hub.changes_left == 0:  # for whoever is gone by then
            return refuse(403, "Forbidden")
        if hub.changes_left is not None:
            hub.changes_left -= 1
        found = hub.buckets[name_of(request)]
        changes = [json.loads(line) for line in (await request.body()).splitlines()]
        hub.batches.append([change["path"] for change in changes])
        for change in changes:
            if change["type"] == "addFile":
                data = hub.content(change["xetHash"])
                found[change["path"]] = BucketFile(data, change["xetHash"], time.time())
            else:
                found.pop(change["path"], None)
        return JSONResponse({"success": True, "processed": len(changes), "failed": []})

    async def paths_info(request: Request) -> Response:
        found = hub.buckets.get(name_of(request))
        if found is None:
            return refuse(404, "RepoNotFound")
        paths = (await request.json())["paths"]
        return JSONResponse([told(path, found[path]) for path in paths if path in found])

    async def tree(request: Request) -> Response:
        found = hub.buckets.get(name_of(request))
        if found is None:
            return refuse(404, "RepoNotFound")
        prefix = request.path_params.get("prefix", "")
        return JSONResponse([told(path, found[path]) for path in sorted(found) if path.startswith(prefix)])

    async def resolve(request: Request) -> Response:
        found = hub.buckets.get(name_of(request), {}).get(request.path_params["path"])
        if found is None:
            return refuse(404, "EntryNotFound")
        data, asked = found.data, request.headers.get("range", "")
        if not asked:
            return Response(data)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
        return Response(data[start:end], 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def counted(endpoint: Any) -> Any:
        async def run(request: Request) -> Response:
            hub.requests.append(f"{request.method} {request.url.path}")
            answer: Response = await endpoint(request)
            return answer

        return run

    bucket = "/api/buckets/{org}/{name}"
    routes = [
        (bucket, info, ["GET"]),
        (bucket, create, ["POST"]),
        (f"{bucket}/xet-write-token", token, ["GET"]),
        (f"{bucket}/batch", batch, ["POST"]),
        (f"{bucket}/paths-info", paths_info, ["POST"]),
        (f"{bucket}/tree", tree, ["GET"]),
        (f"{bucket}/tree/{{prefix:path}}", tree, ["GET"]),
        ("/buckets/{org}/{name}/resolve/{path:path}", resolve, ["GET", "HEAD"]),
    ]
    return Starlette(
        routes=[Route(path, counted(endpoint), methods=methods) for path, endpoint, methods in routes]
    )


@contextlib.contextmanager
def bucket_server(store: Path) -> Iterator[tuple[Buckets, str]]:
    """Run a stand-in in a thread of this process, with a folder for the content; gives it and its address.

    At the same address are repositories, as of :func:`hub_support.hub_server`.
    """
    hub = Buckets(store)
    both = [*make_app(hub).routes, *make_hub_app(Hub()).routes]
    with served(Starlette(routes=both)) as address:
        yield hub, address
