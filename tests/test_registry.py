"""A registry: making and opening it, finding what names stand for, and states that do not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_support import alias, delete, of_three_commits
from storage_support import DIGEST, CountingStorage, found_family, next_models

from uws_store.errors import (
    AlreadyExistsError,
    FormatError,
    InvalidInputError,
    NotFoundError,
)
from uws_store.layout import HEAD_PATH, LOG_PREFIX, REGISTRY_DOCUMENT, commit_path
from uws_store.metadata.log import (
    Action,
    ModelAction,
    RegistryDocument,
)
from uws_store.registry import Registry, RegistryState, split_task
from uws_store.storage import LocalStorage, MemoryStorage, open_storage


@pytest.fixture
def registry() -> Registry:
    return of_three_commits()


class TestOpening:
    def test_a_registry_that_was_made_is_opened(self, tmp_path: Path) -> None:
        url = str(tmp_path / "new" / "registry")
        made = Registry.init(url)
        opened = Registry.open(url)
        assert opened.document == made.document
        assert opened.url == url
        assert opened.state() == RegistryState()
        assert sorted(path.name for path in Path(url).iterdir()) == [REGISTRY_DOCUMENT]

    def test_each_registry_has_its_own_id(self, tmp_path: Path) -> None:
        ids = {Registry.init(str(tmp_path / name)).document.id for name in "abc"}
        assert len(ids) == 3

    def test_opening_makes_nothing_unless_asked(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError) as caught:
            Registry.open(str(tmp_path / "none"))
        assert caught.value.kind == "not-found/registry"
        assert f"uws-store init {tmp_path / 'none'}" in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        made = Registry.open(str(tmp_path / "none"), create=True)
        assert Registry.open(str(tmp_path / "none"), create=True).document == made.document

    def test_a_folder_that_is_no_registry_is_not_opened(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError) as caught:
            Registry.open(str(tmp_path))
        assert caught.value.kind == "not-found/registry"
        assert list(tmp_path.iterdir()) == []

    def test_a_registry_is_not_made_twice(self, tmp_path: Path) -> None:
        made = Registry.init(str(tmp_path))
        with pytest.raises(AlreadyExistsError) as caught:
            Registry.init(str(tmp_path))
        assert caught.value.kind == "already-exists/registry"
        assert Registry.open(str(tmp_path)).document == made.document

    def test_a_registry_is_not_made_among_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"")
        for make in (Registry.init, lambda url: Registry.open(url, create=True)):
            with pytest.raises(InvalidInputError) as caught:
                make(str(tmp_path))
            assert caught.value.kind == "invalid-input/not-empty"
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_the_rest_of_a_killed_init_is_in_nobodys_way(self, tmp_path: Path) -> None:
        (tmp_path / ".tmp-0123").write_bytes(b"{")
        assert Registry.init(str(tmp_path)).state().number == 0

    def test_a_registry_of_a_newer_format_is_refused_as_such(self) -> None:
        storage = MemoryStorage()
        storage.put(REGISTRY_DOCUMENT, b'{"uws":2,"layout":"new"}')
        for create in (False, True):
            with pytest.raises(FormatError) as caught:
                Registry.over(storage, create=create)
            assert caught.value.kind == "format/newer-version"

    @pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"{" * 70_000])
    def test_a_damaged_registry_document_is_refused(self, data: bytes) -> None:
        storage = MemoryStorage()
        storage.put(REGISTRY_DOCUMENT, data)
        with pytest.raises(FormatError):
            Registry.over(storage, create=True)
        assert storage.read(REGISTRY_DOCUMENT) == data

    def test_what_is_stored_says_what_it_is(self, registry: Registry) -> None:
        stored = registry.storage.read(REGISTRY_DOCUMENT)
        assert RegistryDocument.parse(stored, where="x") == registry.document
        assert json.loads(stored)["uws"] == 1
        paths = list(registry.storage.list(LOG_PREFIX))
        assert paths == [commit_path(1), commit_path(2), commit_path(3), HEAD_PATH]
        assert paths[0] == "_log/00000000000000000001.json"


class TestResolving:
    def test_a_task_alone_is_its_newest_version(self, registry: Registry) -> None:
        found = registry.resolve("digits", "seven")
        assert (found.family, found.task, found.version, found.commit) == ("digits", "seven", 2, 3)
        assert (found.basis_revision, found.basis_digest, found.digest) == (1, DIGEST, DIGEST)
        assert (found.size_bytes, found.exact) == (17, True)
        assert registry.resolve("digits", "eight").version == 1

    @pytest.mark.parametrize("revision", [1, "1", "01", "stable"])
    def test_a_version_and_an_alias_are_found(self, registry: Registry, revision: int | str) -> None:
        registry.publish(lambda _: [alias("stable", 1)])
        assert registry.resolve("digits", "seven", revision=revision).version == 1

    def test_a_name_is_found_in_either_spelling(self, registry: Registry) -> None:
        assert registry.resolve("digits", "org/nine e\u0301 😀").task == "org/nine é 😀"
        assert registry.state().next_version("digits", "org/nine e\u0301 😀") == 2

    @pytest.mark.parametrize(
        ("names", "revision", "kind", "hint"),
        [
            (("digit", "seven"), None, "not-found/family", "'digits'"),
            (("other", "seven"), None, "not-found/family", "digits"),
            (("digits", "sevem"), None, "not-found/task", "'seven'"),
            (("digits", "Seven"), None, "not-found/task", "'seven'"),
            (("digits", "zzz"), None, "not-found/task", "eight"),
            (("digits", "../x"), None, "not-found/task", "eight"),
            (("digits", "seven"), 3, "not-found/version", "1, 2"),
            (("digits", "seven"), 0, "not-found/version", "1, 2"),
            (("digits", "seven"), -1, "not-found/version", "1, 2"),
            (("digits", "seven"), "", "not-found/version", "1, 2"),
            (("digits", "seven"), "prod", "not-found/version", "stable (1)"),
            (("digits", "seven"), "9" * 5000, "not-found/version", "1, 2"),
        ],
    )
    def test_what_is_not_there_is_not_found_and_what_is_near_is_named(
        self, registry: Registry, names: tuple[str, str], revision: int | str | None, kind: str, hint: str
    ) -> None:
        registry.publish(lambda _: [alias("stable", 1)])
        with pytest.raises(NotFoundError) as caught:
            registry.resolve(*names, revision=revision)
        assert caught.value.kind == kind
        assert hint in str(caught.value)

    def test_an_empty_registry_says_so(self) -> None:
        with pytest.raises(NotFoundError) as caught:
            Registry.over(MemoryStorage(), create=True).resolve("digits", "seven")
        assert caught.value.kind == "not-found/family"

    @pytest.mark.parametrize("revision", [True, 1.0, b"1", [1]])
    def test_a_revision_of_another_type_is_refused(self, registry: Registry, revision: object) -> None:
        with pytest.raises(InvalidInputError) as caught:
            registry.resolve("digits", "seven", revision=revision)  # type: ignore[arg-type]
        assert caught.value.kind == "invalid-input/revision"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("seven", ("seven", None)),
            ("seven@3", ("seven", 3)),
            ("seven@prod", ("seven", "prod")),
            ("org/nine é@1", ("org/nine é", 1)),
            ("seven@٣", ("seven", "٣")),
            ("seven@-1", ("seven", "-1")),
        ],
    )
    def test_a_task_and_its_revision_are_taken_apart(
        self, text: str, expected: tuple[str, int | str | None]
    ) -> None:
        assert split_task(text) == expected

    @pytest.mark.parametrize("text", ["@", "@3", "seven@", "a@b@c", "a@@3"])
    def test_half_a_revision_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            split_task(text)
        assert caught.value.kind == "invalid-input/revision"


class TestState:
    def test_a_state_is_not_changed_by_later_commits(self, registry: Registry) -> None:
        before = registry.state()
        registry.publish(next_models("ten"))
        registry.publish(lambda _: [delete(1)])
        assert "ten" not in before.families["digits"].tasks
        assert set(before.families["digits"].tasks["seven"].versions) == {1, 2}
        assert registry.state().number == before.number + 2

    def test_a_state_cannot_be_changed_by_hand(self, registry: Registry) -> None:
        with pytest.raises(TypeError):
            registry.state().families["x"] = registry.state().families["digits"]  # type: ignore[index]

    def test_models_are_listed_in_order(self, registry: Registry) -> None:
        listed = [(entry.task, entry.version) for entry in registry.state().models()]
        assert listed == [("eight", 1), ("org/nine é 😀", 1), ("seven", 1), ("seven", 2)]

    def test_without_refresh_nothing_is_read(self, registry: Registry) -> None:
        counting = CountingStorage(registry.storage)
        reader = Registry.over(counting)
        first = reader.state(refresh=False)  # the first call has nothing to go by
        registry.publish(next_models("ten"))
        counting.requests.clear()
        assert reader.state(refresh=False) is first
        assert counting.requests == []
        assert reader.state().number == first.number + 1

    def test_a_refresh_that_finds_nothing_costs_one_request(self, registry: Registry) -> None:
        counting = CountingStorage(registry.storage)
        reader = Registry.over(counting)
        reader.state()
        counting.requests.clear()
        reader.state()
        assert len(counting.requests) == 1

    def test_publishing_costs_four_requests_after_the_first_reading_and_five_later(
        self, registry: Registry
    ) -> None:
        counting = CountingStorage(registry.storage)
        writer = Registry.over(counting)
        writer.state()
        counting.requests.clear()
        writer.publish(next_models("ten"))
        # The registry's document, its refusal to be created again, the commit and the head.
        assert len(counting.requests) == 4
        counting.requests.clear()
        writer.publish(next_models("eleven"))
        assert len(counting.requests) == 5

    def test_a_reader_writes_and_lists_nothing(self, registry: Registry) -> None:
        counting = CountingStorage(registry.storage)
        reader = Registry.over(counting)
        reader.resolve("digits", "seven")
        assert {request.method for request in counting.requests} <= {"size", "read"}

    def test_a_registry_on_disk_can_be_read_from_another_place(self, tmp_path: Path) -> None:
        written = Registry.init(str(tmp_path / "a"))
        written.publish(found_family())
        (tmp_path / "a").rename(tmp_path / "b")
        assert Registry.open(f"file://{tmp_path}/b").state() == written.state(refresh=False)


def test_registries_in_memory_and_on_disk_hold_the_same(tmp_path: Path) -> None:
    steps: list[Callable[[RegistryState], list[Action]]] = [
        found_family(),
        next_models("a", "b"),
        next_models("a"),
        lambda _: [alias("prod", 1, "a")],
        lambda _: [delete(2, "a")],
    ]
    states = []
    for storage in (MemoryStorage(), LocalStorage(tmp_path)):
        registry = Registry.over(storage, create=True)
        for step in steps:
            registry.publish(step)
        states.append([(entry.task, entry.version) for entry in Registry.over(storage).state().models()])
    assert states == [[("a", 1), ("b", 1)]] * 2


def test_a_shared_memory_registry_is_opened_by_url() -> None:
    Registry.init("memory://registry-by-url").publish(found_family())
    assert "digits" in Registry.open("memory://registry-by-url").state().families
    assert open_storage("memory://registry-by-url").size(commit_path(1)) is not None


def test_a_model_action_is_what_it_says() -> None:
    action = next_models("seven")(RegistryState())[0]
    assert isinstance(action, ModelAction)
    assert action.version == 1
