"""A link of a given bandwidth and delay on loopback: a proxy in a process of its own.

All connections share one token bucket for what comes down, and whatever goes up waits the delay first: a request and
its answer cost it once, as a round trip does. Nothing large goes up here. Counts requests and bytes. Knows nothing of
what is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

__all__ = ["Passed", "ThrottledLink", "throttled_link"]

_PIECE_BYTES = 1 << 17
_DEPTH_S = 0.002
"""Depth of the bucket, in seconds of its bandwidth: sleeping is no finer than that."""
_REQUEST = re.compile(rb"^(?:GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1\.[01]\r\n", re.MULTILINE)
_STOP_S = 10


@dataclass(frozen=True, slots=True)
class Passed:
    """What passed a link.

    Attributes
    ----------
    requests : int
        HTTP requests.
    size_bytes : int
        Bytes that came down, headers included.
    """

    requests: int
    size_bytes: int


class ThrottledLink:
    """The handle of a running link.

    Parameters
    ----------
    port : int
        Where it listens on loopback.
    orders : multiprocessing.connection.Connection
        Its process listens here.
    """

    def __init__(self, port: int, orders: Connection) -> None:
        self.port = port
        self._orders = orders

    @property
    def address(self) -> str:
        """What a client of HTTP is given."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, *, bits_per_s: float | None, latency_s: float) -> None:
        """Change bandwidth (None: as fast as it goes) and delay, for all that passes from now on."""
        self._orders.send((bits_per_s, latency_s))
        self._orders.recv()

    def passed(self) -> Passed:
        """What passed since the last time this was asked."""
        self._orders.send(None)
        found: Passed = self._orders.recv()
        return found


@contextlib.contextmanager
def throttled_link(target_port: int) -> Iterator[ThrottledLink]:
    """Run a link to a port of this machine, at first without limits."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(target_port, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ThrottledLink(ours.recv(), ours)
    finally:
        ours.close()
        process.join(_STOP_S)
        if process.is_alive():
            process.terminate()
            process.join(_STOP_S)


def _run(target_port: int, orders: Connection) -> None:
    asyncio.run(_Proxy(target_port).serve(orders))


class _Proxy:
    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._bits_per_s: float | None = None
        self._latency_s = 0.0
        self._free_at_s = 0.0
        self._requests = 0
        self._size_bytes = 0

    async def serve(self, orders: Connection) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def obey() -> None:
            try:
                order = orders.recv()
            except EOFError:
                loop.remove_reader(orders.fileno())
                stopped.set()
                return
            if order is None:
                orders.send(Passed(self._requests, self._size_bytes))
                self._requests = self._size_bytes = 0
                return
            self._bits_per_s, self._latency_s = order
            orders.send(None)

        loop.add_reader(orders.fileno(), obey)
        with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
            server.setblocking(False)
            accepting = loop.create_task(self._accept(server))
            orders.send(server.getsockname()[1])
            await stopped.wait()
            accepting.cancel()

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        running: set[asyncio.Task[None]] = set()
        while True:
            client, _ = await loop.sock_accept(server)
            task = loop.create_task(self._connect(client))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _connect(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, socket.socket() as target, contextlib.suppress(OSError):
            for end in (client, target):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(target, ("127.0.0.1", self._target_port))
            ways = [
                loop.create_task(self._up(client, target)),
                loop.create_task(self._down(target, client)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self, client: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(client, _PIECE_BYTES):
            self._requests += len(_REQUEST.findall(data))
            if self._latency_s:
                await asyncio.sleep(self._latency_s)
            await loop.sock_sendall(target, data)

    async def _down(self, target: socket.socket, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        piece = bytearray(_PIECE_BYTES)
        while count := await loop.sock_recv_into(target, piece):
            self._size_bytes += count
            wait_s = self._book(count)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await loop.sock_sendall(client, memoryview(piece)[:count])

    def _book(self, count: int) -> float:
        """Take tokens out of the bucket; gives how long to wait for them."""
        if self._bits_per_s is None:
            return 0.0
        now_s = time.monotonic()
        self._free_at_s = max(self._free_at_s, now_s - _DEPTH_S) + 8 * count / self._bits_per_s
        return self._free_at_s - now_s
