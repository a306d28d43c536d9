"""A push that is repeated puts back what is gone or damaged at the far end: packs, and objects in folders."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run_well
from hub_support import TOKEN, hub_server
from moving_support import filled, names
from storage_support import CountingStorage

from uws_store import api
from uws_store.errors import FormatError
from uws_store.registry import Registry
from uws_store.storage import MemoryStorage, Storage

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # within huggingface_hub


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("mends") / "zoo", models=3)


@pytest.fixture(scope="module")
def made(zoo: Path) -> MemoryStorage:
    return filled(zoo)


@pytest.fixture
def source(made: MemoryStorage) -> Registry:
    return Registry.over(made)


@pytest.fixture
def target() -> Registry:
    return Registry.over(MemoryStorage("target"), create=True)


def pack_of(registry: Registry) -> str:
    (path,) = registry.storage.list("families/mlp/packs")
    return path


def remove(storage: Storage, path: str) -> None:
    storage.delete(path)


def cut(storage: Storage, path: str) -> None:
    storage.put(path, storage.read(path)[:-7])


def flip(storage: Storage, path: str) -> None:
    data = bytearray(storage.read(path))
    data[len(data) // 2] ^= 1
    storage.put(path, bytes(data))


Damage = Callable[[Storage, str], None]


@pytest.mark.parametrize("packed", [True, False], ids=["pack", "folders"])
@pytest.mark.parametrize("damage", [remove, cut, flip])
def test_what_is_gone_or_damaged_is_put_back(
    source: Registry, target: Registry, damage: Damage, *, packed: bool
) -> None:
    api.push("mlp", target, registry=source, pack=packed)
    before = {path: target.storage.read(path) for path in target.storage.list("families")}
    commits = target.state().number
    model = target.resolve("mlp", "task-01")
    path = pack_of(target) if packed else f"{model.prefix}/zarr.json"
    damage(target.storage, path)
    assert not api.verify("mlp", registry=target).ok
    if damage is flip:  # the length is the same: only who reads it sees that
        assert api.push("mlp", target, registry=source, pack=packed).mended == ()
    result = api.push("mlp", target, registry=source, pack=packed, check=damage is flip)
    assert (result.mended, result.objects, result.published, result.commits) == ((path,), 1, 0, ())
    assert {path: target.storage.read(path) for path in target.storage.list("families")} == before
    assert target.state().number == commits
    assert api.verify("mlp", registry=target).ok
    again = api.push("mlp", target, registry=source, pack=packed, check=True)
    assert (again.mended, again.objects) == ((), 0)


def test_looking_at_a_pack_costs_one_request(source: Registry, target: Registry) -> None:
    api.push("mlp", target, registry=source, pack=True)
    counting = CountingStorage(target.storage)
    api.push("mlp", Registry.over(counting), registry=source, pack=True)
    assert [request.method for request in counting.requests if "/packs/" in request.path] == ["size"]


def test_a_pack_that_holds_what_was_withdrawn_is_the_same_again(source: Registry, target: Registry) -> None:
    api.push("mlp", target, registry=source, pack=True)
    data = target.storage.read(pack_of(target))
    api.delete("mlp", "task-02@1", registry=target)
    target.storage.delete(pack_of(target))
    assert len(api.push("mlp", target, "task-01", registry=source).mended) == 1
    assert target.storage.read(pack_of(target)) == data
    assert api.verify("mlp", registry=target).ok


def test_a_pack_is_taken_from_a_registry_that_has_the_same_one(source: Registry, target: Registry) -> None:
    middle = Registry.over(MemoryStorage("middle"), create=True)
    api.push("mlp", middle, registry=source, pack=True)
    api.push("mlp", target, registry=source, pack=True)
    target.storage.delete(pack_of(target))
    counting = CountingStorage(middle.storage)
    api.push("mlp", target, registry=Registry.over(counting))
    assert pack_of(target) == pack_of(middle)
    assert len([request for request in counting.requests if "/packs/" in request.path]) == 1
    # Damaged there too, it is of no use, and nothing is written.
    flip(middle.storage, pack_of(middle))
    target.storage.delete(pack_of(target))
    with pytest.raises(FormatError):
        api.push("mlp", target, registry=Registry.over(middle.storage))
    assert list(target.storage.list("families/mlp/packs")) == []


def test_who_has_not_all_of_its_models_is_told_so(source: Registry, target: Registry, zoo: Path) -> None:
    api.push("mlp", target, registry=source, pack=True)
    path = pack_of(target)
    part = Registry.over(MemoryStorage("part"), create=True)
    api.push("mlp", part, "task-01", registry=source)
    target.storage.delete(path)
    with pytest.raises(FormatError) as caught:
        api.push("mlp", target, registry=part)
    assert caught.value.kind == "format/missing-object"
    assert "has not 3 of its 4 models" in caught.value.message
    assert names(target) == names(source)


def test_on_the_hub_it_is_put_back_at_once(source: Registry) -> None:
    pytest.importorskip("huggingface_hub", reason="hf:// needs huggingface_hub")
    with hub_server() as (hub, address):
        name = f"team/r-{uuid.uuid4().hex[:12]}"
        options = {"endpoint": address, "token": TOKEN}
        target = api.open_registry(f"hf://{name}", create=True, storage_options=options)
        api.push("mlp", target, registry=source)
        files = hub.repos[f"models/{name}"].files
        (path,) = [path for path in files if "/packs/" in path]
        made, whole = len(hub.repos[f"models/{name}"].commits), files.pop(path)
        again = api.open_registry(f"hf://{name}", storage_options=options)
        assert api.push("mlp", again, registry=source).mended == (path,)
        assert files[path] == whole
        assert len(hub.repos[f"models/{name}"].commits) == made + 1


def test_the_command_tells_what_was_put_back(tmp_path: Path, zoo: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run_well("build", zoo, "--family", "mlp", "--registry", first)
    run_well("push", "mlp", second, "--pack", "--registry", first)
    (pack,) = (second / "families" / "mlp" / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[100] ^= 1
    pack.write_bytes(data)
    shown = run_well("push", "mlp", second, "--check", "--registry", first)
    assert pack.name in shown.stdout + shown.stderr
    assert (
        run_well("pull", first, "mlp", "--check", "--registry", second, "--json").document["families"][0][
            "mended"
        ]
        == []
    )
