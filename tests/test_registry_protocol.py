"""The commit protocol against a plain model: writers that die at any write, storages that lose and delay answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from storage_support import CountingStorage, found_family, next_models

from uws_store.errors import StorageError
from uws_store.metadata.log import Action, AliasAction, DeleteAction
from uws_store.registry import Registry, RegistryState, committing
from uws_store.registry import registry as registry_module
from uws_store.registry.reading import replay
from uws_store.storage import MemoryStorage, Storage


class Died(Exception):  # noqa: N818 - it is no error: the process is gone
    """The writer is no more."""


class Mortal(CountingStorage):
    """Dies at its k-th write: before it, or after it and before the answer."""

    def __init__(self, inner: Storage, *, at: int, after: bool) -> None:
        super().__init__(inner)
        self.writes = 0
        self._at = at
        self._after = after

    def _write(self, action: Callable[[], object]) -> object:
        self.writes += 1
        if self.writes > self._at:
            raise Died
        if self.writes == self._at:
            if self._after:
                action()
            raise Died
        return action()

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        created = bool(self._write(lambda: self.inner.put_if_absent(path, data)))
        for hint, held in (hints or {}).items() if created else ():
            self.put(hint, held)
        return created

    def stage(self, path: str, data: bytes) -> bool:
        return bool(self._write(lambda: self.inner.stage(path, data)))

    def put(self, path: str, data: bytes) -> None:
        self._write(lambda: self.inner.put(path, data))

    def delete(self, path: str) -> None:
        self._write(lambda: self.inner.delete(path))


def work(registry: Registry) -> Iterator[None]:
    """What a writer does in its life, step by step."""
    for number in range(6):
        registry.publish(next_models("seven", f"task-{number}"))
        yield
    registry.publish(lambda _: [AliasAction(family="digits", task="seven", alias="prod", version=2)])
    yield
    registry.publish(lambda _: [DeleteAction(family="digits", task="seven", version=1)])
    yield


@pytest.mark.parametrize("after", [False, True])
def test_a_writer_that_dies_at_any_write_leaves_a_state_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    monkeypatch.setattr(committing, "_CHECKPOINT_COMMITS", 3)
    whole: list[RegistryState] = []
    for point in range(1, 100):
        storage = MemoryStorage()
        Registry.over(storage, create=True).publish(found_family())
        done = 0
        mortal = Mortal(storage, at=point, after=after)
        try:
            for _ in work(Registry.over(mortal)):
                done += 1
        except Died:
            pass
        state = Registry.over(storage).state()
        # What was acknowledged is there, and of what was not at most one step.
        assert done + 1 <= state.number <= done + 2
        assert state == replay(storage, state.number)
        registry = Registry.over(storage)
        registry.publish(next_models("eight"))
        assert Registry.over(storage).state() == replay(storage, state.number + 1)
        assert registry.audit() == ()
        if mortal.writes < point:
            assert done == 8
            break
        whole.append(state)
    else:
        pytest.fail("the writer never came to its end")
    assert {state.number for state in whole} == set(range(1, 10))


class Unsure(CountingStorage):
    """Does what a script says at each creation: as asked, not at all, or without telling."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.script: list[str] = []
        self.before: Callable[[], object] | None = None

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        if not path.startswith("_log/"):  # the look at what the storage can do
            return self.inner.put_if_absent(path, data, hints=hints)
        before, self.before = self.before, None
        if before is not None:
            before()
        fault = self.script.pop() if self.script else "none"
        if fault == "refused":
            raise StorageError("no connection", kind="storage/io")
        if fault == "late":
            self.inner.put_if_absent(path, data)
            raise StorageError("the connection broke", kind="storage/io")
        if fault == "repeated":
            self.inner.put_if_absent(path, data, hints=hints)
        return self.inner.put_if_absent(path, data, hints=hints)


