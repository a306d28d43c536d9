"""Sixteen processes that publish at once, on every kind of storage: nothing is lost, no version is given twice."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from hub_support import TOKEN, hub_server
from remote_support import BUCKET, moto_server, proxy, s3_options
from storage_support import found_family, processes, publish_many

from uws_store.layout import commit_path
from uws_store.metadata.log import Commit
from uws_store.registry import Registry
from uws_store.storage import StorageUrl

WRITERS = 16
EACH = 2


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")
    with moto_server() as address:
        yield address


@pytest.fixture(params=["disk", "s3", "hub"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    if request.param == "disk":
        yield Registry.init(str(tmp_path / "registry"))
    elif request.param == "s3":
        options = s3_options(request.getfixturevalue("moto"))
        yield Registry.init(StorageUrl(f"s3://{BUCKET}/{uuid.uuid4().hex}", options))
    else:
        with hub_server() as (_, address):
            options = {"endpoint": address, "token": TOKEN}
            yield Registry.init(StorageUrl("hf://team/registry", options))


def publish_from(
    registry: Registry,
    tasks_of: Callable[[int], list[str]],
    *,
    count: int = WRITERS,
) -> list[int]:
    """Publish from many processes at once; gives the numbers of all commits that were acknowledged.

    A publisher that ends without an answer fails the test at once.
    """
    context = processes()
    barrier = context.Barrier(count)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    writers = [
        context.Process(target=publish_many, args=(registry.url, barrier, tasks_of(number), sender))
        for number, (_, sender) in enumerate(pipes)
    ]
    for writer, (_, sender) in zip(writers, pipes, strict=True):
        writer.start()
        sender.close()
    numbers: list[int] = []
    for receiver, _ in pipes:
        assert receiver.poll(400)
        with contextlib.suppress(EOFError):  # its exit code says so below
            numbers += receiver.recv()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    return numbers


def test_of_sixteen_publishers_every_model_is_there_and_each_version_has_one_winner(
    registry: Registry,
) -> None:
    registry.publish(found_family())
    total = WRITERS * EACH
    # One task that all of them publish versions of, and one that each has for itself.
    numbers = publish_from(registry, lambda number: ["shared", f"own-{number}"])
    assert sorted(numbers) == list(range(2, 2 + total))
    again = Registry.open(registry.url)
    tasks = again.state().families["digits"].tasks
    assert {name: sorted(task.versions) for name, task in tasks.items()} == {
        "shared": list(range(1, WRITERS + 1)),
        **{f"own-{number}": [1] for number in range(WRITERS)},
    }
    commits = [
        Commit.parse(again.storage.read(commit_path(number)), where="x") for number in range(1, 2 + total)
    ]
    assert max(Counter(commit.nonce for commit in commits).values()) == 1


def test_where_conditions_are_ignored_publishers_lose_what_they_were_told_is_published(moto: str) -> None:
    """The control: on a storage that `init` refuses, two of the same publishers are told the same number."""
    both_there, first_told = threading.Event(), threading.Event()
    turn = itertools.count()

    def hold(request: http.server.BaseHTTPRequestHandler, number: int) -> None:
        if request.command == "PUT" and request.path.endswith(commit_path(2)):
            # Both have seen that there is no such commit; the second's arrives when the first was told of its own.
            if next(turn) == 0:
                assert both_there.wait(120)
            else:
                both_there.set()
                assert first_told.wait(120)

    with proxy(moto, dropped=frozenset({"if-none-match"}), answers=hold) as lying:
        url = StorageUrl(f"s3://{BUCKET}/{uuid.uuid4().hex}", s3_options(lying))
        registry = Registry.init(url, single_writer=True)
        registry.publish(found_family())
        context = processes()
        barrier = context.Barrier(2)
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        for _, sender in pipes:
            context.Process(target=publish_many, args=(registry.url, barrier, ["shared"], sender)).start()
        receivers = [receiver for receiver, _ in pipes]
        assert wait(receivers, timeout=400)
        first_told.set()
        assert all(receiver.poll(400) for receiver in receivers)
        assert [receiver.recv() for receiver in receivers] == [[2], [2]]
