"""Servers on loopback, started by the tests: S3 by moto, files by http.server, and a proxy that drops conditions."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from uws_store.storage import Storage, open_storage

BUCKET = "uws-tests"
KEY = "test-key-AKIA"
SECRET = "s3cr3t/that+must=never-be-seen"


def s3_options(endpoint: str, **more: object) -> dict[str, Any]:
    """Options for a server on loopback. It answers at once or refuses; how long a busy machine takes is no failure."""
    config = {"retries": {"total_max_attempts": 2}, "connect_timeout": 60, "read_timeout": 120}
    return {"endpoint_url": endpoint, "key": KEY, "secret": SECRET, "config_kwargs": config, **more}


def open_s3(endpoint: str, prefix: str, **more: object) -> Storage:
    """Open a prefix of the tests' bucket."""
    return open_storage(f"s3://{BUCKET}/{prefix}", storage_options=s3_options(endpoint, **more))


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Run moto in threads of this process, with the tests' bucket made; gives its address."""
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415 - need not be installed
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import make_server  # noqa: PLC0415 - comes with moto

    app = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def one_by_one(environ: Any, start_response: Any) -> Any:
        # moto looks for the object and stores it in two steps: two requests at once can both be told they created it.
        with lock:
            return app(environ, start_response)

    server = make_server("127.0.0.1", 0, one_by_one, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        made.request("PUT", f"/{BUCKET}")
        assert made.getresponse().status == 200
        made.close()
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(10)


class _Server(http.server.ThreadingHTTPServer):
    # Of the five that may wait otherwise, the sixth tries again after a second, and is late by more on a busy machine.
    request_queue_size = 128


@contextlib.contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve with a handler in threads of this process; gives the address."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, as ``python -m http.server`` serves them: without ranges."""

    def log_message(self, *_: object) -> None:
        pass


def file_server(folder: Path) -> contextlib.AbstractContextManager[str]:
    """Serve a folder."""
    return serving(partial(QuietFiles, directory=str(folder)))


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on without the headers it is to drop, and can answer in the server's place."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    dropped: frozenset[str] = frozenset()
    answers: Callable[[http.server.BaseHTTPRequestHandler, int], int | None] = staticmethod(lambda *_: None)
    count = 0

    def handle_one(self) -> None:
        cls = type(self)
        cls.count += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = cls.answers(self, cls.count)
        if status is not None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        host = cls.upstream.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in cls.dropped}
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        connection.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one  # noqa: N815 - the server's names

    def log_message(self, *_: object) -> None:
        pass


def proxy(
    upstream: str,
    *,
    dropped: frozenset[str] = frozenset(),
    answers: Callable[[http.server.BaseHTTPRequestHandler, int], int | None] = lambda *_: None,
) -> contextlib.AbstractContextManager[str]:
    """Stand between client and server.

    Parameters
    ----------
    upstream : str
        The server's address.
    dropped : frozenset of str
        Names of headers that do not reach the server, in lower case.
    answers : callable
        Given the request and its number (from 1), tells the status to answer with instead of asking the server.
    """
    made = type(
        "Proxy", (_Proxy,), {"upstream": upstream, "dropped": dropped, "answers": staticmethod(answers)}
    )
    return serving(made)
