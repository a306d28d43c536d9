"""Publishing: what a commit does, and what is refused with nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from registry_support import alias, delete, of_three_commits, refusal_of
from storage_support import DIGEST, found_family, next_models

from uws_store.errors import (
    FormatError,
    InvalidInputError,
    NotFoundError,
)
from uws_store.layout import HEAD_PATH, commit_path
from uws_store.metadata.log import (
    Action,
    AliasAction,
    BasisAction,
    FamilyAction,
)
from uws_store.registry import Registry, RegistryState


@pytest.fixture
def registry() -> Registry:
    return of_three_commits()


class TestPublishing:
    def test_a_commit_says_who_wrote_what_when(self, registry: Registry) -> None:
        commit = registry.publish(next_models("ten"))
        assert commit.number == 4
        assert commit.parent is not None
        assert commit.tool.startswith("uws-store ")
        assert [action.op for action in commit.actions] == ["model"]
        assert registry.resolve("digits", "ten").time == commit.time

    def test_adding_a_model_changes_no_byte_of_another_object(self, tmp_path: Path) -> None:
        registry = Registry.init(str(tmp_path))
        registry.publish(found_family())

        def contents() -> dict[str, bytes]:
            paths = [path for path in registry.storage.list("") if path != HEAD_PATH]
            return {path: registry.storage.read(path) for path in paths}

        before = contents()
        registry.publish(next_models("seven"))
        after = contents()
        assert {path: after[path] for path in before} == before
        assert set(after) - set(before) == {commit_path(2)}

    def test_what_the_callback_raises_publishes_nothing(self, registry: Registry) -> None:
        before = registry.state()

        def fail(_: RegistryState) -> Sequence[Action]:
            raise LookupError

        with pytest.raises(LookupError):
            registry.publish(fail)
        assert registry.state() == before

    def test_actions_that_cannot_be_written_are_a_typed_error(self, registry: Registry) -> None:
        with pytest.raises(InvalidInputError) as caught:
            registry.publish(lambda _: [alias("7", 1)])
        assert caught.value.kind == "invalid-input/action"
        assert [problem.loc for problem in caught.value.problems] == ["/alias"]

    def test_nothing_is_not_published(self, registry: Registry) -> None:
        assert refusal_of(registry).kind == "invalid-input/no-actions"

    def test_a_family_is_founded_once(self, registry: Registry) -> None:
        again = FamilyAction(family="digits", architecture=DIGEST)
        assert refusal_of(registry, again).kind == "already-exists/family"
        new = FamilyAction(family="new", architecture=DIGEST)
        assert refusal_of(registry, new, new).kind == "already-exists/family"

    @pytest.mark.parametrize("name", ["Digits", "DIGITS", "diGits"])
    def test_families_that_some_disks_cannot_tell_apart_are_refused(
        self, registry: Registry, name: str
    ) -> None:
        found = refusal_of(registry, FamilyAction(family=name, architecture=DIGEST))
        assert found.kind == "already-exists/name"
        assert "'digits'" in str(found)

    @pytest.mark.parametrize("task", ["Seven", "ORG/NINE É 😀"])
    def test_tasks_that_some_readers_cannot_tell_apart_are_refused(
        self, registry: Registry, task: str
    ) -> None:
        actions = next_models(task)(registry.state())
        assert refusal_of(registry, *actions).kind == "already-exists/name"

    def test_tasks_that_collide_within_one_commit_are_refused(self, registry: Registry) -> None:
        actions = next_models("straße", "STRASSE")(registry.state())
        assert refusal_of(registry, *actions).kind == "already-exists/name"

    def test_a_deleted_task_keeps_its_name(self, registry: Registry) -> None:
        registry.publish(lambda _: [delete(1, "eight")])
        assert refusal_of(registry, *next_models("Eight")(registry.state())).kind == "already-exists/name"

    @pytest.mark.parametrize("version", [1, 2, 4, 100])
    def test_a_version_is_the_next_one(self, registry: Registry, version: int) -> None:
        action = next_models("seven")(registry.state())[0].model_copy(update={"version": version})
        assert refusal_of(registry, action).kind == "invalid-input/version"

    @pytest.mark.parametrize("revision", [1, 3])
    def test_a_basis_revision_is_the_next_one(self, registry: Registry, revision: int) -> None:
        action = BasisAction(family="digits", revision=revision, digest=DIGEST, size_bytes=1)
        assert refusal_of(registry, action).kind == "invalid-input/revision"

    def test_models_keep_their_basis_when_there_is_a_newer_one(self, registry: Registry) -> None:
        newer = "f" * 64
        registry.publish(
            lambda state: [
                BasisAction(
                    family="digits", revision=state.next_revision("digits"), digest=newer, size_bytes=1
                ),
                next_models("seven")(state)[0].model_copy(update={"basis_revision": 2}),
            ]
        )
        assert registry.resolve("digits", "seven").basis_digest == newer
        assert registry.resolve("digits", "seven", revision=2).basis_digest == DIGEST
        latest = registry.state().families["digits"].latest_basis
        assert latest is not None
        assert latest.revision == 2

    @pytest.mark.parametrize(
        ("action", "kind"),
        [
            (BasisAction(family="none", revision=1, digest=DIGEST, size_bytes=1), "not-found/family"),
            (next_models("t", family="none")(RegistryState())[0], "not-found/family"),
            (AliasAction(family="none", task="t", alias="a", version=1), "not-found/family"),
            (alias("a", 1, "none"), "not-found/task"),
            (delete(1, "none"), "not-found/task"),
            (alias("a", 3), "not-found/version"),
            (alias("a", None), "not-found/version"),
            (delete(3), "not-found/version"),
        ],
    )
    def test_actions_on_what_is_not_there_are_refused(
        self, registry: Registry, action: Action, kind: str
    ) -> None:
        assert refusal_of(registry, action).kind == kind

    def test_a_model_needs_a_basis_that_is_there(self, registry: Registry) -> None:
        action = next_models("t")(registry.state())[0].model_copy(update={"basis_revision": 2})
        assert refusal_of(registry, action).kind == "not-found/basis"

    def test_one_bad_action_keeps_the_others_out(self, registry: Registry) -> None:
        good = next_models("ten")(registry.state())[0]
        refusal_of(registry, good, delete(9))
        with pytest.raises(NotFoundError):
            registry.resolve("digits", "ten")

    def test_an_alias_moves_and_goes(self, registry: Registry) -> None:
        for version in (1, 2):
            registry.publish(lambda _, version=version: [alias("prod", version)])  # type: ignore[misc]
            assert registry.resolve("digits", "seven", revision="prod").version == version
        registry.publish(lambda _: [alias("prod", None)])
        with pytest.raises(NotFoundError):
            registry.resolve("digits", "seven", revision="prod")

    def test_a_version_with_an_alias_is_not_deleted(self, registry: Registry) -> None:
        registry.publish(lambda _: [alias("prod", 2)])
        found = refusal_of(registry, delete(2))
        assert found.kind == "invalid-input/aliased"
        assert "prod" in str(found)
        registry.publish(lambda _: [alias("prod", 1), delete(2)])
        assert registry.resolve("digits", "seven").version == 1

    def test_a_deleted_version_is_gone_and_its_number_is_not_used_again(self, registry: Registry) -> None:
        registry.publish(lambda _: [delete(2)])
        assert registry.resolve("digits", "seven").version == 1
        assert refusal_of(registry, delete(2)).kind == "not-found/version"
        assert refusal_of(registry, alias("a", 2)).kind == "not-found/version"
        registry.publish(next_models("seven"))
        assert registry.resolve("digits", "seven").version == 3

    def test_a_task_whose_versions_were_all_deleted_says_so(self, registry: Registry) -> None:
        registry.publish(lambda _: [delete(1, "eight")])
        with pytest.raises(NotFoundError) as caught:
            registry.resolve("digits", "eight")
        assert caught.value.kind == "not-found/version"
        assert [entry.task for entry in registry.state().models() if entry.task == "eight"] == []
        with pytest.raises(NotFoundError) as caught:
            registry.resolve("digits", "eigth")
        assert "'eight'" not in str(caught.value)

    def test_a_commit_may_hold_a_whole_zoo(self, registry: Registry) -> None:
        names = [f"task-{number:04d} {'x' * 100}" for number in range(1000)]
        registry.publish(next_models(*names))
        state = Registry.over(registry.storage).state()
        assert sum(1 for _ in state.models()) == 1004
        assert state == registry.state()

    def test_a_commit_that_is_too_large_to_be_read_is_not_written(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = registry.state()
        monkeypatch.setattr("uws_store.metadata.log.Commit.max_bytes", 1000)
        with pytest.raises(FormatError) as caught:
            registry.publish(next_models(*(f"task-{number}" for number in range(10))))
        assert caught.value.kind == "format/size"
        assert registry.state() == before
