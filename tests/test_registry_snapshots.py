"""Checkpoints and snapshots: what opening costs, and that they never say anything that the log does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
from storage_support import DIGEST, CountingStorage, FaultyStorage, fail_before, found_family, next_models

from uws_store.errors import FormatError, StorageError
from uws_store.layout import HEAD_PATH, commit_path, snapshot_path
from uws_store.metadata.log import AliasAction, Commit, DeleteAction, HeadHint, ModelAction
from uws_store.registry import Registry, RegistryState, committing
from uws_store.registry.reading import replay
from uws_store.registry.slots import Families
from uws_store.storage import MemoryStorage, Storage

EVERY = 8
FAMILIES = 6


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "_CHECKPOINT_COMMITS", EVERY)


def fill(storage: Storage, *, commits: int = 30) -> Registry:
    registry = Registry.over(storage, create=True)
    for number in range(FAMILIES):
        registry.publish(found_family(f"f{number}"))
    for number in range(commits - FAMILIES):
        family = f"f{number % FAMILIES}"
        registry.publish(next_models("seven", f"task-{number}", family=family))
        if number == 12:
            registry.publish(lambda _: [AliasAction(family="f0", task="seven", alias="prod", version=1)])
        if number == 14:
            registry.publish(lambda _: [DeleteAction(family="f1", task="seven", version=1)])
    return registry


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage("snapshots")
    fill(made)
    return made


def commit_of(storage: Storage, number: int) -> Commit:
    return Commit.parse(storage.read(commit_path(number)), where="x")


def checkpoints(storage: Storage) -> list[int]:
    numbers = range(1, Registry.over(storage).state().number + 1)
    return [number for number in numbers if commit_of(storage, number).index is not None]


def whole_log(storage: Storage) -> RegistryState:
    return replay(storage, Registry.over(storage).state().number)


def test_a_state_from_a_checkpoint_is_that_of_the_whole_log(storage: MemoryStorage) -> None:
    assert len(checkpoints(storage)) >= 3
    opened = Registry.over(storage).state()
    log = whole_log(storage)
    assert opened == log
    assert (opened.number, opened.sha256, dict(opened.taken)) == (log.number, log.sha256, dict(log.taken))
    assert list(opened.models()) == list(log.models())


@pytest.mark.parametrize("count", range(1, 40))
def test_at_every_length_of_the_log_both_ways_agree(count: int) -> None:
    storage = MemoryStorage()
    fill(storage, commits=max(count, FAMILIES))
    assert Registry.over(storage).state() == whole_log(storage)


def test_commits_name_the_checkpoint_before_them(storage: MemoryStorage) -> None:
    newest: int | None = None
    for number in range(1, Registry.over(storage).state().number + 1):
        commit = commit_of(storage, number)
        assert commit.checkpoint == newest
        newest = number if commit.index is not None else newest


def test_resolving_costs_four_requests_with_opening(storage: MemoryStorage) -> None:
    counting = CountingStorage(storage)
    registry = Registry.over(counting)
    assert len(counting.requests) == 2
    registry.resolve("f3", "seven")
    assert len(counting.requests) <= 4
    assert {request.method for request in counting.requests} == {"read"}
    assert [request.path for request in counting.requests if "snapshots" in request.path] != []
    counting.requests.clear()
    registry.resolve("f3", "task-3")  # the family is read, and one look tells that the log has not grown
    assert len(counting.requests) == 1


def test_a_commit_too_long_for_the_head_costs_readers_no_request_for_those_before_it() -> None:
    storage = MemoryStorage()
    registry = fill(storage, commits=EVERY - 1)
    tasks = [f"task-{number:05d}" for number in range(1000)]
    registry.publish(next_models(*tasks, family="f3"))
    counting = CountingStorage(storage)
    assert Registry.over(counting).resolve("f3", "task-00999").version == 1
    assert len(counting.requests) == 4
    assert Registry.over(storage).state() == whole_log(storage)


def test_a_registry_of_one_commit_takes_three_requests_however_long_it_is() -> None:
    storage = MemoryStorage()
    registry = Registry.over(storage, create=True)
    tasks = [f"task-{number:05d}" for number in range(1000)]
    registry.publish(lambda state: [*found_family()(state), *(_first(task) for task in tasks)])
    counting = CountingStorage(storage)
    assert Registry.over(counting).resolve("digits", "task-00999").version == 1
    assert len(counting.requests) == 3


def _first(task: str) -> ModelAction:
    return ModelAction(
        family="digits", task=task, version=1, basis_revision=1, digest=DIGEST, size_bytes=1, exact=False
    )


def test_a_family_that_is_not_asked_for_is_not_read(storage: MemoryStorage) -> None:
    counting = CountingStorage(storage)
    state = Registry.over(counting).state()
    before = len(counting.requests)
    assert isinstance(state.families, Families)
    assert list(state.families) == [f"f{number}" for number in range(FAMILIES)]
    assert len(counting.requests) == before
    assert sum(1 for _ in state.models()) > 0
    assert not any(slot.is_read for slot in state.families.slots.values())


def test_publishing_costs_five_requests_and_a_checkpoint_one_more_for_each_changed_family() -> None:
    counting = CountingStorage(MemoryStorage())
    registry = fill(counting, commits=FAMILIES)
    registry.state()
    costs: list[int] = []
    stored: list[int] = []
    for _ in range(3 * EVERY):
        counting.requests.clear()
        registry.publish(next_models("seven", family="f2"))
        costs.append(len(counting.requests))
        stored.append(sum("snapshots" in request.path for request in counting.requests))
    assert max(cost - snapshots for cost, snapshots in zip(costs, stored, strict=True)) <= 5
    assert stored.count(0) >= 2 * EVERY
    # The first tells all families, the later ones the family that changed.
    assert [count for count in stored if count] == [FAMILIES, 1, 1][: sum(map(bool, stored))]


def test_a_family_that_did_not_change_keeps_its_snapshot() -> None:
    storage = MemoryStorage()
    registry = fill(storage, commits=FAMILIES)
    for _ in range(4 * EVERY):
        registry.publish(next_models("seven", family="f2"))
    indexes = [commit_of(storage, number).index or () for number in checkpoints(storage)]
    digests = [{entry.family: entry.digest for entry in index} for index in indexes]
    assert len(digests) >= 3
    assert len({held["f0"] for held in digests}) == 1
    assert len({held["f2"] for held in digests}) == len(digests)
    assert len(list(storage.list("_log/snapshots"))) == FAMILIES - 1 + len(digests)


class TestDamage:
    def test_a_hint_is_not_trusted(self, storage: MemoryStorage) -> None:
        """A hint may carry anything: what it carries is held to the commit that it points to."""
        right = Registry.over(storage).state()
        hint = HeadHint.parse(storage.read(HEAD_PATH), where="x")
        assert hint.tail is not None
        forged = hint.tail[0].replace('"f0"', '"g0"')
        for tail in [
            (forged, *hint.tail[1:]),
            hint.tail[:-1],
            hint.tail[1:],
            hint.tail[::-1],
            (*hint.tail[:2], *hint.tail[3:]),
            ("", *hint.tail),
            ("{}",),
        ]:
            storage.put(HEAD_PATH, HeadHint(number=hint.number, tail=tail).to_bytes())
            assert Registry.over(storage).state() == right

    def test_a_commit_that_a_hint_carries_says_its_own_number(self, storage: MemoryStorage) -> None:
        hint = HeadHint.parse(storage.read(HEAD_PATH), where="x")
        assert hint.tail is not None
        assert len(hint.tail) > 3
        texts = [json.loads(text) for text in hint.tail]
        texts[-2]["number"] += 40
        tail = [
            *hint.tail[:-2],
            *(json.dumps(text, sort_keys=True, separators=(",", ":")) for text in texts[-2:]),
        ]
        sha256 = hashlib.sha256(tail[-2].encode()).hexdigest()
        tail[-1] = tail[-1].replace(texts[-1]["parent"], sha256)
        for number, text in zip((hint.number - 1, hint.number), tail[-2:], strict=True):
            storage.put(commit_path(number), text.encode())
        storage.put(HEAD_PATH, HeadHint(number=hint.number, tail=tuple(tail)).to_bytes())
        with pytest.raises(FormatError) as caught:
            Registry.over(storage).state()
        assert caught.value.kind == "format/log-number"

    @pytest.mark.parametrize("number", [1, 7, 8, 20, 33, 1000])
    def test_a_stale_or_wrong_hint_costs_requests_and_changes_nothing(
        self, storage: MemoryStorage, number: int
    ) -> None:
        right = Registry.over(storage).state()
        storage.put(HEAD_PATH, HeadHint(number=number).to_bytes())
        assert Registry.over(storage).state() == right

    def test_without_a_hint_a_long_log_is_not_read_from_its_beginning(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("uws_store.registry.log._SHORT_LOG", 4)
        storage = MemoryStorage()
        fill(storage, commits=200)
        right = Registry.over(storage).state()
        storage.delete(HEAD_PATH)
        counting = CountingStorage(storage)
        assert Registry.over(counting).state().number == right.number
        assert len(counting.requests) < 40
        assert Registry.over(storage).state() == right

    @pytest.mark.parametrize("damage", ["missing", "flipped", "longer", "swapped"])
    def test_a_damaged_snapshot_is_replaced_by_the_log(self, storage: MemoryStorage, damage: str) -> None:
        right = whole_log(storage)
        index = commit_of(storage, checkpoints(storage)[-1]).index
        assert index is not None
        path = snapshot_path(index[3].digest)
        data = storage.read(path)
        if damage == "missing":
            storage.delete(path)
        elif damage == "flipped":
            storage.put(path, data[:50] + bytes([data[50] ^ 1]) + data[51:])
        elif damage == "longer":
            storage.put(path, data + b" " * 2_000_000)
        else:
            storage.put(path, storage.read(snapshot_path(index[2].digest)))
        assert Registry.over(storage).state() == right

    def test_an_audit_finds_what_opening_does_not_look_at(self, storage: MemoryStorage) -> None:
        registry = Registry.over(storage)
        assert registry.audit() == ()
        index = commit_of(storage, checkpoints(storage)[-1]).index
        assert index is not None
        storage.delete(snapshot_path(index[0].digest))
        assert [problem.kind for problem in registry.audit()] == ["format/missing-object"]
        assert registry.audit(repair=True) != ()
        assert registry.audit() == ()
        storage.put(commit_path(3), storage.read(commit_path(3)) + b" ")
        assert Registry.over(storage).state().number == registry.state().number
        assert [problem.kind for problem in registry.audit()] == ["format/log-chain"]

    def test_a_checkpoint_that_lies_is_found_by_an_audit(self, storage: MemoryStorage) -> None:
        newest = Registry.over(storage).state()
        raw = json.loads(storage.read(commit_path(checkpoints(storage)[-1])))
        lie = {
            **raw,
            "number": newest.number + 1,
            "parent": newest.sha256,
            "nonce": "0" * 32,
            "checkpoint": raw["number"],
        }
        lie["actions"] = [{"op": "alias", "family": "f0", "task": "seven", "alias": "x", "version": 1}]
        storage.put(commit_path(newest.number + 1), json.dumps(lie).encode())
        assert "format/snapshot" in {problem.kind for problem in Registry.over(storage).audit()}

    def test_a_commit_between_the_checkpoint_and_the_newest_that_is_missing_is_a_gap(
        self, storage: MemoryStorage
    ) -> None:
        newest = Registry.over(storage).state().number
        storage.put(HEAD_PATH, HeadHint(number=newest).to_bytes())
        assert checkpoints(storage)[-1] < newest - 2
        storage.delete(commit_path(newest - 1))
        with pytest.raises(FormatError) as caught:
            Registry.over(storage).state()
        assert caught.value.kind == "format/log-gap"

    def test_a_commit_named_as_a_checkpoint_must_be_one(self, storage: MemoryStorage) -> None:
        newest = Registry.over(storage).state()
        raw = json.loads(storage.read(commit_path(newest.number)))
        raw |= {"number": newest.number + 1, "parent": newest.sha256, "nonce": "0" * 32, "checkpoint": 2}
        raw["actions"] = [{"op": "alias", "family": "f0", "task": "seven", "alias": "x", "version": 1}]
        storage.put(commit_path(newest.number + 1), json.dumps(raw).encode())
        storage.put(HEAD_PATH, HeadHint(number=newest.number + 1).to_bytes())
        with pytest.raises(FormatError) as caught:
            Registry.over(storage).state()
        assert caught.value.kind == "format/checkpoint"

    def test_an_action_that_breaks_a_rule_is_found_when_its_family_is_asked_for(
        self, storage: MemoryStorage
    ) -> None:
        newest = Registry.over(storage).state()
        raw = json.loads(storage.read(commit_path(newest.number)))
        raw |= {"number": newest.number + 1, "parent": newest.sha256, "nonce": "0" * 32}
        raw.pop("index", None)
        raw["checkpoint"] = checkpoints(storage)[-1]
        raw["actions"] = [{"op": "delete", "family": "f0", "task": "seven", "version": 99}]
        storage.put(commit_path(newest.number + 1), json.dumps(raw).encode())
        registry = Registry.over(storage)
        assert registry.resolve("f1", "seven").version > 1
        with pytest.raises(FormatError) as caught:
            registry.resolve("f0", "seven")
        assert caught.value.kind == "format/log"


class TestWriters:
    def test_a_snapshot_that_cannot_be_stored_keeps_no_commit_out(self) -> None:
        class NoSnapshots(CountingStorage):
            def stage(self, path: str, data: bytes) -> bool:
                if "snapshots" in path:
                    raise StorageError("no room", kind="storage/no-space")
                return super().stage(path, data)

        storage = NoSnapshots(MemoryStorage())
        registry = fill(storage)
        assert checkpoints(storage) == []
        assert Registry.over(storage).state() == registry.state()

    def test_a_writer_that_fails_between_snapshot_and_commit_leaves_the_old_state(
        self, storage: MemoryStorage
    ) -> None:
        before = Registry.over(storage).state()
        faulty = FaultyStorage(storage)
        registry = Registry.over(faulty)
        for _ in range(2 * EVERY):
            faulty.fault = fail_before
            with pytest.raises(StorageError):
                registry.publish(next_models("seven", family="f1"))
        assert Registry.over(storage).state() == before
        registry.publish(next_models("seven", family="f1"))
        assert Registry.over(storage).state() == whole_log(storage)

    def test_many_writers_agree_on_their_checkpoints(self) -> None:
        storage = MemoryStorage()
        fill(storage, commits=FAMILIES)
        writers = [Registry.over(storage) for _ in range(3)]
        for turn in range(40):
            writers[turn % 3].publish(next_models("seven", family=f"f{turn % FAMILIES}"))
        assert Registry.over(storage).audit() == ()
        right = whole_log(storage)
        assert all(writer.state() == right for writer in writers)

    def test_an_index_that_is_large_beside_the_commits_is_written_more_rarely(self) -> None:
        storage = MemoryStorage()
        registry = Registry.over(storage, create=True)
        registry.publish(lambda state: [a for n in range(200) for a in found_family(f"g{n}")(state)])
        for _ in range(5 * EVERY):
            registry.publish(next_models("seven", family="g1"))
        log = [storage.read(commit_path(number)) for number in range(1, registry.state().number + 1)]
        indexes = sum(len(json.dumps(json.loads(data).get("index", []))) for data in log)
        assert indexes < 8 * (sum(map(len, log)) - indexes)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["index"].reverse(),
        lambda raw: raw["index"].append(raw["index"][-1]),
        lambda raw: raw.update(index=[]),
        lambda raw: raw.update(checkpoint=raw["number"]),
        lambda raw: raw["index"][0].update(family="../x"),
        lambda raw: raw["index"][0].update(digest="../" + DIGEST[3:]),
    ],
)
def test_a_malformed_checkpoint_is_refused(
    storage: MemoryStorage, change: Callable[[dict[str, object]], None]
) -> None:
    raw = json.loads(storage.read(commit_path(checkpoints(storage)[-1])))
    change(raw)
    with pytest.raises(FormatError) as caught:
        Commit.parse(json.dumps(raw).encode(), where="x")
    assert caught.value.kind == "format/document"
