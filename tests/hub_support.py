"""A stand-in for the Hub that the real `huggingface_hub` client talks to: repositories in memory, over HTTP.

It knows what the package uses: commits with a parent (412 when it is not the newest), large files by the LFS protocol,
files by ranges and redirects, trees, paths and refusals with the Hub's error codes."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from loopback_support import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

TOKEN = "hf_stand-in-token-never-be-seen"
LFS_BYTES = 2000
"""Files at least so long are stored by the LFS protocol."""


@dataclass
class Repo:
    """One repository: its files now, and its commits."""

    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    changed: dict[str, float] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: [secrets.token_hex(20)])
    messages: list[str] = field(default_factory=list)


class Hub:
    """The repositories, the stored large files, and every request that was made."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []


def make_app(hub: Hub) -> Starlette:  # noqa: PLR0915 - one short function per request
    """Make the application."""

    def refuse(status: int, code: str, message: str = "") -> Response:
        return JSONResponse(
            {"error": message or code}, status, {"X-Error-Code": code, "X-Error-Message": message or code}
        )

    def repo_of(request: Request) -> Repo | None:
        kind = request.path_params.get("kind", "models").rstrip("/") or "models"
        return hub.repos.get(f"{kind}/{request.path_params['org']}/{request.path_params['name']}")

    def may_write(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    async def create(request: Request) -> Response:
        asked = await request.json()
        if not may_write(request):
            return refuse(401, "Unauthorized")
        key = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        if key in hub.repos:
            return refuse(409, "Conflict", "You already created this repo")
        hub.repos[key] = Repo()
        return JSONResponse({"url": f"{request.base_url}{asked['organization']}/{asked['name']}"})

    async def info(request: Request) -> Response:
        repo = repo_of(request)
        if repo is None:
            return refuse(404, "RepoNotFound")
        return JSONResponse({"id": request.path_params["name"], "sha": repo.commits[-1], "siblings": []})

    async def preupload(request: Request) -> Response:
        files = (await request.json())["files"]
        modes = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["size"] >= LFS_BYTES else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for f in files
        ]
        return JSONResponse({"files": modes})

    async def lfs_batch(request: Request) -> Response:
        asked = await request.json()
        objects = []
        for item in asked["objects"]:
            known = item["oid"] in hub.large
            upload = {"upload": {"href": f"{request.base_url}lfs/{item['oid']}", "header": {}}}
            objects.append({**item, **({} if known else {"actions": upload})})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def lfs_put(request: Request) -> Response:
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != request.path_params["oid"]:
            return Response(status_code=400)
        hub.large[request.path_params["oid"]] = data
        return Response()

    async def commit(request: Request) -> Response:
        repo = repo_of(request)
        if not may_write(request):
            return refuse(401, "Unauthorized", "Invalid credentials in Authorization header")
        if repo is None:
            return refuse(404, "RepoNotFound")
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        head = lines[0]["value"]
        # No await from here on, so commits are one after the other.
        if head.get("parentCommit", repo.commits[-1]) != repo.commits[-1]:
            return refuse(
                412, "PreconditionFailed", "A commit has happened since. Please refresh and try again."
            )
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                repo.files.pop(value["path"], None)
            repo.changed[value["path"]] = time.time()
        repo.commits.append(secrets.token_hex(20))
        repo.messages.append(head["summary"])
        sha = repo.commits[-1]
        where = "/".join(request.url.path.split("/")[3:5])
        url = (
            f"{request.base_url}{'datasets/' if '/datasets/' in request.url.path else ''}{where}/commit/{sha}"
        )
        return JSONResponse({"commitUrl": url, "commitOid": sha})

    def entry(repo: Repo, path: str, *, expand: bool) -> dict[str, Any]:
        when = dt.datetime.fromtimestamp(repo.changed.get(path, 0), dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        last = {"id": repo.commits[-1], "title": "", "date": when}
        more = {"lastCommit": last} if expand else {}
        if path in repo.files:
            return {"type": "file", "path": path, "size": len(repo.files[path]), "oid": "0" * 40, **more}
        return {"type": "directory", "path": path, "oid": "0" * 40, **more}

    async def paths_info(request: Request) -> Response:
        repo = repo_of(request)
        if repo is None:
            return refuse(404, "RepoNotFound")

        form = parse_qs((await request.body()).decode())
        expand = form.get("expand", ["False"])[0].lower() == "true"
        found = [
            entry(repo, path, expand=expand)
            for path in form.get("paths", [])
            if path in repo.files or any(name.startswith(f"{path}/") for name in repo.files)
        ]
        return JSONResponse(found)

    async def tree(request: Request) -> Response:
        repo = repo_of(request)
        if repo is None:
            return refuse(404, "RepoNotFound")
        folder = request.path_params.get("path", "")
        inside = [name for name in sorted(repo.files) if not folder or name.startswith(f"{folder}/")]
        if folder and not inside:
            return refuse(404, "EntryNotFound")
        return JSONResponse([entry(repo, name, expand=False) for name in inside])

    def ranged(request: Request, data: bytes) -> Response:
        asked = request.headers.get("range", "")
        if not asked:
            return Response(data, headers={"Accept-Ranges": "bytes"})
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
        return Response(data[start:end], 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    async def resolve(request: Request) -> Response:
        repo = repo_of(request)
        if repo is None:
            return refuse(404, "RepoNotFound")
        path = request.path_params["path"]
        if path not in repo.files:
            return refuse(404, "EntryNotFound")
        data = repo.files[path]
        if len(data) >= LFS_BYTES:
            return RedirectResponse(f"{request.base_url}lfs/{hashlib.sha256(data).hexdigest()}", 302)
        return ranged(request, data)

    async def lfs_get(request: Request) -> Response:
        return ranged(request, hub.large[request.path_params["oid"]])

    async def validate(request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    def counted(endpoint: Any) -> Any:
        async def run(request: Request) -> Response:
            hub.requests.append(f"{request.method} {request.url.path}")
            answer: Response = await endpoint(request)
            return answer

        return run

    routes = [
        ("/api/repos/create", create, ["POST"]),
        ("/api/validate-yaml", validate, ["POST"]),
        ("/api/{kind}/{org}/{name}", info, ["GET"]),
        ("/api/{kind}/{org}/{name}/revision/{revision}", info, ["GET"]),
        ("/api/{kind}/{org}/{name}/preupload/{revision}", preupload, ["POST"]),
        ("/api/{kind}/{org}/{name}/commit/{revision}", commit, ["POST"]),
        ("/api/{kind}/{org}/{name}/paths-info/{revision}", paths_info, ["POST"]),
        ("/api/{kind}/{org}/{name}/tree/{revision}", tree, ["GET"]),
        ("/api/{kind}/{org}/{name}/tree/{revision}/{path:path}", tree, ["GET"]),
        ("/{org}/{name}.git/info/lfs/objects/batch", lfs_batch, ["POST"]),
        ("/datasets/{org}/{name}.git/info/lfs/objects/batch", lfs_batch, ["POST"]),
        ("/lfs/{oid}", lfs_put, ["PUT"]),
        ("/lfs/{oid}", lfs_get, ["GET", "HEAD"]),
        ("/{kind}/{org}/{name}/resolve/{revision}/{path:path}", resolve, ["GET", "HEAD"]),
        ("/{org}/{name}/resolve/{revision}/{path:path}", resolve, ["GET", "HEAD"]),
    ]
    return Starlette(
        routes=[Route(path, counted(endpoint), methods=methods) for path, endpoint, methods in routes]
    )


@contextlib.contextmanager
def hub_server() -> Iterator[tuple[Hub, str]]:
    """Run a stand-in in a thread of this process; gives it and its address."""
    hub = Hub()
    with served(make_app(hub)) as address:
        yield hub, address
