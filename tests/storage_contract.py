"""What every storage is held to. A test module gives `storage`, an empty one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from uws_store.errors import FormatError, InvalidInputError, NotFoundError
from uws_store.storage import Storage, open_storage

BAD_PATHS = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a\\b",
    "a\0b",
    "a\nb",
    "\ud800",
    ".tmp-x",
    "a/.tmp-x/b",
    "a" * 256,
    "é" * 128,
    "a/" * 600 + "a",
]


class StorageTests:
    """The contract; a backend's tests inherit it and provide the fixture."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        raise NotImplementedError

    def test_what_was_put_is_read(self, storage: Storage) -> None:
        storage.put("a/b", b"bytes")
        assert storage.read("a/b") == b"bytes"
        assert storage.size("a/b") == 5

    def test_an_empty_object_is_an_object(self, storage: Storage) -> None:
        assert storage.put_if_absent("empty", b"")
        assert storage.read("empty") == b""
        assert storage.read("empty", start=0, end=0) == b""
        assert storage.size("empty") == 0
        assert list(storage.list("")) == ["empty"]

    def test_put_replaces(self, storage: Storage) -> None:
        storage.put("a", b"long before")
        storage.put("a", b"after")
        assert storage.read("a") == b"after"

    def test_put_if_absent_creates_once_and_never_replaces(self, storage: Storage) -> None:
        assert storage.put_if_absent("a/b/c", b"first") is True
        assert storage.put_if_absent("a/b/c", b"second") is False
        assert storage.read("a/b/c") == b"first"

    def test_what_was_staged_is_there_with_the_next_object(self, storage: Storage) -> None:
        assert storage.stage("data/1", b"first") is True
        assert storage.stage("data/1", b"second") is False
        assert storage.read("data/1") == b"first"
        assert storage.size("data/1") == 5
        assert storage.put_if_absent("commit", b"names it") is True
        again = open_storage(storage.url)
        assert again.read("data/1") == b"first"
        assert again.stage("data/1", b"third") is False

    def test_hints_are_written_with_the_object_that_they_come_with(self, storage: Storage) -> None:
        assert storage.put_if_absent("1", b"one", hints={"head": b"1"})
        assert storage.read("head") == b"1"
        assert storage.put_if_absent("2", b"two", hints={"head": b"2"})
        assert not storage.put_if_absent("1", b"late", hints={"head": b"1"})
        assert storage.read("head") == b"2"

    def test_what_was_deleted_can_be_created_again(self, storage: Storage) -> None:
        storage.put("a", b"1")
        storage.delete("a")
        assert storage.size("a") is None
        assert storage.put_if_absent("a", b"2")

    def test_deleting_nothing_is_no_error(self, storage: Storage) -> None:
        storage.delete("a/b")

    def test_a_small_object_is_read_at_once_and_a_large_one_is_not(self, storage: Storage) -> None:
        storage.put("a/b", b"12345")
        storage.put("empty", b"")
        assert storage.read_at_most("a/b", 5) == b"12345"
        assert storage.read_at_most("empty", 0) == b""
        assert storage.read_at_most("a", 5) is None
        assert storage.read_at_most("a/c", 5) is None
        with pytest.raises(FormatError) as caught:
            storage.read_at_most("a/b", 4)
        assert caught.value.kind == "format/size"

    def test_an_object_tells_when_it_was_written_by_one_clock(self, storage: Storage) -> None:
        assert storage.modified("a") is None
        storage.put("a", b"1")
        storage.put_if_absent("b", b"1")
        first, second = storage.modified("a"), storage.modified("b")
        assert first is not None
        assert second is not None
        assert first <= second
        storage.put("a", b"2")
        again = storage.modified("a")
        assert again is not None
        assert again >= first
        storage.delete("a")
        assert storage.modified("a") is None

    def test_a_missing_object_is_not_found(self, storage: Storage) -> None:
        storage.put("a/b", b"1")
        for path in ("c", "a", "a/c", "c/d", "a/b/c"):
            assert storage.size(path) is None
            with pytest.raises(NotFoundError) as caught:
                storage.read(path)
            assert caught.value.kind == "not-found/object"
            assert path in str(caught.value)

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (None, None, b"0123456789"),
            (0, 10, b"0123456789"),
            (3, 5, b"34"),
            (3, None, b"3456789"),
            (None, 3, b"012"),
            (3, 3, b""),
            (10, None, b""),
            (10, 10, b""),
            (-3, None, b"789"),
            (-10, None, b"0123456789"),
        ],
    )
    def test_a_range_is_exactly_what_was_asked_for(
        self, storage: Storage, start: int | None, end: int | None, expected: bytes
    ) -> None:
        storage.put("a", b"0123456789")
        assert storage.read("a", start=start, end=end) == expected

    @pytest.mark.parametrize(
        ("start", "end"), [(0, 11), (11, None), (11, 11), (9, 12), (None, 11), (-11, None)]
    )
    def test_a_range_beyond_the_end_is_truncated(
        self, storage: Storage, start: int | None, end: int | None
    ) -> None:
        storage.put("a", b"0123456789")
        with pytest.raises(FormatError) as caught:
            storage.read("a", start=start, end=end)
        assert caught.value.kind == "format/truncated"

    @pytest.mark.parametrize(("start", "end"), [(5, 3), (-3, 9), (0, -1), (None, -1), (-1, -1)])
    def test_a_range_that_means_nothing_is_refused(
        self, storage: Storage, start: int | None, end: int
    ) -> None:
        storage.put("a", b"0123456789")
        with pytest.raises(InvalidInputError) as caught:
            storage.read("a", start=start, end=end)
        assert caught.value.kind == "invalid-input/range"

    @pytest.mark.parametrize("path", BAD_PATHS)
    def test_a_path_that_could_leave_or_break_a_storage_is_refused(self, storage: Storage, path: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: storage.read(path),
            lambda: storage.size(path),
            lambda: storage.put(path, b""),
            lambda: storage.put_if_absent(path, b""),
            lambda: storage.delete(path),
        ]
        if path:
            calls.append(lambda: list(storage.list(path)))
        for call in calls:
            with pytest.raises(InvalidInputError) as caught:
                call()
            assert caught.value.kind == "invalid-input/path"
        assert list(storage.list("")) == []

    def test_a_listing_is_sorted_and_holds_the_files_below_a_folder_only(self, storage: Storage) -> None:
        paths = ["a", "b/1", "b/a/x", "b-c", "b/a-b", "b.d/e", "ab/c", "é/ü", "b/😀"]
        for path in paths:
            storage.put(path, b"")
        assert list(storage.list("")) == sorted(paths)
        assert list(storage.list("b")) == ["b/1", "b/a-b", "b/a/x", "b/😀"]
        assert list(storage.list("b/a")) == ["b/a/x"]
        assert list(storage.list("a")) == []
        assert list(storage.list("nothing/here")) == []

    def test_a_megabyte_and_a_bit_comes_back(self, storage: Storage) -> None:
        data = os.urandom((1 << 20) + 7)
        assert storage.put_if_absent("big", data)
        assert storage.read("big") == data
        assert storage.read("big", start=1 << 20) == data[1 << 20 :]

    def test_of_many_threads_exactly_one_creates_an_object(self, storage: Storage) -> None:
        for number in range(20):
            barrier = threading.Barrier(8)
            winners: list[bytes] = []

            def create(
                mine: bytes,
                path: str = f"{number}",
                barrier: threading.Barrier = barrier,
                winners: list[bytes] = winners,
            ) -> None:
                barrier.wait(120)
                if storage.put_if_absent(path, mine):
                    winners.append(mine)

            threads = [threading.Thread(target=create, args=(f"{index}".encode(),)) for index in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [storage.read(f"{number}")] == winners

    def test_the_url_opens_the_same_storage_again(self, storage: Storage) -> None:
        storage.put("a", b"1")
        assert open_storage(storage.url).read("a") == b"1"
