"""Stand-ins around a storage, and the bodies of the processes that race for one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from uws_store.errors import StorageError
from uws_store.layout import REGISTRY_DOCUMENT
from uws_store.metadata.log import Action, BasisAction, FamilyAction, ModelAction
from uws_store.metadata.verification import VerificationDocument, VerifiedModel
from uws_store.registry import Registry, RegistryState, publish_verification
from uws_store.storage import LocalStorage, Storage
from uws_store.storage.protocol import write_hints

DIGEST = "0123456789abcdef" * 4


def processes() -> ForkServerContext:
    """Children that start fast, from a process that imported the package once and has no threads."""
    context = multiprocessing.get_context("forkserver")
    # Not this module: the server does not have the tests' folder on its path.
    context.set_forkserver_preload(["__main__", "uws_store.registry", "s3fs", "uws_store.hub"])
    return context


@dataclass(frozen=True)
class Request:
    """One call to a storage."""

    method: str
    path: str
    start: int | None = None
    end: int | None = None


class CountingStorage:
    """Writes down every call; ``reads`` are those that fetched bytes."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def reads(self) -> list[Request]:
        return [request for request in self.requests if request.method == "read"]

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        self.requests.append(Request("read", path, start, end))
        return self.inner.read(path, start=start, end=end)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        self.requests.append(Request("read", path))
        return self.inner.read_at_most(path, limit_bytes)

    def modified(self, path: str) -> float | None:
        self.requests.append(Request("modified", path))
        return self.inner.modified(path)

    def size(self, path: str) -> int | None:
        self.requests.append(Request("size", path))
        return self.inner.size(path)

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        self.requests.append(Request("put_if_absent", path))
        created = self.inner.put_if_absent(path, data)
        if created:
            write_hints(self, hints)
        return created

    def stage(self, path: str, data: bytes) -> bool:
        self.requests.append(Request("stage", path))
        return self.inner.stage(path, data)

    def put(self, path: str, data: bytes) -> None:
        self.requests.append(Request("put", path))
        self.inner.put(path, data)

    def list(self, prefix: str) -> Iterator[str]:
        self.requests.append(Request("list", prefix))
        return self.inner.list(prefix)

    def delete(self, path: str) -> None:
        self.requests.append(Request("delete", path))
        self.inner.delete(path)


