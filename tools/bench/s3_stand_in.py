"""moto, a stand-in for S3, in a process of its own, with one bucket; loopback only."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import logging
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

__all__ = ["BUCKET", "is_installed", "s3_options", "s3_stand_in"]

BUCKET = "uws-bench"
_STOP_S = 10


def is_installed() -> bool:
    """Whether moto's server and s3fs can be imported."""
    return all(importlib.util.find_spec(name) for name in ("moto", "flask", "s3fs"))


def s3_options(address: str) -> dict[str, object]:
    """What s3fs takes to speak to a server at an address."""
    return {"endpoint_url": address, "key": "bench", "secret": "bench"}


@contextlib.contextmanager
def s3_stand_in() -> Iterator[int]:
    """Run it; gives the port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        port: int = ours.recv()
        made = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        made.request("PUT", f"/{BUCKET}")
        made.getresponse().read()
        made.close()
        yield port
    finally:
        process.terminate()
        process.join(_STOP_S)


def _serve(told: Connection) -> None:
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415 - need not be installed
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import make_server  # noqa: PLC0415 - comes with moto

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    told.send(server.port)
    server.serve_forever()
