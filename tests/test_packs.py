"""Models in packs: what reading them costs, what the cache keeps of them, and when a collector may remove a pack."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_support import make_small_zoo
from remote_support import file_server
from storage_support import CountingStorage

from uws_store import api, layout
from uws_store.api import family as family_module
from uws_store.errors import FormatError, NotFoundError, StorageError
from uws_store.metadata.log import Action, BasisAction, DeleteAction, FamilyAction, ModelAction
from uws_store.model import read_document
from uws_store.packs import PackedModel, make_pack, model_objects
from uws_store.registry import ModelEntry, Registry, RegistryState, collect
from uws_store.storage import CachedStorage, CacheFolder, LocalStorage, MemoryStorage
from uws_store.tensor_bytes import digest_of

DAY = 86400.0


class Clock:
    """The storage's clock."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    zoo = make_small_zoo(tmp_path_factory.mktemp("packs") / "zoo", models=4)
    registry = Registry.over(MemoryStorage("loose"), create=True)
    api.build(zoo, family="mlp", registry=registry, exact=True)
    return registry


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def packed(loose: Registry, clock: Clock) -> Registry:
    """The same family with every model in one pack."""
    registry = Registry.over(MemoryStorage("packed", clock=clock), create=True)
    pack_family(loose, registry)
    return registry


@pytest.fixture(autouse=True)
def no_bases_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_module, "_BASES", family_module._BasisCache())


def objects_of(registry: Registry, entry: ModelEntry) -> list[bytes]:
    document = read_document(registry.storage, entry.prefix, digest=entry.digest)
    paths = [layout.GROUP_PATH, *(path for path, _ in model_objects(document))]
    return [registry.storage.read(f"{entry.prefix}/{path}") for path in paths]


def pack_family(source: Registry, target: Registry) -> None:
    family = source.state().families["mlp"]
    for path in source.storage.list("families/mlp"):
        if "/models/" not in path:
            target.storage.put(path, source.storage.read(path))
    pack = make_pack((entry.digest, objects_of(source, entry)) for entry in family.models())
    target.storage.put(layout.pack_path("mlp", pack.digest), pack.data)
    basis = family.bases[1]
    actions: list[Action] = [
        FamilyAction(family="mlp", architecture=family.architecture),
        BasisAction(family="mlp", revision=1, digest=basis.digest, size_bytes=basis.size_bytes),
    ]
    actions += [
        ModelAction(
            family="mlp",
            task=entry.task,
            version=1,
            basis_revision=1,
            digest=entry.digest,
            size_bytes=entry.size_bytes,
            exact=entry.exact,
            pack=pack.places[entry.digest],
        )
        for entry in family.models()
    ]
    target.publish(lambda _: actions)


def tensors_of(registry: Registry, task: str, tier: str = "exact") -> dict[str, bytes]:
    weights = api.open_family("mlp", registry=registry).load(task, tier=tier)  # type: ignore[arg-type]
    return {name: digest_of(tensor) for name, tensor in weights.materialize().items()}


def test_a_packed_model_has_the_bits_of_a_loose_one(loose: Registry, packed: Registry) -> None:
    for task in ("task-00", "task-03"):
        for tier in ("compact", "exact"):
            assert tensors_of(packed, task, tier) == tensors_of(loose, task, tier)
    assert not list(packed.storage.list("families/mlp/models/0"))
    assert api.verify("mlp", registry=packed).ok


def test_a_packed_model_is_the_objects_it_would_be_alone(loose: Registry, packed: Registry) -> None:
    for entry in packed.state().models():
        view = packed.storage_of(entry)
        paths = list(loose.storage.list(entry.prefix))
        assert list(view.list(entry.prefix)) == paths
        for path in paths:
            assert view.read(path) == loose.storage.read(path)
            assert view.size(path) == loose.storage.size(path)
            assert view.read(path, start=3, end=7) == loose.storage.read(path, start=3, end=7)
            assert view.read(path, start=-5) == loose.storage.read(path, start=-5)
            assert view.read_at_most(path, 1 << 20) == loose.storage.read(path)
            assert view.modified(path) is not None
        assert view.size(f"{entry.prefix}/other") is None
        assert view.read_at_most(f"{entry.prefix}/other", 9) is None
        with pytest.raises(NotFoundError):
            view.read("uws.json")
        with pytest.raises(FormatError) as caught:
            view.read_at_most(paths[0], 3)
        assert caught.value.kind == "format/size"


def test_what_lies_in_a_pack_is_not_written_to(packed: Registry) -> None:
    entry = next(packed.state().models())
    view = packed.storage_of(entry)
    path = f"{entry.prefix}/zarr.json"
    for attempt in (
        lambda: view.put(path, b""),
        lambda: view.stage(path, b""),
        lambda: view.put_if_absent(path, b""),
        lambda: view.delete(path),
    ):
        with pytest.raises(StorageError) as caught:
            attempt()
        assert caught.value.kind == "storage/permission"


