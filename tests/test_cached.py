"""The cache: what is kept and served, what a load costs in requests, and work without a network."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from storage_support import CountingStorage

from uws_store import api
from uws_store.api import family as family_module
from uws_store.errors import StorageError
from uws_store.registry import Registry
from uws_store.storage import CachedStorage, CacheFolder, MemoryStorage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MemoryStorage:
    zoo = make_small_zoo(tmp_path_factory.mktemp("cached") / "zoo", models=3)
    storage = MemoryStorage("remote")
    api.build(zoo, family="mlp", registry=Registry.over(storage, create=True), exact=True)
    return storage


@pytest.fixture(autouse=True)
def no_bases_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_module, "_BASES", family_module._BasisCache())


@pytest.fixture
def remote(made: MemoryStorage) -> CountingStorage:
    return CountingStorage(made)


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    return CacheFolder(tmp_path / "cache", limit_bytes=10_000_000)


def load(
    remote: CountingStorage, folder: CacheFolder, task: str, *, tier: str = "compact", offline: bool = False
) -> Mapping[str, object]:
    registry = Registry.over(CachedStorage(remote, folder, offline=offline))
    family = api.open_family("mlp", registry=registry)
    return family.load(task, tier=tier).materialize()  # type: ignore[arg-type]


class TestRequests:
    def test_a_cold_family_takes_at_most_forty(self, remote: CountingStorage, folder: CacheFolder) -> None:
        load(remote, folder, "task-00")
        assert len(remote.requests) <= 40

    @pytest.mark.parametrize(("tier", "most"), [("compact", 6), ("exact", 10)])
    def test_with_the_basis_kept_a_resolved_model_takes_few(
        self, remote: CountingStorage, folder: CacheFolder, tier: str, most: int
    ) -> None:
        load(remote, folder, "task-00", tier=tier)
        registry = Registry.over(CachedStorage(remote, folder))
        family = api.open_family("mlp", registry=registry)
        entry = family.resolve("task-01")
        remote.requests.clear()
        model = family.model(entry)
        model.basis.prefetch()
        model.read_all()
        for name in model.sources:
            model.tensor(name, tier=tier, device=family.device)  # type: ignore[arg-type]
        assert 0 < len(remote.requests) <= most

    def test_a_kept_model_costs_only_its_name(self, remote: CountingStorage, folder: CacheFolder) -> None:
        load(remote, folder, "task-00")
        remote.requests.clear()
        load(remote, folder, "task-00")
        assert not [request for request in remote.requests if request.path.startswith("families/")]
        assert len(remote.requests) <= 6

    def test_the_same_model_of_another_registry_is_not_fetched(
        self, remote: CountingStorage, folder: CacheFolder
    ) -> None:
        load(remote, folder, "task-00")
        other = MemoryStorage("mirror")
        api.push("mlp", Registry.over(other, create=True), registry=Registry.over(remote.inner))
        counting = CountingStorage(other)
        load(counting, folder, "task-00")
        assert not [request for request in counting.requests if request.path.startswith("families/")]

    def test_a_tensor_is_read_by_ranges_and_not_kept(self, tmp_path: Path, folder: CacheFolder) -> None:
        from zoo_support import make_zoo  # noqa: PLC0415

        storage = MemoryStorage("large")
        shapes = {f"layer{number}.weight": (512, 512) for number in range(3)}
        zoo = make_zoo(tmp_path / "zoo", models=2, shapes=shapes)
        api.build(zoo, family="large", registry=Registry.over(storage, create=True))
        remote = CountingStorage(storage)
        registry = Registry.over(CachedStorage(remote, folder))
        weights = api.open_family("large", registry=registry).load("task-00")
        remote.requests.clear()
        assert weights["layer1.weight"].shape == (512, 512)
        core = [request for request in remote.requests if "/core/" in request.path]
        assert core
        assert all(request.start is not None for request in core)
        size = storage.size(core[0].path)
        assert size is not None
        assert sum((request.end or 0) - (request.start or 0) for request in core) < size / 2
        assert not [file for file in folder.files() if "core" in file.name]


class TestOffline:
    def test_what_was_loaded_is_loaded_again_without_a_request(
        self, remote: CountingStorage, folder: CacheFolder
    ) -> None:
        first = load(remote, folder, "task-00", tier="exact")
        remote.requests.clear()
        again = load(remote, folder, "task-00", tier="exact", offline=True)
        assert remote.requests == []
        assert list(first) == list(again)

    def test_what_was_not_kept_is_a_typed_error(self, remote: CountingStorage, folder: CacheFolder) -> None:
        load(remote, folder, "task-00")
        with pytest.raises(StorageError) as caught:
            load(remote, folder, "task-01", offline=True)
        assert caught.value.kind == "storage/offline"

    def test_names_are_those_of_the_last_look(self, made: MemoryStorage, folder: CacheFolder) -> None:
        storage = MemoryStorage("moving")
        api.push("mlp", Registry.over(storage, create=True), registry=Registry.over(made))
        remote = CountingStorage(storage)
        Registry.over(CachedStorage(remote, folder)).state()
        api.set_alias("mlp", "task-00", "prod", registry=Registry.over(storage))
        offline = Registry.over(CachedStorage(remote, folder, offline=True))
        assert offline.state().number == 1
        Registry.over(CachedStorage(remote, folder)).state()
        offline = Registry.over(CachedStorage(remote, folder, offline=True))
        assert offline.resolve("mlp", "task-00", revision="prod").version == 1

    def test_nothing_is_written(self, remote: CountingStorage, folder: CacheFolder) -> None:
        Registry.over(CachedStorage(remote, folder)).state()
        registry = Registry.over(CachedStorage(remote, folder, offline=True))
        remote.requests.clear()
        with pytest.raises(StorageError) as caught:
            api.set_alias("mlp", "task-00", "prod", registry=registry)
        assert caught.value.kind == "storage/offline"
        assert remote.requests == []


class TestFolder:
    @pytest.mark.parametrize("damage", [b"", b"short", b"x" * 500])
    def test_a_damaged_file_is_fetched_again(
        self, remote: CountingStorage, folder: CacheFolder, damage: bytes
    ) -> None:
        right = load(remote, folder, "task-00")
        for file in folder.files():
            (folder.root / file.name).write_bytes(damage)
        assert list(load(remote, folder, "task-00")) == list(right)

    def test_it_stays_within_its_limit_and_keeps_what_was_used_last(self, tmp_path: Path) -> None:
        folder = CacheFolder(tmp_path, limit_bytes=10_000)
        for number in range(40):
            folder.put(f"objects/{number}", bytes(900))
            used = [f"objects/{number}"]
            if folder.has("objects/0"):
                assert folder.get("objects/0") == bytes(900)
                used.append("objects/0")
            # Times of files are some milliseconds apart at best, and a quick disk keeps many files in one.
            for name in used:
                os.utime(tmp_path / name, (number, number))
        assert sum(file.size_bytes for file in folder.files()) <= 11_000
        assert folder.has("objects/39")
        assert not folder.has("objects/1")

    def test_what_is_larger_than_the_limit_is_not_kept(self, tmp_path: Path) -> None:
        folder = CacheFolder(tmp_path, limit_bytes=100)
        folder.put("large", bytes(1000))
        assert folder.files() == []

    def test_a_folder_that_cannot_be_written_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        folder = CacheFolder(tmp_path / "file", limit_bytes=1000)
        folder.put("x", b"1")
        assert folder.get("x") is None

    def test_many_at_once_see_whole_objects(self, tmp_path: Path) -> None:
        wrong: list[bytes] = []

        def work(seed: int) -> None:
            folder = CacheFolder(tmp_path, limit_bytes=20_000)
            for turn in range(200):
                name = f"objects/{(seed + turn) % 30}"
                folder.put(name, name.encode() * 100)
                found = folder.get(f"objects/{turn % 30}")
                if found is not None and found != f"objects/{turn % 30}".encode() * 100:
                    wrong.append(found)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_only_storages_behind_a_network_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: MemoryStorage
) -> None:
    monkeypatch.setenv("UWS_STORE_CACHE", str(tmp_path / "cache"))
    api.push("mlp", str(tmp_path / "registry"), registry=Registry.over(made))
    run_well("export", "mlp", "task-00", "-o", tmp_path / "out", "--registry", tmp_path / "registry")
    assert not (tmp_path / "cache").exists()


def test_the_command_tells_and_clears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UWS_STORE_CACHE", str(tmp_path))
    monkeypatch.setenv("UWS_STORE_CACHE_SIZE", "3kB")
    CacheFolder(tmp_path / "objects", limit_bytes=3000).put("objects/a", b"1" * 100)
    shown = run_well("cache", "--json").document
    assert (shown["size_bytes"], shown["limit_bytes"], len(shown["files"])) == (132, 3000, 1)
    assert "objects/a" in run_well("cache", "ls").stdout
    assert run_well("cache", "clear", "--json").document == {"removed_bytes": 132}
    assert run_well("cache", "ls", "--quiet").stdout == ""
    monkeypatch.setenv("UWS_STORE_CACHE_SIZE", "much")
    assert run("cache").error_kind == "invalid-input/cache-size"


def test_a_web_registry_is_read_once_and_then_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: MemoryStorage
) -> None:
    monkeypatch.setenv("UWS_STORE_CACHE", str(tmp_path / "cache"))
    remote = CountingStorage(made)
    monkeypatch.setattr("uws_store.api.cache.open_storage", lambda *_, **__: remote)
    url = "https://models.example.org/registry"
    assert len(api.load_model("mlp", "task-00", registry=url)["fc1.weight"]) == 64
    api.open_family("mlp", registry=url).load("task-00").materialize()
    remote.requests.clear()
    monkeypatch.setattr(family_module, "_BASES", family_module._BasisCache())
    family = api.open_family("mlp", registry=url, local_files_only=True)
    assert len(family.load("task-00").materialize()) == 4
    shown = run_well("export", "mlp", "task-00", "-o", tmp_path / "out", "--registry", url, "--offline")
    assert shown.code == 0
    assert remote.requests == []
    assert run("verify", "mlp", "--registry", url, "--offline").error_kind == "storage/offline"
