"""The contract of a storage in memory, and the URLs by which storages are opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from storage_contract import StorageTests
from storage_support import CountingStorage, Request

from uws_store.errors import InvalidInputError, NotFoundError, UwsError
from uws_store.storage import LocalStorage, MemoryStorage, Storage, open_storage


class TestMemoryStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(f"memory://{tmp_path.name}", create=True)

    def test_storages_of_other_names_are_others(self, storage: Storage) -> None:
        storage.put("a", b"1")
        assert open_storage(f"{storage.url}/below", create=True).size("a") is None
        assert MemoryStorage("private").size("a") is None


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
