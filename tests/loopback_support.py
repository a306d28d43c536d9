"""Servers on loopback: an ASGI application in a thread of this process, and programs that take a port to listen on."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette

START_S = 120
"""How long a server may take to start: a machine may be busy, and it needs a tenth of a second."""


@contextlib.contextmanager
def served(app: Starlette) -> Iterator[str]:
    """Run an application; gives its address."""
    # A client that waits its turn longer than the usual five seconds must not find its connection closed as it asks.
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_keep_alive=600)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        # From here on whoever connects waits in the queue, however late the server's thread comes to its turn.
        listening.listen(128)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            # Told to end before it has begun, it would not begin and leave its socket open.
            _await_start(server, thread)
            server.should_exit = True
            thread.join(10)  # it is a daemon: one that waits for a client still is nobody's concern


def _await_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    until_s = time.monotonic() + START_S
    while not server.started:
        assert thread.is_alive(), "the server does not run"
        assert time.monotonic() < until_s, "the server does not start"
        time.sleep(0.01)


@contextlib.contextmanager
def started_program(name: str, command: Callable[[int], list[str]], *, folder: Path) -> Iterator[str]:
    """Run another's server, which can only be told a port; gives its address.

    A port that is free when it is looked for may be taken when the server asks for it. So another is tried when it ends
    at once. A server that does not run here at all skips the test: it is not ours.

    Parameters
    ----------
    name : str
        What it is called.
    command : callable
        Makes the command from a port.
    folder : Path
        Where it runs.
    """
    for _ in range(5):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with subprocess.Popen(
            command(port), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                if _answers(server, port):
                    yield f"http://127.0.0.1:{port}"
                    return
                if server.poll() is None:
                    break
            finally:
                server.send_signal(signal.SIGKILL)  # it keeps nothing that it would have to put in order
                server.wait()
    pytest.skip(f"{name} does not run here")


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server listens; False when it ended or takes too long."""
    until_s = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < until_s:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                # Another's server may be what answers there; ours has ended then, or does so now.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(0.5)
                return server.poll() is None
        time.sleep(0.1)
    return False
