"""Moving families in packs: what lies where afterwards, what goes again, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import make_small_zoo, run_well
from moving_support import filled, names
from storage_support import CountingStorage, FailingStorage, FlippingStorage

from uws_store import api, load_model
from uws_store.api import packing
from uws_store.errors import FormatError, StorageError
from uws_store.registry import Registry
from uws_store.storage import MemoryStorage


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("moving") / "zoo", models=4)


@pytest.fixture(scope="module")
def made(zoo: Path) -> MemoryStorage:
    return filled(zoo)


@pytest.fixture
def source(made: MemoryStorage) -> Registry:
    return Registry.over(made)


@pytest.fixture
def target() -> Registry:
    return Registry.over(MemoryStorage("target"), create=True)


def packs(registry: Registry) -> list[str]:
    return list(registry.storage.list("families/mlp/packs"))


def loose(registry: Registry) -> list[str]:
    return [path for path in registry.storage.list("families/mlp/models") if path.count("/") > 3]


def test_all_models_go_in_one_object_and_are_the_same(source: Registry, target: Registry) -> None:
    result = api.push("mlp", target, registry=source, pack=True)
    assert names(target) == names(source)
    assert len(packs(target)) == 1
    assert loose(target) == []
    assert result.published == 5
    # The basis, and one object for all models.
    basis = [path for path in target.storage.list("families/mlp/basis") if path.count("/") > 3]
    assert result.objects == len(basis) + 1
    assert result.size_bytes == sum(len(target.storage.read(path)) for path in (*basis, *packs(target)))
    assert target.resolve("mlp", "task-00", revision="prod").version == 3
    assert api.verify("mlp", registry=target).ok
    for entry in source.state().models():
        revision = f"{entry.task}@{entry.version}"
        here, there = (load_model("mlp", revision, registry=place) for place in (source, target))
        assert all(torch.equal(there[name], tensor) for name, tensor in here.items())


def test_packs_are_unpacked_and_packed_again(source: Registry, target: Registry) -> None:
    api.push("mlp", target, registry=source, pack=True)
    folders, third = (Registry.over(MemoryStorage(name), create=True) for name in ("folders", "third"))
    api.pull(target, "mlp", registry=folders)
    assert packs(folders) == []
    assert names(folders) == names(source)
    here = {path: source.storage.read(path) for path in source.storage.list("families")}
    there = {path: folders.storage.read(path) for path in folders.storage.list("families")}
    assert there.items() <= here.items()
    api.mirror(third, registry=target, pack=True)
    assert len(packs(third)) == 1
    assert names(third) == names(source)
    assert api.verify("mlp", registry=third).ok


def test_a_pack_that_is_wanted_whole_is_read_with_one_request(source: Registry, target: Registry) -> None:
    api.push("mlp", target, registry=source, pack=True)
    counting = CountingStorage(target.storage)
    api.pull(Registry.over(counting), "mlp", registry=Registry.over(MemoryStorage("x"), create=True))
    assert len([request for request in counting.requests if "/packs/" in request.path]) == 1
    counting.requests.clear()
    one = Registry.over(MemoryStorage("y"), create=True)
    api.pull(Registry.over(counting), "mlp", "task-02", registry=one)
    (request,) = [request for request in counting.requests if "/packs/" in request.path]
    assert request.end is not None
    assert request.end - (request.start or 0) < target.storage.size(packs(target)[0])  # type: ignore[operator]


def test_what_is_new_goes_in_a_pack_of_its_own(zoo: Path, target: Registry) -> None:
    source = Registry.over(MemoryStorage("growing"), create=True)
    api.build(zoo, family="mlp", registry=source)
    api.push("mlp", target, registry=source, pack=True)
    first = packs(target)
    again = api.push("mlp", target, registry=source, pack=True)
    assert (again.objects, again.commits, packs(target)) == (0, (), first)
    api.add(zoo / "task-01.safetensors", family="mlp", task="new", exact=True, registry=source)
    result = api.push("mlp", target, registry=source, pack=True)
    assert result.objects == 1
    assert len(packs(target)) == 2
    assert set(first) < set(packs(target))
    # A model that is there under another name lies where it lay.
    api.add(zoo / "task-01.safetensors", family="mlp", task="twin", registry=source)
    result = api.push("mlp", target, registry=source, pack=True)
    assert (result.objects, result.published) == (0, 1)
    assert target.resolve("mlp", "twin").pack == target.resolve("mlp", "task-01").pack
    assert api.verify("mlp", registry=target).ok


def test_models_that_lie_in_folders_there_stay_in_them(source: Registry, target: Registry) -> None:
    api.push("mlp", target, "task-01", registry=source)
    before = loose(target)
    api.push("mlp", target, registry=source, pack=True)
    assert loose(target) == before
    assert target.resolve("mlp", "task-01").pack is None
    assert target.resolve("mlp", "task-02").pack is not None
    assert api.verify("mlp", registry=target).ok


def test_packs_are_bounded_and_long_models_lie_alone(
    source: Registry, target: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sorted(entry.size_bytes for entry in source.state().models())
    monkeypatch.setattr(packing, "MOST_PACK_BYTES", sizes[-1])
    api.push("mlp", target, registry=source, pack=True)
    assert len(packs(target)) > 1
    assert all((target.storage.size(path) or 0) <= sizes[-1] for path in packs(target))
    assert api.verify("mlp", registry=target).ok
    other = Registry.over(MemoryStorage("other"), create=True)
    monkeypatch.setattr(packing, "MOST_MODEL_BYTES", 10)
    api.push("mlp", other, registry=source, pack=True)
    assert packs(other) == []
    assert names(other) == names(source)


def test_a_transfer_that_was_cut_off_after_any_write_goes_on(
    source: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MOST_PACK_BYTES", 4000)
    point = -1
    while True:
        point += 1
        storage = MemoryStorage("cut")
        Registry.over(storage, create=True)
        try:
            api.push("mlp", Registry.over(FailingStorage(storage, point)), registry=source, pack=True)
        except StorageError:
            assert Registry.over(storage).state().number == 0
        else:
            break  # it was the hint, or nothing, that failed
        kept = set(storage.list("families/mlp/packs"))
        resumed = CountingStorage(storage)
        api.push("mlp", Registry.over(resumed), registry=source, pack=True)
        assert not kept & {request.path for request in resumed.requests if request.method == "stage"}
        assert names(Registry.over(storage)) == names(source)
    assert point > 8
    assert names(Registry.over(storage)) == names(source)


def in_a_pack(path: str) -> bool:
    return "/packs/" in path


def test_a_flipped_bit_is_noticed_at_either_end(source: Registry, target: Registry) -> None:
    with pytest.raises((FormatError, StorageError)) as caught:
        api.push("mlp", Registry.over(FlippingStorage(target.storage, in_a_pack)), registry=source, pack=True)
    assert caught.value.kind in {"format/digest", "storage/conflict"}
    assert target.state().families == {}
    api.push("mlp", target, registry=source, pack=True)
    with pytest.raises(FormatError) as seen:
        api.pull(
            Registry.over(FlippingStorage(target.storage, in_a_pack)),
            "mlp",
            registry=Registry.over(MemoryStorage("x"), create=True),
        )
    assert seen.value.kind == "format/digest"


def test_the_commands_pack_where_they_are_told_to(tmp_path: Path, zoo: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    run_well("build", zoo, "--family", "mlp", "--registry", first)
    run_well("push", "mlp", second, "--pack", "--registry", first)
    assert len(list((second / "families" / "mlp" / "packs").iterdir())) == 1
    run_well("pull", second, "mlp", "--registry", third)
    assert not (third / "families" / "mlp" / "packs").exists()
    listed = run_well("list", "mlp", "--where", "rel_error>=0", "--registry", second, "--json").document
    places = [model["pack"] for model in listed["models"]]
    assert len(places) == 4
    assert len({place["digest"] for place in places}) == 1
    for arguments in (["diff", "mlp/task-00", "mlp/task-01"], ["show", "mlp"], ["log"]):
        shown = run_well(*arguments, "--registry", second, "--json").document
        assert shown.keys() == run_well(*arguments, "--registry", first, "--json").document.keys()
    run_well("export", "mlp/task-00", "--output", tmp_path / "out.safetensors", "--registry", second)