class Protocol(RuleBasedStateMachine):
    """Writers and a reader of one registry, beside a dict of what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(committing, "_CHECKPOINT_COMMITS", 3)
        self.patch.setattr(registry_module, "_FIRST_WAIT_S", 0.0)
        self.storage = MemoryStorage()
        self.writers: list[tuple[Registry, Unsure]] = []
        self.versions: dict[tuple[str, str], int] = {}
        self.live: set[tuple[str, str, int]] = set()
        self.aliases: dict[tuple[str, str, str], int] = {}
        self.commits = 0
        self.seen = 0

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(count=st.integers(2, 4))
    def begin(self, count: int) -> None:
        first = Registry.over(self.storage, create=True)
        for name in ("alpha", "beta"):
            first.publish(found_family(name))
            self.commits += 1
        for _ in range(count):
            unsure = Unsure(self.storage)
            self.writers.append((Registry.over(unsure), unsure))
        self.reader = Registry.over(self.storage)

    def publish(self, writer: int, actions: Callable[[RegistryState], list[Action]], fault: str) -> bool:
        registry, unsure = self.writers[writer % len(self.writers)]
        unsure.script = [] if fault == "none" else [fault]
        try:
            registry.publish(actions)
        except StorageError as error:
            assert fault == "refused"
            assert error.kind == "storage/io"
            return False
        assert fault != "refused"
        self.commits += 1
        return True

    faults = st.sampled_from(["none", "none", "none", "refused", "late", "repeated"])
    families = st.sampled_from(["alpha", "beta"])
    tasks = st.sampled_from(["one", "two", "three"])

    @rule(writer=st.integers(0, 9), family=families, task=tasks, fault=faults)
    def add(self, writer: int, family: str, task: str, fault: str) -> None:
        if self.publish(writer, next_models(task, family=family), fault):
            version = self.versions[family, task] = self.versions.get((family, task), 0) + 1
            self.live.add((family, task, version))

    @rule(writer=st.integers(0, 9), other=st.integers(0, 9), family=families, task=tasks)
    def add_while_another_is_first(self, writer: int, other: int, family: str, task: str) -> None:
        _, unsure = self.writers[writer % len(self.writers)]
        rival = Registry.over(self.storage)
        unsure.before = lambda: rival.publish(next_models(task, family=family))
        self.publish(writer, next_models(task, family=family), "none")
        self.commits += 1
        for _ in range(2):
            version = self.versions[family, task] = self.versions.get((family, task), 0) + 1
            self.live.add((family, task, version))

    @precondition(lambda self: self.live)
    @rule(writer=st.integers(0, 9), data=st.data(), alias=st.sampled_from(["prod", "next"]), fault=faults)
    def alias(self, writer: int, data: st.DataObject, alias: str, fault: str) -> None:
        family, task, version = data.draw(st.sampled_from(sorted(self.live)))
        if self.publish(
            writer, lambda _: [AliasAction(family=family, task=task, alias=alias, version=version)], fault
        ):
            self.aliases[family, task, alias] = version

    @precondition(lambda self: self.live)
    @rule(writer=st.integers(0, 9), data=st.data(), fault=faults)
    def withdraw(self, writer: int, data: st.DataObject, fault: str) -> None:
        family, task, version = data.draw(st.sampled_from(sorted(self.live)))
        gone = [key for key, held in self.aliases.items() if key[:2] == (family, task) and held == version]
        actions: list[Action] = [AliasAction(family=family, task=task, alias=key[2]) for key in gone]
        actions.append(DeleteAction(family=family, task=task, version=version))
        if self.publish(writer, lambda _: actions, fault):
            self.live.discard((family, task, version))
            for key in gone:
                del self.aliases[key]

    @rule()
    def forget_the_hint(self) -> None:
        self.storage.delete("_log/head")

    @rule()
    def lose_a_snapshot(self) -> None:
        for path in list(self.storage.list("_log/snapshots"))[:1]:
            self.storage.delete(path)

    @invariant()
    def everyone_sees_the_same(self) -> None:
        if not self.writers:
            return
        for registry in (self.reader, Registry.over(self.storage)):
            state = registry.state()
            assert state.number == self.commits
            assert {(e.family, e.task, e.version) for e in state.models()} == self.live
            assert {
                (family.name, task.name, alias): version
                for family in state.walk()
                for task in family.tasks.values()
                for alias, version in task.aliases.items()
            } == self.aliases
        assert self.commits >= self.seen
        self.seen = self.commits


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
