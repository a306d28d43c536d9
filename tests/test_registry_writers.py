"""Many writers at once, and writers that are killed."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from storage_support import (
    found_family,
    next_models,
    processes,
    publish_and_die,
    publish_forever,
    publish_many,
)

from uws_store.layout import commit_path
from uws_store.metadata.log import Commit
from uws_store.registry import Registry
from uws_store.storage import MemoryStorage


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry.init(str(tmp_path / "registry"))
    made.publish(found_family())
    made.publish(next_models("left", "right"))
    return made


def versions_in(registry: Registry) -> dict[str, list[int]]:
    state = Registry.open(registry.url).state()
    return {name: sorted(task.versions) for name, task in state.families["digits"].tasks.items()}


def test_of_sixteen_processes_nothing_is_lost_and_no_version_is_given_twice(registry: Registry) -> None:
    context = processes()
    # No writer can lose more often than the others commit: 45 times, and it gives up at 50.
    count, each = 16, 3
    tasks = [f"task-{number % 3}" for number in range(each)]
    barrier = context.Barrier(count)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    writers = [
        context.Process(target=publish_many, args=(registry.url, barrier, tasks, sender))
        for _, sender in pipes
    ]
    for writer in writers:
        writer.start()
    numbers: list[int] = []
    for receiver, _ in pipes:
        assert receiver.poll(400)
        numbers += receiver.recv()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert sorted(numbers) == list(range(3, 3 + count * each))
    expected = {name: list(range(1, count * often + 1)) for name, often in Counter(tasks).items()}
    assert versions_in(registry) == {"left": [1], "right": [1], **expected}
    commits = [
        Commit.parse(registry.storage.read(commit_path(number)), where="x")
        for number in range(1, 3 + count * each)
    ]
    assert len({commit.nonce for commit in commits}) == len(commits)


@pytest.mark.parametrize("shared", [True, False])
def test_of_many_threads_nothing_is_lost(*, shared: bool) -> None:
    storage = MemoryStorage()
    first = Registry.over(storage, create=True)
    first.publish(found_family())
    numbers: list[int] = []

    def write() -> None:
        registry = first if shared else Registry.over(storage)
        numbers.extend(registry.publish(next_models("seven")).number for _ in range(9))

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The others commit 45 times; a writer gives up at the fiftieth loss.
    assert sorted(numbers) == list(range(2, 56))
    assert Registry.over(storage).resolve("digits", "seven").version == 54
    assert first.state() == Registry.over(storage).state()


@pytest.mark.parametrize("halfway", [False, True])
def test_a_writer_killed_between_any_two_writes_leaves_the_old_state_or_the_new_one(
    registry: Registry, *, halfway: bool
) -> None:
    context = processes()
    outcomes: list[int] = []
    for point in range(60):
        before = versions_in(registry)
        writer = context.Process(
            target=publish_and_die, args=(registry.url, point), kwargs={"halfway": halfway}
        )
        writer.start()
        writer.join(400)
        after = versions_in(registry)
        changes = {name: len(after[name]) - len(before[name]) for name in after}
        assert changes in ({"left": 0, "right": 0}, {"left": 1, "right": 1})
        outcomes.append(changes["left"])
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
    else:
        pytest.fail("the writer was killed at every point")
    # Killed early enough nothing was published; killed late enough all was; and there is one point of no return.
    assert outcomes == sorted(outcomes)
    assert {0, 1} == set(outcomes)
    assert len(outcomes) > 10
    expected = len(after["left"]) + 1
    registry.publish(next_models("left", "right"))
    assert versions_in(registry) == {name: list(range(1, expected + 1)) for name in ("left", "right")}


def test_writers_killed_at_random_lose_nothing_they_were_told_is_published(registry: Registry) -> None:
    context = processes()
    chance = random.Random(0)
    acknowledged = 2
    for _ in range(8):
        receiver, sender = context.Pipe(duplex=False)
        writers = [context.Process(target=publish_forever, args=(registry.url, sender)) for _ in range(2)]
        for writer in writers:
            writer.start()
        assert receiver.poll(400)
        time.sleep(chance.uniform(0, 0.03))
        for writer in writers:
            writer.kill()
            writer.join(120)
        sender.close()
        while receiver.poll(0):
            try:
                acknowledged = max(acknowledged, receiver.recv())
            except EOFError:
                break
        state = Registry.open(registry.url).state()
        assert state.number >= acknowledged
        found = versions_in(registry)
        assert found["left"] == found["right"] == list(range(1, state.number))
    assert acknowledged >= 10