class FaultyStorage(CountingStorage):
    """Does what ``fault`` says instead of the next creation of a commit, once; then goes on as the inner storage does."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.fault: Callable[[Storage, str, bytes], bool] | None = None
        self.unreadable = False

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        if self.fault is None or path == REGISTRY_DOCUMENT:  # which is created again to see it refused
            return super().put_if_absent(path, data, hints=hints)
        fault, self.fault = self.fault, None
        return fault(self.inner, path, data)

    def size(self, path: str) -> int | None:
        if self.unreadable:
            raise StorageError("the connection is down", kind="storage/io")
        return super().size(path)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        if self.unreadable:
            raise StorageError("the connection is down", kind="storage/io")
        return super().read_at_most(path, limit_bytes)


class FailingStorage(CountingStorage):
    """Fails at one of its writes, counted from 0, and at all after it."""

    def __init__(self, inner: Storage, at: int) -> None:
        super().__init__(inner)
        self.left = at

    def stage(self, path: str, data: bytes) -> bool:
        self._tick()
        return super().stage(path, data)

    def put_if_absent(self, path: str, data: bytes, **options: object) -> bool:
        self._tick()
        return super().put_if_absent(path, data)

    def put(self, path: str, data: bytes) -> None:
        self._tick()
        super().put(path, data)

    def _tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageError("the connection is down", kind="storage/io")


class FlippingStorage(CountingStorage):
    """Changes a bit of every object that it gives and that is wanted."""

    def __init__(self, inner: Storage, wanted: Callable[[str], bool]) -> None:
        super().__init__(inner)
        self.wanted = wanted

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        data = super().read(path, start=start, end=end)
        return bytes([data[0] ^ 1]) + data[1:] if self.wanted(path) else data


def lose_the_answer(storage: Storage, path: str, data: bytes) -> bool:
    """The object is created, and the connection breaks before the answer."""
    storage.put_if_absent(path, data)
    raise StorageError("the connection broke", kind="storage/io")


def repeat_the_request(storage: Storage, path: str, data: bytes) -> bool:
    """The client repeats a request that had succeeded, and is told that the object exists."""
    storage.put_if_absent(path, data)
    return storage.put_if_absent(path, data)


def fail_before(storage: Storage, path: str, data: bytes) -> bool:
    """Nothing is created."""
    raise StorageError("no connection", kind="storage/io")


def found_family(name: str = "digits") -> Callable[[RegistryState], list[Action]]:
    """Publish a family with its first basis."""
    return lambda state: [
        FamilyAction(family=name, architecture=DIGEST),
        BasisAction(family=name, revision=state.next_revision(name), digest=DIGEST, size_bytes=1000),
    ]


def next_models(*tasks: str, family: str = "digits") -> Callable[[RegistryState], list[Action]]:
    """Publish the next version of each task."""
    return lambda state: [
        ModelAction(
            family=family,
            task=task,
            version=state.next_version(family, task),
            basis_revision=1,
            digest=DIGEST,
            size_bytes=17,
            exact=True,
        )
        for task in tasks
    ]


def without_links(*_: Any) -> None:
    """Stand in for ``os.link`` on a file system that has no hard links."""
    raise OSError(errno.EPERM, "Operation not permitted")


def race_to_create(root: Path, barrier: Barrier, rounds: int, answers: Connection, *, links: bool) -> None:
    """Try to create the same objects as all the others, at the same moments; send which ones were ours."""
    if not links:
        setattr(os, "link", without_links)  # noqa: B010 - mypy takes no assignment to a function
    storage = LocalStorage(root)
    mine = str(os.getpid()).encode() * 1000
    won = []
    for number in range(rounds):
        barrier.wait(120)
        if storage.put_if_absent(f"race/{number:04d}", mine):
            won.append(number)
    answers.send((mine, won))


def publish_many(url: str, barrier: Barrier, tasks: list[str], answers: Connection) -> None:
    """Publish versions of shared tasks as fast as possible; send the numbers of our commits."""
    registry = Registry.open(url)
    barrier.wait(120)
    answers.send([registry.publish(next_models(task)).number for task in tasks])


def publish_and_die(url: str, point: int, *, halfway: bool) -> None:
    """Publish two models in one commit, and be killed at one of the calls that change the disk."""
    registry = Registry.open(url)
    registry.state()  # reading changes nothing and takes ever more calls as the log grows
    die_at(point, halfway=halfway)
    registry.publish(next_models("left", "right"))


def publish_and_die_unnamed(url: str) -> None:
    """Publish, and be killed when the file is written and has not got its name yet."""
    registry = Registry.open(url)
    setattr(os, "link", lambda *_: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010 - mypy takes no assignment
    registry.publish(next_models("left"))


def record_and_die(url: str, point: int) -> None:
    """Publish the record of a verification, and be killed at one of the calls that change the disk."""
    registry = Registry.open(url)
    registry.state()
    die_at(point)
    publish_verification(registry, record_of(registry))


def record_of(
    registry: Registry, family: str = "digits", *, time: str = "2026-01-01T00:00:00Z"
) -> VerificationDocument:
    """Make a record of a family, of one model that was as recorded."""
    state = registry.state()
    model = VerifiedModel(task="left", version=1, digest=DIGEST, ok=True, tiers=("compact",))
    return VerificationDocument(
        registry=registry.document.id,
        family=family,
        commit=state.number,
        commit_sha256=state.sha256 or DIGEST,
        time=time,
        tool="test",
        compared=False,
        ok=True,
        models=(model,),
    )


def die_at(point: int, *, halfway: bool = False) -> None:
    """Be killed at one of the next calls that change the disk; with ``halfway``, in the middle of a write."""
    left = point

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                if halfway and call is os_write:
                    os_write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*arguments, **options)

        return wrapped

    os_write = os.write
    for name in ("open", "write", "fsync", "link", "unlink", "rename", "replace", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))


def publish_forever(url: str, answers: Connection) -> None:
    """Publish two models at a time until killed; send the number of each commit that was acknowledged."""
    registry = Registry.open(url)
    while True:
        answers.send(registry.publish(next_models("left", "right")).number)
