"""The contract of a storage on a disk; what killed writers, failing disks and links leave."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_contract import StorageTests
from storage_support import processes, race_to_create, without_links

from uws_store.errors import FormatError, InvalidInputError, NotFoundError, StorageError
from uws_store.storage import LocalStorage, check_path


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
