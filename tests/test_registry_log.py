"""A log that was damaged, forged or only half answered for."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from storage_support import (
    CountingStorage,
    FaultyStorage,
    fail_before,
    found_family,
    lose_the_answer,
    next_models,
    repeat_the_request,
)

from uws_store.errors import FormatError, StorageError, UwsError
from uws_store.layout import HEAD_PATH, REGISTRY_DOCUMENT, commit_path
from uws_store.metadata.log import Commit, HeadHint
from uws_store.registry import Registry
from uws_store.registry import registry as registry_module
from uws_store.storage import LocalStorage, MemoryStorage, Storage


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage("log")
    registry = Registry.over(made, create=True)
    registry.publish(found_family())
    for _ in range(4):
        registry.publish(next_models("seven"))
    # Read from its beginning: what the hint may carry along is tested in test_registry_snapshots.py.
    made.put(HEAD_PATH, HeadHint(number=5).to_bytes())
    return made


def kind_of_opening(storage: Storage) -> str:
    """Read the log anew and be refused; publishing into it is refused for the same reason."""
    with pytest.raises(FormatError) as caught:
        Registry.over(storage).state()
    before = {path: storage.size(path) for path in storage.list("")}
    with pytest.raises(FormatError) as again:
        Registry.over(storage).publish(next_models("eight"))
    assert again.value.kind == caught.value.kind
    assert {path: storage.size(path) for path in storage.list("")} == before
    return caught.value.kind


def read_all(storage: Storage) -> None:
    registry = Registry.over(storage)
    registry.state()
    assert registry.document.uws == 1


def edit(storage: Storage, number: int, **changes: object) -> None:
    raw = json.loads(storage.read(commit_path(number)))
    storage.put(commit_path(number), json.dumps({**raw, **changes}).encode())


class TestDamage:
    def test_an_intact_log_is_read(self, storage: MemoryStorage) -> None:
        assert Registry.over(storage).state().number == 5

    @pytest.mark.parametrize("number", [1, 2, 4])
    def test_a_missing_commit_is_found_by_those_behind_it(self, storage: MemoryStorage, number: int) -> None:
        storage.delete(commit_path(number))
        assert kind_of_opening(storage) == "format/log-gap"

    def test_a_wide_gap_is_found_through_the_hint(self, storage: MemoryStorage) -> None:
        for number in (2, 3, 4):
            storage.delete(commit_path(number))
        assert kind_of_opening(storage) == "format/log-gap"

    @pytest.mark.parametrize("hint", [0, 1, 5, 6, 2**53, -1, "x", None, 2**70])
    def test_a_wrong_hint_changes_nothing(self, storage: MemoryStorage, hint: object) -> None:
        storage.put(HEAD_PATH, json.dumps({"uws": 1, "number": hint}).encode())
        registry = Registry.over(storage)
        assert registry.state().number == 5
        assert registry.publish(next_models("seven")).number == 6

    @pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 1000, b"x" * 2_000_000])
    def test_a_damaged_hint_changes_nothing(self, storage: MemoryStorage, data: bytes) -> None:
        storage.put(HEAD_PATH, data)
        assert Registry.over(storage).state().number == 5

    def test_no_hint_is_needed(self, storage: MemoryStorage) -> None:
        storage.delete(HEAD_PATH)
        assert Registry.over(storage).state().number == 5

    def test_the_hint_follows_the_log(self, storage: MemoryStorage) -> None:
        assert HeadHint.parse(storage.read(HEAD_PATH), where="x").number == 5

    def test_a_hint_that_cannot_be_written_does_not_undo_a_commit(self, storage: MemoryStorage) -> None:
        class NoReplacing(CountingStorage):
            def put(self, path: str, data: bytes) -> None:
                raise StorageError("read-only objects", kind="storage/permission")

        assert Registry.over(NoReplacing(storage)).publish(next_models("seven")).number == 6
        assert Registry.over(storage).state().number == 6

    def test_a_changed_commit_breaks_the_chain(self, storage: MemoryStorage) -> None:
        edit(storage, 3, tool="someone else")
        assert kind_of_opening(storage) == "format/log-chain"

    def test_a_change_of_white_space_breaks_the_chain(self, storage: MemoryStorage) -> None:
        storage.put(commit_path(3), storage.read(commit_path(3)) + b"\n")
        assert kind_of_opening(storage) == "format/log-chain"

    def test_a_first_commit_has_no_parent(self, storage: MemoryStorage) -> None:
        edit(storage, 1, parent="a" * 64)
        assert kind_of_opening(storage) == "format/log-chain"

    def test_commits_of_another_registry_do_not_fit(self, storage: MemoryStorage) -> None:
        other = MemoryStorage()
        strange = Registry.over(other, create=True)
        strange.publish(found_family("other"))
        strange.publish(next_models("seven", family="other"))
        storage.put(commit_path(2), other.read(commit_path(2)))
        assert kind_of_opening(storage) == "format/log-chain"

    def test_a_commit_under_another_number_is_refused(self, storage: MemoryStorage) -> None:
        storage.put(commit_path(6), storage.read(commit_path(5)))
        assert kind_of_opening(storage) == "format/log-number"

    def test_actions_that_do_not_follow_are_refused(self, storage: MemoryStorage) -> None:
        last = storage.read(commit_path(5))
        raw = json.loads(last)
        raw |= {"number": 6, "parent": hashlib.sha256(last).hexdigest()}
        storage.put(commit_path(6), json.dumps(raw).encode())
        assert kind_of_opening(storage) == "format/log"

    @pytest.mark.parametrize("family", ["../../../etc", "/etc", "a/b", "..", "a\\b", "con"])
    def test_names_that_leave_the_registry_are_refused(self, storage: MemoryStorage, family: str) -> None:
        raw = json.loads(storage.read(commit_path(1)))
        raw["actions"][0]["family"] = family
        edit(storage, 1, actions=raw["actions"])
        assert kind_of_opening(storage) == "format/document"

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"", "format/json"),
            (b'{"uws":1,"number":5', "format/json"),
            (b"[" * 100_000, "format/depth"),
            (b'{"uws":1,"uws":1}', "format/duplicate-key"),
            (b'{"uws":2}', "format/newer-version"),
            (b'{"uws":1,"number":NaN}', "format/json"),
            (b"{}", "format/document"),
        ],
    )
    def test_a_hostile_commit_is_refused(self, storage: MemoryStorage, data: bytes, kind: str) -> None:
        storage.put(commit_path(5), data)
        assert kind_of_opening(storage) == kind

    @pytest.mark.parametrize("path", [commit_path(1), REGISTRY_DOCUMENT])
    def test_a_gigabyte_is_refused_before_it_is_read(self, tmp_path: Path, path: str) -> None:
        storage = LocalStorage(tmp_path)
        Registry.over(storage, create=True).publish(found_family())
        with (tmp_path / path).open("wb") as file:
            file.truncate(1 << 30)
        counting = CountingStorage(storage)
        tracemalloc.start()
        try:
            with pytest.raises(FormatError) as caught:
                read_all(counting)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert caught.value.kind == "format/size"

    def test_commits_that_arrive_between_two_looks_are_not_a_gap(self, storage: MemoryStorage) -> None:
        class Growing(CountingStorage):
            def size(self, path: str) -> int | None:
                if path == commit_path(7) and self.inner.size(path) is None:
                    other = Registry.over(self.inner)
                    for _ in range(2):
                        other.publish(next_models("seven"))
                return super().size(path)

        assert Registry.over(Growing(storage)).state().number == 7

    def test_a_state_that_was_read_survives_a_damaged_commit(self, storage: MemoryStorage) -> None:
        registry = Registry.over(storage)
        good = registry.state()
        storage.put(commit_path(6), b"{")
        with pytest.raises(FormatError):
            registry.state()
        assert registry.state(refresh=False) == good
        storage.delete(commit_path(6))
        assert registry.publish(next_models("seven")).number == 6

    def test_a_log_that_was_set_back_is_not_written_to(self, storage: MemoryStorage) -> None:
        registry = Registry.over(storage)
        registry.state()
        for number in (4, 5):
            storage.delete(commit_path(number))
        storage.delete(HEAD_PATH)
        with pytest.raises(FormatError) as caught:
            registry.publish(next_models("seven"))
        assert caught.value.kind == "format/log-gap"
        assert Registry.over(storage).publish(next_models("seven")).number == 4


class TestLostAnswers:
    """What a publisher makes of a storage that does not tell the truth about a creation."""

    @pytest.fixture
    def faulty(self, storage: MemoryStorage) -> FaultyStorage:
        return FaultyStorage(storage)

    @pytest.fixture(autouse=True)
    def no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry_module, "_LONGEST_WAIT_S", 0.0)

    @pytest.mark.parametrize("fault", [lose_the_answer, repeat_the_request])
    def test_a_commit_that_arrived_is_not_published_twice(self, faulty: FaultyStorage, fault: object) -> None:
        registry = Registry.over(faulty)
        faulty.fault = fault  # type: ignore[assignment]
        commit = registry.publish(next_models("seven"))
        assert commit.number == 6
        assert faulty.size(commit_path(7)) is None
        assert Registry.over(faulty.inner).resolve("digits", "seven").version == 5
        assert registry.state() == Registry.over(faulty.inner).state()

    def test_a_commit_that_did_not_arrive_is_an_error_and_not_there(self, faulty: FaultyStorage) -> None:
        registry = Registry.over(faulty)
        faulty.fault = fail_before
        with pytest.raises(StorageError) as caught:
            registry.publish(next_models("seven"))
        assert caught.value.kind == "storage/io"
        assert registry.state().number == Registry.over(faulty.inner).state().number == 5

    @pytest.mark.parametrize("fails", [True, False])
    def test_another_ones_commit_is_followed(self, faulty: FaultyStorage, *, fails: bool) -> None:
        """The answer fails or says "exists", and there another's commit stands."""
        registry = Registry.over(faulty)

        def be_second(inner: Storage, path: str, data: bytes) -> bool:
            assert Registry.over(inner).publish(next_models("eight")).number == 6
            return fail_before(inner, path, data) if fails else inner.put_if_absent(path, data)

        faulty.fault = be_second
        assert registry.publish(next_models("seven")).number == 7
        state = Registry.over(faulty.inner).state()
        assert state.resolve("digits", "seven").version == 5
        assert state.resolve("digits", "eight").version == 1
        assert registry.state() == state

    def test_actions_are_made_anew_for_the_state_they_follow(self, faulty: FaultyStorage) -> None:
        registry = Registry.over(faulty)
        seen = []

        def be_second(inner: Storage, path: str, data: bytes) -> bool:
            Registry.over(inner).publish(next_models("seven"))
            return inner.put_if_absent(path, data)

        faulty.fault = be_second
        make = next_models("seven")
        commit = registry.publish(lambda state: (seen.append(state.number), make(state))[1])  # type: ignore[func-returns-value]
        assert seen == [5, 6]
        assert commit.number == 7
        assert Registry.over(faulty.inner).resolve("digits", "seven").version == 6

    def test_publishing_does_not_set_back_what_another_thread_has_read(self, faulty: FaultyStorage) -> None:
        registry = Registry.over(faulty)

        def be_overtaken(inner: Storage, path: str, data: bytes) -> bool:
            created = inner.put_if_absent(path, data)
            Registry.over(inner).publish(next_models("seven"))
            assert registry.state().number == 7  # as another thread would do
            return created

        faulty.fault = be_overtaken
        assert registry.publish(next_models("seven")).number == 6
        assert registry.state(refresh=False).number == 7

    def test_an_object_said_to_exist_that_is_not_there_is_tried_again(self, faulty: FaultyStorage) -> None:
        registry = Registry.over(faulty)
        faulty.fault = lambda *_: False
        assert registry.publish(next_models("seven")).number == 6

    def test_when_nothing_can_be_found_out_the_error_says_so(self, faulty: FaultyStorage) -> None:
        registry = Registry.over(faulty)

        def break_down(*_: object) -> bool:
            faulty.unreadable = True
            raise StorageError("the connection broke", kind="storage/io")

        faulty.fault = break_down
        with pytest.raises(StorageError) as caught:
            registry.publish(next_models("seven"))
        assert caught.value.kind == "storage/unknown-outcome"

    def test_a_writer_that_never_wins_gives_up(self, storage: MemoryStorage) -> None:
        class OthersFirst(CountingStorage):
            def put_if_absent(
                self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None
            ) -> bool:
                other = Registry.over(self.inner)
                if path.startswith("_log/"):
                    other.publish(next_models("eight"))
                return super().put_if_absent(path, data, hints=hints)

        registry = Registry.over(OthersFirst(storage))
        with pytest.raises(StorageError) as caught:
            registry.publish(next_models("seven"))
        assert caught.value.kind == "storage/contention"
        state = Registry.over(storage).state()
        assert state.number == 55
        assert state.resolve("digits", "seven").version == 4

    def test_a_damaged_commit_ahead_stops_publishing(self, faulty: FaultyStorage) -> None:
        registry = Registry.over(faulty)

        def be_second(inner: Storage, path: str, data: bytes) -> bool:
            inner.put(path, b"{")
            return inner.put_if_absent(path, data)

        faulty.fault = be_second
        with pytest.raises(FormatError):
            registry.publish(next_models("seven"))
        assert faulty.read(commit_path(6)) == b"{"


def test_a_full_disk_leaves_the_registry_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.init(str(tmp_path))
    registry.publish(found_family())
    before = {path: registry.storage.read(path) for path in registry.storage.list("")}
    real_open = os.open

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    def fail_to_create(path: str, flags: int, *mode: int) -> int:
        return fail() if flags & os.O_CREAT else real_open(path, flags, *mode)

    for call, failing in (("write", fail), ("link", fail), ("open", fail_to_create)):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            with pytest.raises(UwsError) as caught:
                registry.publish(next_models("seven"))
        assert caught.value.kind == "storage/no-space"
        assert {path: registry.storage.read(path) for path in registry.storage.list("")} == before
    assert registry.publish(next_models("seven")).number == 2


def test_the_parent_is_the_digest_of_the_stored_bytes(storage: MemoryStorage) -> None:
    for number in range(2, 6):
        commit = Commit.parse(storage.read(commit_path(number)), where="x")
        assert commit.parent == hashlib.sha256(storage.read(commit_path(number - 1))).hexdigest()
