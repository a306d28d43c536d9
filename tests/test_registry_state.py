"""Any sequence of publications by several writers, with faults, against a plain dict."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from storage_support import DIGEST, FaultyStorage, fail_before, lose_the_answer, repeat_the_request

from uws_store.errors import StorageError, UwsError
from uws_store.layout import HEAD_PATH
from uws_store.metadata.log import Action, AliasAction, BasisAction, DeleteAction, FamilyAction, ModelAction
from uws_store.names import collision_key
from uws_store.registry import Registry, RegistryState
from uws_store.registry import registry as registry_module
from uws_store.storage import MemoryStorage

WRITERS = 3
families = st.sampled_from(["alpha", "Alpha", "beta"])
tasks = st.sampled_from(["one", "ONE", "two/three", "vier é"])
aliases = st.sampled_from(["prod", "test"])
writers = st.integers(0, WRITERS - 1)
faults = st.sampled_from([None, None, None, lose_the_answer, repeat_the_request, fail_before])

Key = tuple[str, str]


class Model:
    """The registry as dicts, written without a look at the code under test."""

    def __init__(self) -> None:
        self.revisions: dict[str, int] = {}
        self.last: dict[Key, int] = {}
        self.live: dict[tuple[str, str, int], int] = {}
        self.aliases: dict[tuple[str, str, str], int] = {}

    def accepts(self, action: Action) -> bool:
        match action:
            case FamilyAction(family=family):
                return all(collision_key(family) != collision_key(other) for other in self.revisions)
            case BasisAction(family=family, revision=revision):
                return self.revisions.get(family, -1) == revision - 1
            case ModelAction(family=family, task=task, version=version, basis_revision=revision):
                others = [other for where, other in self.last if where == family and other != task]
                return (
                    1 <= revision <= self.revisions.get(family, -1)
                    and version == self.last.get((family, task), 0) + 1
                    and all(collision_key(task) != collision_key(other) for other in others)
                )
            case AliasAction(family=family, task=task, alias=alias, version=None):
                return (family, task, alias) in self.aliases
            case AliasAction(family=family, task=task, version=int(version)):
                return (family, task, version) in self.live
            case DeleteAction(family=family, task=task, version=version):
                held = {(f, t, v) for (f, t, _), v in self.aliases.items()}
                return (family, task, version) in self.live and (family, task, version) not in held
            case _:
                raise AssertionError(action)

    def apply(self, action: Action) -> None:
        match action:
            case FamilyAction(family=family):
                self.revisions[family] = 0
            case BasisAction(family=family, revision=revision):
                self.revisions[family] = revision
            case ModelAction(family=family, task=task, version=version, size_bytes=size_bytes):
                self.last[family, task] = version
                self.live[family, task, version] = size_bytes
            case AliasAction(family=family, task=task, alias=alias, version=None):
                del self.aliases[family, task, alias]
            case AliasAction(family=family, task=task, alias=alias, version=int(version)):
                self.aliases[family, task, alias] = version
            case DeleteAction(family=family, task=task, version=version):
                del self.live[family, task, version]


def as_model(state: RegistryState) -> Model:
    model = Model()
    for family in state.families.values():
        model.revisions[family.name] = len(family.bases)
        for task in family.tasks.values():
            model.last[family.name, task.name] = task.last_version
            for version, entry in task.versions.items():
                model.live[family.name, task.name, version] = entry.size_bytes
            for alias, version in task.aliases.items():
                model.aliases[family.name, task.name, alias] = version
    return model


class Publications(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.storage = MemoryStorage()
        Registry.over(self.storage, create=True)
        self.storages = [FaultyStorage(self.storage) for _ in range(WRITERS)]
        self.writers = [Registry.over(storage) for storage in self.storages]
        self.reader = Registry.over(self.storage)
        self.model = Model()
        self.commits = 0

    def publish(self, who: int, action: Action, fault: object = None) -> None:
        expected = self.model.accepts(action)
        self.storages[who].fault = fault  # type: ignore[assignment]
        try:
            self.writers[who].publish(lambda _: [action])
        except StorageError:
            assert expected
            assert fault is fail_before
        except UwsError:
            assert not expected
        else:
            assert expected
            assert fault is not fail_before
            self.model.apply(action)
            self.commits += 1
        self.storages[who].fault = None

    @rule(who=writers, family=families, fault=faults)
    def family(self, who: int, family: str, fault: object) -> None:
        self.publish(who, FamilyAction(family=family, architecture=DIGEST), fault)

    @rule(who=writers, family=families, ahead=st.sampled_from([1, 1, 1, 0, 2]), fault=faults)
    def basis(self, who: int, family: str, ahead: int, fault: object) -> None:
        revision = max(1, self.model.revisions.get(family, 0) + ahead)
        self.publish(who, BasisAction(family=family, revision=revision, digest=DIGEST, size_bytes=1), fault)

    @rule(who=writers, names=st.tuples(families, tasks), ahead=st.sampled_from([1, 1, 1, 0, 2]), fault=faults)
    def model_(self, who: int, names: Key, ahead: int, fault: object) -> None:
        version = max(1, self.model.last.get(names, 0) + ahead)
        self.publish(who, self.model_action(names, version), fault)

    @rule(first=writers, second=writers, names=st.tuples(families, tasks))
    def two_models_at_once(self, first: int, second: int, names: Key) -> None:
        """The second publishes while the first is at work; each asks for the next version."""
        action = self.model_action(names, self.model.last.get(names, 0) + 1)
        if first == second or not self.model.accepts(action):
            return
        asked = 0

        def slowly(state: RegistryState) -> list[Action]:
            nonlocal asked
            asked += 1
            if asked == 1:
                self.publish(second, action)
            return [self.model_action(names, state.next_version(*names))]

        self.writers[first].publish(slowly)
        assert asked == 2
        self.model.apply(self.model_action(names, self.model.last[names] + 1))
        self.commits += 1

    @rule(who=writers, names=st.tuples(families, tasks), alias=aliases, version=st.none() | st.integers(1, 4))
    def alias(self, who: int, names: Key, alias: str, version: int | None) -> None:
        self.publish(who, AliasAction(family=names[0], task=names[1], alias=alias, version=version))

    @rule(who=writers, names=st.tuples(families, tasks), version=st.integers(1, 4))
    def delete(self, who: int, names: Key, version: int) -> None:
        self.publish(who, DeleteAction(family=names[0], task=names[1], version=version))

    @rule()
    def lose_the_hint(self) -> None:
        self.storage.delete(HEAD_PATH)

    def model_action(self, names: Key, version: int) -> ModelAction:
        return ModelAction(
            family=names[0],
            task=names[1],
            version=version,
            basis_revision=1,
            digest=DIGEST,
            size_bytes=self.commits,
            exact=False,
        )

    @invariant()
    def every_reader_sees_what_was_published(self) -> None:
        if not hasattr(self, "model"):
            return
        followed = self.reader.state()
        anew = Registry.over(self.storage).state()
        assert followed == anew
        assert followed.number == self.commits
        assert vars(as_model(followed)) == vars(self.model)
        for (family, task, version), size_bytes in self.model.live.items():
            assert followed.resolve(family, task, revision=version).size_bytes == size_bytes


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_LONGEST_WAIT_S", 0.0)


TestPublications = Publications.TestCase
TestPublications.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
