"""Loading from behind a network: where is kept, who signs in, what is asked, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_support import make_small_zoo
from hub_support import TOKEN, Hub, hub_server
from safetensors.torch import load_file, save_file
from storage_support import CountingStorage
from zoo_support import make_zoo, same_bits

from uws_store import api
from uws_store.api import family as family_module
from uws_store.basis.opened import ARRAYS, array_record
from uws_store.errors import InvalidInputError, NotFoundError, StorageError, UwsError
from uws_store.registry import Registry
from uws_store.storage import (
    CachedStorage,
    CacheFolder,
    LocalStorage,
    Storage,
    StorageUrl,
    open_storage,
)

# Of huggingface_hub's own making, where it uploads large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

URL = "https://models.example.org/registry"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("remote")
    zoo = make_small_zoo(folder / "zoo", models=3)
    api.build(zoo, family="mlp", registry=str(folder / "registry"), exact=True)
    return str(folder / "registry")


@pytest.fixture(autouse=True)
def no_bases_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_module, "_BASES", family_module._BasisCache())


@pytest.fixture
def remote(local: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CountingStorage:
    """Stand for a server; what it is asked is counted."""
    storage = CountingStorage(LocalStorage(Path(local)))
    monkeypatch.setattr("uws_store.api.cache.open_storage", lambda *_, **__: storage)
    monkeypatch.setenv("UWS_STORE_CACHE", str(tmp_path / "by-environment"))
    return storage


@pytest.fixture(scope="module")
def hub(local: str) -> Iterator[tuple[Hub, str]]:
    with hub_server() as (hub, address):
        options = {"endpoint": address, "token": TOKEN}
        there = api.open_registry("hf://team/models", create=True, storage_options=options)
        api.push("mlp", there, registry=local)
        yield hub, address


def test_the_named_folder_is_the_cache_and_no_other(remote: CountingStorage, tmp_path: Path) -> None:
    own = tmp_path / "own"
    whole = api.load_model("mlp", "task-00", registry=URL, cache_dir=own).materialize()
    assert own.is_dir()
    assert not (tmp_path / "by-environment").exists()
    remote.requests.clear()
    again = api.load_model("mlp", "task-00", registry=URL, cache_dir=str(own), local_files_only=True)
    assert all(same_bits(tensor, whole[name]) for name, tensor in again.materialize().items())
    assert remote.requests == []
    with pytest.raises(StorageError) as caught:
        api.load_model("mlp", "task-00", registry=URL, local_files_only=True)
    assert caught.value.kind == "storage/offline"
    assert remote.requests == []


def test_a_basis_that_was_not_kept_is_an_error_and_the_module_stays(
    remote: CountingStorage, tmp_path: Path
) -> None:
    api.load_model("mlp", "task-00", registry=URL).materialize()
    for path in (tmp_path / "by-environment").rglob("mean"):
        for kept in path.rglob("*"):
            if kept.is_file():
                kept.unlink()
    # The same process has the basis in memory, by way of the network; it must not be read on by that way.
    remote.requests.clear()
    module = torch.nn.ModuleDict({"fc1": torch.nn.Linear(48, 64), "fc2": torch.nn.Linear(64, 32)})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(StorageError) as caught:
        api.load_model("mlp", "task-00", registry=URL, local_files_only=True, into=module)
    assert caught.value.kind == "storage/offline"
    assert "mean" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert remote.requests == []
    assert "fc1.weight" in api.load_model("mlp", "task-00", registry=URL, into=module).state_dict()


def test_an_open_registry_is_read_offline_only_through_the_cache(
    remote: CountingStorage, tmp_path: Path, local: str
) -> None:
    opened = api.open_registry(URL)
    api.load_model("mlp", "task-00", registry=opened).materialize()
    remote.requests.clear()
    offline = api.open_family("mlp", registry=opened, local_files_only=True)
    assert len(offline.load("task-00").materialize()) == 4
    assert remote.requests == []
    assert api.open_registry(local, local_files_only=True).state().families.keys() == {"mlp"}
    with pytest.raises(InvalidInputError) as caught:
        api.open_family("mlp", registry=Registry.over(remote), local_files_only=True)
    assert caught.value.kind == "invalid-input/open-registry"
    with pytest.raises(InvalidInputError) as caught:
        api.load_model("mlp", "task-00", registry=opened, cache_dir=tmp_path)
    assert caught.value.kind == "invalid-input/open-registry"


@pytest.mark.parametrize("url", ["s3://bucket/registry", "https://example.org/r", "memory://x", "folder"])
def test_a_token_goes_to_a_hub_alone(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        api.load_model("mlp", "task-00", registry=url, token="hf_never-be-seen")
    assert caught.value.kind == "invalid-input/token"
    assert "never-be-seen" not in str(caught.value)


def test_a_hub_gets_the_token_and_offline_nothing(
    hub: tuple[Hub, str], tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = api.load_model("mlp", "task-01", registry=local).materialize()
    url = StorageUrl("hf://team/models", {"endpoint": hub[1]})
    seen: list[object] = []

    def opened(url: str, *, create: bool) -> Storage:
        storage = open_storage(url, create=create)
        seen.append(StorageUrl(url).options["token"])
        return storage

    monkeypatch.setattr("uws_store.api.cache.open_storage", opened)
    found = api.load_model("mlp", "task-01", registry=url, token=TOKEN, cache_dir=tmp_path).materialize()
    assert seen == [TOKEN]
    assert all(same_bits(tensor, expected[name]) for name, tensor in found.items())
    monkeypatch.setattr(family_module, "_BASES", family_module._BasisCache())
    hub[0].requests.clear()
    again = api.open_family("mlp", registry=url, token=False, cache_dir=tmp_path, local_files_only=True)
    assert same_bits(again.load("task-01")["fc1.weight"], found["fc1.weight"])
    with pytest.raises(UwsError) as caught:
        again.load("task-02").materialize()
    assert caught.value.kind == "storage/offline"
    assert hub[0].requests == []


class TestRequests:
    @pytest.mark.parametrize(("tier", "most"), [("compact", 6), ("exact", 10)])
    def test_a_whole_call_with_the_basis_kept_takes_few(
        self, remote: CountingStorage, tier: str, most: int
    ) -> None:
        api.load_model("mlp", "task-00", registry=URL, tier=tier).materialize()  # type: ignore[call-overload]
        remote.requests.clear()
        api.load_model("mlp", "task-01", registry=URL, tier=tier).materialize()  # type: ignore[call-overload]
        assert 0 < len(remote.requests) <= most

    def test_a_whole_call_that_begins_with_nothing_takes_at_most_forty(self, remote: CountingStorage) -> None:
        api.load_model("mlp", "task-00", registry=URL).materialize()
        assert len(remote.requests) <= 40

    def test_an_open_family_asks_for_a_commit_a_record_and_a_core(self, local: str, tmp_path: Path) -> None:
        remote = CountingStorage(LocalStorage(Path(local)))
        cached = CachedStorage(remote, CacheFolder(tmp_path, limit_bytes=10_000_000))
        family = api.open_family("mlp", registry=Registry.over(cached))
        family.load("task-00").materialize()
        remote.requests.clear()
        family.load("task-01").materialize()
        assert len(remote.requests) <= 3
        remote.requests.clear()
        family.load("task-02@1").materialize()
        assert not [request for request in remote.requests if request.path.startswith("_log")]
        assert len(remote.requests) <= 2
        remote.requests.clear()
        family.load("task-02", revision=1).materialize()
        family.load("task-02", refresh=False).materialize()
        assert remote.requests == []

    def test_arrays_of_a_model_and_of_a_basis_are_asked_for_at_the_same_time(self, tmp_path: Path) -> None:
        zoo = make_zoo(tmp_path / "zoo")
        for index, path in enumerate(sorted(zoo.iterdir())):
            save_file(load_file(path) | {"steps": torch.tensor([index])}, path)
        registry = str(tmp_path / "registry")
        api.build(zoo, family="mlp", registry=registry)
        family = api.open_family("mlp", registry=registry)
        entry = family.resolve("task-00")
        arrays = {
            "models": set(family.model(entry).document.arrays),
            "basis": {name for name in ARRAYS if array_record(family.basis().document, name)} - {"files"},
        }
        assert all(len(names) > 1 for names in arrays.values())
        met = {folder: threading.Barrier(len(names)) for folder, names in arrays.items()}

        class Meeting(CountingStorage):
            """Answers when all arrays were asked for."""

            def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
                if path.endswith("/c/0"):
                    met[path.split("/")[2]].wait(120)
                return super().read_at_most(path, limit_bytes)

        over = api.open_family("mlp", registry=Registry.over(Meeting(LocalStorage(Path(registry)))))
        found = over.load("task-00").materialize()
        expected = family.load("task-00").materialize()
        assert all(same_bits(tensor, expected[name]) for name, tensor in found.items())

    def test_a_version_that_is_not_known_is_looked_for(self, tmp_path: Path) -> None:
        zoo = make_small_zoo(tmp_path / "zoo", models=3)
        url = str(tmp_path / "registry")
        api.build(zoo, family="mlp", registry=url)
        family = api.open_family("mlp", registry=url)
        with pytest.raises(NotFoundError):
            family.resolve("task-00@2")
        api.add(zoo / "task-01.safetensors", family="mlp", task="task-00", registry=url)
        with pytest.raises(NotFoundError):
            family.resolve("task-00", revision=2, refresh=False)
        assert family.resolve("task-00@2").version == 2