@pytest.mark.parametrize(("at_once", "most"), [(1 << 16, 1), (0, 6)])
def test_a_resolved_model_takes_few_requests(
    packed: Registry, at_once: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uws_store.packs._READ_AT_ONCE_BYTES", at_once)
    counting = CountingStorage(packed.storage)
    family = api.open_family("mlp", registry=Registry.over(counting))
    entry = family.resolve("task-01")
    family.basis().prefetch()
    counting.requests.clear()
    family.load("task-01", refresh=False).materialize()
    assert 0 < len(counting.requests) <= most
    assert entry.pack is not None
    place = entry.pack
    for request in counting.requests:
        assert request.path == layout.pack_path("mlp", place.digest)
        assert request.start is not None
        assert request.end is not None
        assert place.offset <= request.start < request.end <= place.offset + place.length


def test_one_tensor_is_read_by_ranges(packed: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uws_store.packs._READ_AT_ONCE_BYTES", 0)
    counting = CountingStorage(packed.storage)
    family = api.open_family("mlp", registry=Registry.over(counting))
    weights = family.load("task-01")
    model, place = weights.model, family.resolve("task-01").pack
    assert place is not None
    family.basis().prefetch()
    counting.requests.clear()
    name = next(name for name, source in model.sources.items() if source.kind == "coded")
    assert weights[name].numel() > 0
    read = sum((request.end or 0) - (request.start or 0) for request in counting.reads)
    assert 0 < read < place.length


def test_a_packed_family_is_read_from_a_web_server(loose: Registry, packed: Registry, tmp_path: Path) -> None:
    local = LocalStorage(tmp_path / "site" / "registry", create=True)
    for path in packed.storage.list(""):
        local.put(path, packed.storage.read(path))
    with file_server(tmp_path / "site") as address:
        there = Registry.open(f"{address}/registry")
        assert tensors_of(there, "task-02") == tensors_of(loose, "task-02")


def test_the_cache_keeps_a_packed_model_under_its_own_digest(
    loose: Registry, packed: Registry, tmp_path: Path
) -> None:
    folder = CacheFolder(tmp_path / "cache", limit_bytes=10_000_000)
    counting = CountingStorage(packed.storage)
    expected = tensors_of(loose, "task-00", "compact")
    assert tensors_of(Registry.over(CachedStorage(counting, folder)), "task-00", "compact") == expected
    counting.requests.clear()
    assert tensors_of(Registry.over(CachedStorage(counting, folder)), "task-00", "compact") == expected
    assert not [request for request in counting.requests if request.path.startswith("families/")]
    offline = CachedStorage(counting, folder, offline=True)
    assert tensors_of(Registry.over(offline), "task-00", "compact") == expected
    # Another registry that has the model in a folder is served from there too.
    other = CountingStorage(loose.storage)
    assert tensors_of(Registry.over(CachedStorage(other, folder)), "task-00", "compact") == expected
    assert not [request for request in other.requests if "/models/" in request.path]


def test_a_pack_lives_while_one_of_its_models_does(packed: Registry, clock: Clock) -> None:
    (path,) = packed.storage.list("families/mlp/packs")
    entries = list(packed.state().models())
    for entry in entries:
        packed.publish(lambda _, task=entry.task: [DeleteAction(family="mlp", task=task, version=1)])  # type: ignore[misc]
        for _ in range(2):
            clock.now += 2 * DAY
            removed = [removal.prefix for removal in collect(packed, grace_s=DAY).removed]
        assert (path in removed) is (entry is entries[-1])
    assert list(packed.storage.list("families/mlp/packs")) == []


def test_a_folder_that_no_version_lies_in_is_garbage_beside_a_pack(
    loose: Registry, packed: Registry, clock: Clock
) -> None:
    entry = next(packed.state().models())
    for path in loose.storage.list(entry.prefix):
        packed.storage.put(path, loose.storage.read(path))
    for _ in range(2):
        clock.now += 2 * DAY
        removed = [removal.prefix for removal in collect(packed, grace_s=DAY).removed]
    assert removed == [entry.prefix]
    assert tensors_of(packed, entry.task) == tensors_of(loose, entry.task)


def test_a_model_that_is_published_again_in_a_folder_leaves_its_pack(
    loose: Registry, packed: Registry
) -> None:
    entry = packed.resolve("mlp", "task-00")
    for path in loose.storage.list(entry.prefix):
        packed.storage.put(path, loose.storage.read(path))

    def again(state: RegistryState) -> list[Action]:
        return [
            ModelAction(
                family="mlp",
                task="task-00",
                version=state.next_version("mlp", "task-00"),
                basis_revision=1,
                digest=entry.digest,
                size_bytes=entry.size_bytes,
                exact=entry.exact,
            )
        ]

    packed.publish(again)
    assert packed.resolve("mlp", "task-00").pack is None
    assert packed.resolve("mlp", "task-00", revision=1).pack == entry.pack
    assert tensors_of(packed, "task-00@2") == tensors_of(packed, "task-00@1")


def test_threads_that_share_a_packed_model_read_its_bytes_once(loose: Registry, packed: Registry) -> None:
    counting = CountingStorage(packed.storage)
    entry = packed.resolve("mlp", "task-02")
    view = Registry.over(counting).storage_of(entry)
    assert isinstance(view, PackedModel)
    assert repr(view).startswith("PackedModel(")
    paths = list(loose.storage.list(entry.prefix))
    counting.requests.clear()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(view.read, paths * 4))
    assert read == [loose.storage.read(path) for path in paths] * 4
    assert len(counting.requests) == 1
