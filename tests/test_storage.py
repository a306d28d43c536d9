"""What every storage promises, and what the local one does when the disk does not play along."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_support import CountingStorage, Request, processes, race_to_create, without_links

from uws_store.errors import FormatError, InvalidInputError, NotFoundError, StorageError, UwsError
from uws_store.storage import LocalStorage, MemoryStorage, Storage, check_path, open_storage

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


class TestMemoryStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(f"memory://{tmp_path.name}", create=True)

    def test_storages_of_other_names_are_others(self, storage: Storage) -> None:
        storage.put("a", b"1")
        assert open_storage(f"{storage.url}/below", create=True).size("a") is None
        assert MemoryStorage("private").size("a") is None


class TestLocalStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(tmp_path / "ä #1%20" / "deep", create=True)

    def test_objects_are_plain_files_under_their_paths(self, storage: LocalStorage) -> None:
        storage.put_if_absent("a/b", b"1")
        assert (storage.root / "a" / "b").read_bytes() == b"1"
        assert [path.name for path in storage.root.rglob("*") if path.is_file()] == ["b"]

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
    def test_files_get_the_permissions_the_umask_leaves(
        self, storage: LocalStorage, umask: int, mode: int
    ) -> None:
        before = os.umask(umask)
        try:
            storage.put_if_absent("created", b"")
            storage.put("put", b"")
        finally:
            os.umask(before)
        for name in ("created", "put"):
            assert stat.S_IMODE((storage.root / name).stat().st_mode) == mode

    def test_temporary_files_of_killed_writers_are_not_listed(self, storage: LocalStorage) -> None:
        storage.put("a/b", b"")
        (storage.root / ".tmp-1").write_bytes(b"half")
        (storage.root / "a" / ".tmp-2").write_bytes(b"half")
        assert list(storage.list("")) == ["a/b"]

    def test_names_that_no_object_can_have_are_not_listed(self, storage: LocalStorage) -> None:
        storage.put("a", b"")
        (storage.root / "back\\slash").write_bytes(b"")
        (storage.root / os.fsdecode(b"\xff")).write_bytes(b"")
        assert list(storage.list("")) == ["a"]

    def test_a_link_that_leaves_the_storage_is_not_followed(
        self, storage: LocalStorage, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_bytes(b"secret")
        (storage.root / "file").symlink_to(tmp_path / "secret")
        (storage.root / "folder").symlink_to(tmp_path)
        calls: list[Callable[[], object]] = [
            lambda: storage.read("file"),
            lambda: storage.read("folder/secret"),
            lambda: storage.size("folder/secret"),
            lambda: storage.put("folder/new", b""),
            lambda: storage.put_if_absent("folder/new", b""),
            lambda: storage.delete("folder/secret"),
            lambda: list(storage.list("folder")),
        ]
        for call in calls:
            with pytest.raises(StorageError) as caught:
                call()
            assert caught.value.kind == "storage/link-escape"
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["secret"]
        assert (tmp_path / "secret").read_bytes() == b"secret"
        assert list(storage.list("")) == []

    def test_a_loop_of_links_is_a_typed_error(self, storage: LocalStorage) -> None:
        (storage.root / "loop").symlink_to("loop")
        with pytest.raises(StorageError):
            storage.read("loop")
        assert list(storage.list("")) == []

    def test_the_root_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        LocalStorage(tmp_path / "link").put("a", b"1")
        assert (tmp_path / "real" / "a").read_bytes() == b"1"

    def test_a_pipe_is_not_an_object_and_does_not_block(self, storage: LocalStorage) -> None:
        os.mkfifo(storage.root / "pipe")
        assert storage.size("pipe") is None
        with pytest.raises(NotFoundError):
            storage.read("pipe")

    def test_an_object_cannot_take_a_folders_name(self, storage: LocalStorage) -> None:
        storage.put("a/b", b"")
        calls: list[Callable[[], object]] = [
            lambda: storage.put_if_absent("a", b""),
            lambda: storage.put("a", b""),
        ]
        for call in calls:
            with pytest.raises(StorageError):
                call()
        with pytest.raises(StorageError):
            storage.put_if_absent("a/b/c", b"")
        assert list(storage.list("")) == ["a/b"]

    def test_a_folder_that_was_removed_meanwhile_is_made_again(self, storage: LocalStorage) -> None:
        storage.put("a/b", b"")
        storage.delete("a/b")
        (storage.root / "a").rmdir()
        assert storage.put_if_absent("a/b", b"1")

    @pytest.mark.parametrize("call", ["write", "link", "fsync", "open"])
    @pytest.mark.parametrize(
        ("number", "kind"),
        [
            (errno.ENOSPC, "storage/no-space"),
            (errno.EDQUOT, "storage/no-space"),
            (errno.EACCES, "storage/permission"),
            (errno.EROFS, "storage/permission"),
            (errno.EIO, "storage/io"),
        ],
    )
    def test_a_failing_disk_leaves_no_object_and_no_temporary_file(
        self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: str
    ) -> None:
        storage.put("a/there", b"before")

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(StorageError) as caught:
                storage.put_if_absent("a/new", b"data")
            if call != "link":  # a replacement needs none
                with pytest.raises(StorageError):
                    storage.put("a/there", b"after")
        assert caught.value.kind == kind
        assert isinstance(caught.value.__cause__, OSError)
        assert "a/new" in str(caught.value)
        assert [path.name for path in (storage.root / "a").iterdir()] == ["there"]
        assert storage.read("a/there") == b"before"
        assert storage.put_if_absent("a/new", b"data")

    def test_a_disk_that_fills_up_halfway_leaves_nothing(
        self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real_write = os.write
        room = 1000

        def write(descriptor: int, data: memoryview) -> int:
            nonlocal room
            if not room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = real_write(descriptor, data[:room])
            room -= written
            return written

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(StorageError) as caught:
                storage.put_if_absent("a", b"x" * 5000)
        assert caught.value.kind == "storage/no-space"
        assert list(storage.root.iterdir()) == []

    def test_short_writes_are_continued(self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        real_write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:7]))
        storage.put_if_absent("a", bytes(range(256)))
        assert storage.read("a") == bytes(range(256))

    def test_short_reads_are_continued(self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        storage.put("a", bytes(range(256)))
        real_pread = os.pread
        monkeypatch.setattr(os, "pread", lambda file, count, offset: real_pread(file, min(count, 7), offset))
        assert storage.read("a", start=3) == bytes(range(3, 256))

    def test_a_file_that_shrinks_while_it_is_read_is_truncated(
        self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage.put("a", b"0123456789")
        real_pread = os.pread
        monkeypatch.setattr(
            os, "pread", lambda file, count, offset: real_pread(file, min(count, 5 - offset), offset)
        )
        with pytest.raises(FormatError) as caught:
            storage.read("a")
        assert caught.value.kind == "format/truncated"

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_without_hard_links_objects_are_still_created_once(
        self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def link(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", link)
        assert storage.put_if_absent("a/b", b"1") is True
        assert storage.put_if_absent("a/b", b"2") is False
        assert storage.read("a/b") == b"1"
        assert list(storage.list("")) == ["a/b"]

    def test_without_hard_links_a_name_taken_at_the_last_moment_is_kept(
        self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", without_links)
        (storage.root / "a").write_bytes(b"theirs")
        real_exists, answers = os.path.lexists, iter([False])
        monkeypatch.setattr(
            os.path, "lexists", lambda path: next(answers, None) is not None or real_exists(path)
        )
        assert storage.put_if_absent("a", b"ours") is False
        assert storage.read("a") == b"theirs"

    def test_a_link_whose_answer_was_lost_counts_as_made(
        self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real_link = os.link

        def link(source: Path, target: Path) -> None:
            real_link(source, target)
            raise FileExistsError(errno.EEXIST, "File exists")

        monkeypatch.setattr(os, "link", link)
        assert storage.put_if_absent("a", b"1") is True

    def test_file_and_folder_are_flushed_around_the_link(
        self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        real_fsync, real_link = os.fsync, os.link

        def fsync(descriptor: int) -> None:
            steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            real_fsync(descriptor)

        def link(source: Path, target: Path) -> None:
            steps.append("link")
            real_link(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "link", link)
        storage.put_if_absent("a/b/c", b"1")
        # Two new folders, each flushed in its parent, then the object.
        assert steps == ["folder", "folder", "file", "link", "folder"]

    @pytest.mark.parametrize("links", [True, False])
    def test_of_many_processes_exactly_one_creates_an_object(
        self, storage: LocalStorage, *, links: bool
    ) -> None:
        context = processes()
        rounds, count = 60, 8
        barrier = context.Barrier(count)
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        racers = [
            context.Process(
                target=race_to_create, args=(storage.root, barrier, rounds, sender), kwargs={"links": links}
            )
            for _, sender in pipes
        ]
        for racer in racers:
            racer.start()
        winners: dict[int, list[bytes]] = {number: [] for number in range(rounds)}
        for receiver, _ in pipes:
            assert receiver.poll(400)
            mine, won = receiver.recv()
            for number in won:
                winners[number].append(mine)
        for racer in racers:
            racer.join(120)
            assert racer.exitcode == 0
        assert [len(found) for found in winners.values()] == [1] * rounds
        for number, found in winners.items():
            assert storage.read(f"race/{number:04d}") == found[0]
        assert len(list(storage.list(""))) == rounds


class TestOpening:
    def test_plain_paths_and_file_urls_name_the_same_folder(self, tmp_path: Path) -> None:
        root = tmp_path / "with space#ä%"
        root.mkdir()
        encoded = f"file://{tmp_path}/with%20space%23%C3%A4%25"
        for url in (
            str(root),
            encoded,
            encoded.replace("file://", "file://localhost"),
            encoded.replace("file://", "FILE:"),
        ):
            found = open_storage(url)
            assert isinstance(found, LocalStorage)
            assert found.root == root

    def test_a_relative_path_and_the_home_folder_are_understood(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a:b").mkdir()
        assert open_storage("a:b").url == open_storage("~/a:b").url == str(tmp_path / "a:b")
        assert open_storage("~").url == str(tmp_path)

    @pytest.mark.parametrize("url", ["ftp://host/secret", "sftp://h/secret", "dropbox://secret", "FTP://b"])
    def test_a_scheme_that_is_not_supported_is_named_and_the_rest_is_not(self, url: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            open_storage(url, create=True)
        assert caught.value.kind == "invalid-input/storage-scheme"
        assert url.split("://", maxsplit=1)[0].lower() in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "file, memory, s3" in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "a\0b",
            "file://",
            "file://host/path",
            "file:relative",
            "file:///a?b",
            "file:///a#b",
            "file:///a%00b",
            "file:///a?",
            "file://[/a",
            "memory://",
            "memory://../x",
            "memory:///x",
        ],
    )
    def test_a_url_that_cannot_be_read_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            open_storage(url, create=True)
        assert caught.value.kind == "invalid-input/storage-url"

    def test_nothing_is_made_unless_asked(self, tmp_path: Path) -> None:
        for url in (f"{tmp_path}/a/b", f"file://{tmp_path}/a/b", "memory://never-made"):
            with pytest.raises(NotFoundError) as caught:
                open_storage(url)
            assert caught.value.kind == "not-found/storage"
        assert list(tmp_path.iterdir()) == []
        open_storage(f"{tmp_path}/a/b", create=True)
        assert (tmp_path / "a" / "b").is_dir()

    @pytest.mark.parametrize("create", [True, False])
    def test_a_file_is_not_a_storage(self, tmp_path: Path, *, create: bool) -> None:
        (tmp_path / "file").write_bytes(b"")
        for path in ("file", "file/below"):
            with pytest.raises(UwsError) as caught:
                open_storage(str(tmp_path / path), create=create)
            assert caught.value.kind == "invalid-input/storage-folder"


def test_counting_storage_records_what_was_read() -> None:
    counting = CountingStorage(MemoryStorage())
    storage: Storage = counting
    storage.put("a", b"0123456789")
    storage.read("a", start=-4)
    storage.read("a", start=2, end=4)
    assert counting.reads == [Request("read", "a", -4, None), Request("read", "a", 2, 4)]


@pytest.fixture(scope="module")
def shared_local(tmp_path_factory: pytest.TempPathFactory) -> LocalStorage:
    return LocalStorage(tmp_path_factory.mktemp("root"))


@given(
    path=st.text(max_size=30)
    | st.lists(st.sampled_from(["a", "..", ".", "", "/", "\\", "b/c"])).map("/".join)
)
def test_any_text_is_a_typed_error_or_stays_within_the_root(shared_local: LocalStorage, path: str) -> None:
    try:
        check_path(path)
    except InvalidInputError:
        return
    target = shared_local._locate(path)
    assert target.is_relative_to(shared_local.root)
    assert target != shared_local.root
    assert shared_local.size(path) is None
