"""Moving families between registries: what goes, what stays, what names become."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from moving_support import fill, filled, names
from spec_support import VECTORS
from storage_support import FailingStorage, FlippingStorage

from uws_store import api
from uws_store.errors import FormatError, IncompatibleError, InvalidInputError, StorageError
from uws_store.registry import Registry
from uws_store.storage import MemoryStorage


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("moving") / "zoo", models=3)


@pytest.fixture(scope="module")
def made(zoo: Path) -> MemoryStorage:
    return filled(zoo)


@pytest.fixture
def source(made: MemoryStorage) -> Registry:
    return Registry.over(made)


@pytest.fixture
def target() -> Registry:
    return Registry.over(MemoryStorage("target"), create=True)


def test_a_family_keeps_its_versions_aliases_and_bytes(source: Registry, target: Registry) -> None:
    result = api.push("mlp", target, registry=source)
    assert result.published == 4
    assert names(target) == names(source)
    assert [number for task, number, _ in names(target) if task == "task-00"] == [1, 3]
    assert target.resolve("mlp", "task-00", revision="prod").version == 3
    assert api.verify("mlp", registry=target).ok
    here = {path: source.storage.read(path) for path in source.storage.list("families")}
    there = {path: target.storage.read(path) for path in target.storage.list("families")}
    # All but what was withdrawn.
    assert there.items() <= here.items()
    assert result.size_bytes <= sum(map(len, there.values()))


@pytest.mark.parametrize(
    "vectors", ["v1/registry", "v1/groups/registry", "v1/files/registry", "v1/adapters/registry"]
)
def test_every_array_that_there_is_goes_along(vectors: str, target: Registry) -> None:
    folder = VECTORS.parent / vectors
    source = Registry.open(str(folder))
    (family,) = source.state().families
    api.push(family, target, registry=source)
    assert api.verify(family, registry=target).ok
    reached = {entry.digest for entry in source.state().models()}
    wanted = {
        path
        for path in source.storage.list("families")
        if "/models/" not in path or path.endswith("models/zarr.json") or path.split("/")[3] in reached
    }
    assert wanted == set(target.storage.list("families"))


def test_a_number_that_was_withdrawn_is_used_up_there_too(
    source: Registry, target: Registry, zoo: Path
) -> None:
    api.push("mlp", target, registry=source)
    assert target.state().next_version("mlp", "task-00") == 4
    with pytest.raises(Exception, match="no version or alias"):
        target.resolve("mlp", "task-00", revision=2)


def test_what_is_there_is_not_transferred_again(source: Registry, target: Registry) -> None:
    first = api.push("mlp", target, registry=source)
    again = api.push("mlp", target, registry=source)
    assert first.objects > 10
    assert (again.objects, again.size_bytes, again.published, again.commits) == (0, 0, 0, ())
    assert again.versions == first.versions


def test_one_version_is_moved_alone_and_keeps_its_number(source: Registry, target: Registry) -> None:
    result = api.push("mlp", target, "task-00@prod", registry=source)
    assert result.versions == (("task-00", 3, 3),)
    assert [(task, number) for task, number, _ in names(target)] == [("task-00", 3)]
    assert target.state().families["mlp"].tasks["task-00"].aliases == {}
    api.push("mlp", target, registry=source)
    assert {digest for *_, digest in names(target)} == {digest for *_, digest in names(source)}


def test_where_the_task_exists_new_versions_follow(source: Registry, target: Registry, zoo: Path) -> None:
    api.push("mlp", target, "task-01", registry=source)
    api.set_alias("mlp", "task-01", "prod", registry=target)
    api.add(zoo / "task-02.safetensors", family="mlp", task="task-01", registry=target)
    own = target.resolve("mlp", "task-01", revision=2).digest
    other = Registry.over(MemoryStorage("third"), create=True)
    fill(other, zoo)
    api.add(zoo / "task-00.safetensors", family="mlp", task="task-01", registry=other)
    api.set_alias("mlp", "task-01@2", "prod", registry=other)
    result = api.push("mlp", target, registry=other)
    assert ("task-01", 2, 3) in result.versions
    assert target.resolve("mlp", "task-01", revision=2).digest == own
    assert result.kept_aliases == ("task-01@prod",)
    assert target.resolve("mlp", "task-01", revision="prod").version == 1
    api.mirror(target, registry=other)
    assert target.resolve("mlp", "task-01", revision="prod").version == 3


def test_another_architecture_is_refused(source: Registry, target: Registry, tmp_path: Path) -> None:
    from zoo_support import make_zoo  # noqa: PLC0415

    api.build(make_zoo(tmp_path / "zoo", models=2), family="mlp", registry=target)
    before = target.state()
    with pytest.raises(IncompatibleError) as caught:
        api.push("mlp", target, registry=source)
    assert caught.value.kind == "incompatible/architecture"
    assert target.state() == before


def test_a_registry_is_not_moved_onto_itself(source: Registry) -> None:
    with pytest.raises(InvalidInputError) as caught:
        api.push("mlp", Registry.over(source.storage), registry=source)
    assert caught.value.kind == "invalid-input/same-registry"


@pytest.mark.parametrize("point", [0, 1, 4, 10, 20])
def test_a_transfer_that_was_cut_off_goes_on(source: Registry, point: int) -> None:
    storage = MemoryStorage("cut")
    Registry.over(storage, create=True)
    with pytest.raises(StorageError):
        api.push("mlp", Registry.over(FailingStorage(storage, point)), registry=source)
    assert Registry.over(storage).state().number == 0
    present = sum(1 for _ in storage.list("families"))
    whole = api.push("mlp", Registry.over(MemoryStorage("x"), create=True), registry=source)
    rest = api.push("mlp", Registry.over(storage), registry=source)
    assert rest.objects <= whole.objects - max(0, present - 3)
    assert names(Registry.over(storage)) == names(source)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_flipped_bit_is_noticed_at_either_end(source: Registry, target: Registry, side: str) -> None:
    inner = source.storage if side == "source" else target.storage
    broken = FlippingStorage(inner, lambda path: path.endswith("core/c/0"))
    here = Registry.over(broken) if side == "source" else source
    there = Registry.over(broken) if side == "target" else target
    with pytest.raises((FormatError, StorageError)) as caught:
        api.push("mlp", there, registry=here)
    assert caught.value.kind in {"format/digest", "storage/conflict"}
    assert target.state().families == {}


def test_many_actions_are_cut_into_commits_at_tasks(
    source: Registry, target: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uws_store.api.moved_names._MOST_ACTIONS", 3)
    result = api.push("mlp", target, registry=source)
    assert len(result.commits) > 1
    assert result.published == 4
    assert names(target) == names(source)
    assert target.resolve("mlp", "task-00", revision="prod").version == 3


def test_the_commands_move_families(tmp_path: Path, zoo: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    run_well("build", zoo, "--family", "mlp", "--registry", first)
    shown = run_well("push", "mlp/task-01", second, "--registry", first)
    assert "1 new there" in shown.stdout
    pulled = run_well("pull", first, "mlp", "--registry", third, "--json").document
    assert pulled["families"][0]["published"] == 3
    mirrored = run_well("mirror", second, "--registry", first, "--quiet").stdout
    assert mirrored.splitlines() == ["mlp/task-00@1", "mlp/task-01@1", "mlp/task-02@1"]
    assert run("push", "none", second, "--registry", first).error_kind == "not-found/family"
    assert run_well("verify", "mlp", "--registry", second).code == 0
