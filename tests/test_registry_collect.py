"""Garbage collection: what is removed, when, and what never is, whoever publishes meanwhile."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from storage_support import CountingStorage

from uws_store import api
from uws_store.errors import FormatError, InvalidInputError, StorageError
from uws_store.layout import commit_path, model_prefix, pending_path
from uws_store.metadata.log import Action, BasisAction, DeleteAction, FamilyAction, ModelAction
from uws_store.metadata.pending import PendingNote
from uws_store.registry import Publication, Registry, RegistryState, collect, committing, pending
from uws_store.registry.collect import LEAST_GRACE_S
from uws_store.storage import MemoryStorage

DAY = 86400.0
BASIS = "b" * 64


class Clock:
    """The storage's clock."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    storage = MemoryStorage("gc", clock=clock)
    made = Registry.over(storage, create=True)
    storage.put(f"families/f/basis/{BASIS}/zarr.json", b"basis")
    made.publish(
        lambda _: [
            FamilyAction(family="f", architecture="a" * 64),
            BasisAction(family="f", revision=1, digest=BASIS, size_bytes=5),
        ]
    )
    for number in range(4):
        publish(made, number)
        clock.now += DAY
    return made


def digest(number: int) -> str:
    return f"{number:064x}"


def prefix(number: int) -> str:
    return model_prefix("f", digest(number))


def upload(registry: Registry, number: int) -> dict[str, int]:
    objects = {"core/c/0": b"core", "zarr.json": b"document"}
    for path, data in objects.items():
        registry.storage.put_if_absent(f"{prefix(number)}/{path}", data)
    return {path: len(data) for path, data in objects.items()}


def naming(number: int, task: str = "t") -> Callable[[RegistryState], list[Action]]:
    return lambda state: [
        ModelAction(
            family="f",
            task=task,
            version=state.next_version("f", task),
            basis_revision=1,
            digest=digest(number),
            size_bytes=12,
            exact=False,
        )
    ]


def publish(registry: Registry, number: int, *, task: str = "t") -> None:
    upload(registry, number)
    registry.publish(naming(number, task))


def withdraw(registry: Registry, version: int) -> None:
    registry.publish(lambda _: [DeleteAction(family="f", task="t", version=version)])


def has(registry: Registry, number: int) -> bool:
    return any(True for _ in registry.storage.list(prefix(number)))


def visit(registry: Registry, clock: Clock, *, after_s: float = 0.0) -> list[str]:
    clock.now += after_s
    return [removal.prefix for removal in collect(registry, grace_s=DAY).removed]


def test_what_a_version_reaches_is_never_removed(registry: Registry, clock: Clock) -> None:
    for _ in range(5):
        assert visit(registry, clock, after_s=2 * DAY) == []
    assert all(has(registry, number) for number in range(4))
    assert registry.storage.size(f"families/f/basis/{BASIS}/zarr.json") == 5


def test_it_takes_two_visits_a_grace_period_apart(registry: Registry, clock: Clock) -> None:
    withdraw(registry, 2)
    first = collect(registry, grace_s=DAY)
    assert [(item.prefix, item.objects, item.size_bytes) for item in first.marked] == [(prefix(1), 2, 12)]
    assert first.removed == ()
    assert visit(registry, clock, after_s=DAY - 1) == []
    assert has(registry, 1)
    assert visit(registry, clock, after_s=1) == [prefix(1)]
    assert not has(registry, 1)
    assert all(has(registry, number) for number in (0, 2, 3))
    visit(registry, clock, after_s=2 * DAY)
    assert list(registry.storage.list("_pending")) == []


def test_what_is_young_is_not_marked(registry: Registry, clock: Clock) -> None:
    upload(registry, 9)
    found = collect(registry, grace_s=DAY)
    assert found.marked == ()
    assert [item.prefix for item in found.young] == [prefix(9)]
    clock.now += DAY
    assert [item.prefix for item in collect(registry, grace_s=DAY).marked] == [prefix(9)]


def test_objects_of_a_version_that_shares_them_are_kept(registry: Registry, clock: Clock) -> None:
    publish(registry, 1, task="other")
    withdraw(registry, 2)
    visit(registry, clock)
    assert visit(registry, clock, after_s=2 * DAY) == []
    assert has(registry, 1)


def test_a_dry_run_changes_nothing(registry: Registry, clock: Clock) -> None:
    withdraw(registry, 2)
    visit(registry, clock)
    clock.now += 2 * DAY
    counting = CountingStorage(registry.storage)
    before = {path: registry.storage.size(path) for path in registry.storage.list("")}
    result = collect(Registry.over(counting), dry_run=True, keep_last=1, grace_s=DAY)
    assert [version for _, _, version in result.withdrawn] == [1, 3]
    assert {request.method for request in counting.requests} <= {"read", "size", "list", "modified"}
    assert {path: registry.storage.size(path) for path in registry.storage.list("")} == before


def test_strangers_objects_are_left_alone(registry: Registry, clock: Clock) -> None:
    for path in ("families/f/notes.txt", f"families/f/models/{'g' * 64}/x", "families/g/basis/zarr.json"):
        registry.storage.put(path, b"x")
    visit(registry, clock, after_s=2 * DAY)
    assert visit(registry, clock, after_s=2 * DAY) == []


class TestVersions:
    def test_all_but_the_last_are_withdrawn(self, registry: Registry) -> None:
        result = collect(registry, keep_last=2)
        assert result.withdrawn == (("f", "t", 1), ("f", "t", 2))
        assert sorted(registry.state().families["f"].tasks["t"].versions) == [3, 4]

    def test_what_an_alias_stands_for_is_not(self, registry: Registry) -> None:
        api.set_alias("f", "t@1", "prod", registry=registry)
        assert collect(registry, keep_last=1).withdrawn == (("f", "t", 2), ("f", "t", 3))

    def test_age_is_told_by_the_storages_clock(self, registry: Registry) -> None:
        # Published 4, 3, 2 and 1 days ago, whatever the publishers' clocks said.
        result = collect(registry, keep_last=1, older_than_s=2.5 * DAY)
        assert result.withdrawn == (("f", "t", 1), ("f", "t", 2))

    def test_withdrawn_and_removed_after_the_grace_period(self, registry: Registry, clock: Clock) -> None:
        collect(registry, keep_last=1, grace_s=DAY)
        assert visit(registry, clock, after_s=2 * DAY) == [prefix(number) for number in range(3)]
        assert Registry.over(registry.storage).resolve("f", "t").version == 4

    @pytest.mark.parametrize(
        "options",
        [{"keep_last": 0}, {"older_than_s": 1.0}, {"grace_s": LEAST_GRACE_S - 1}, {"grace_s": float("nan")}],
    )
    def test_bad_numbers_are_refused(self, registry: Registry, options: dict[str, float]) -> None:
        with pytest.raises(InvalidInputError) as caught:
            collect(registry, **options)  # type: ignore[arg-type]
        assert caught.value.kind == "invalid-input/gc"


class TestPublishers:
    def test_what_a_publisher_holds_is_kept(self, registry: Registry, clock: Clock) -> None:
        withdraw(registry, 2)
        visit(registry, clock)
        lease = PendingNote(kind="lease", prefixes=(prefix(1),))
        registry.storage.put(pending_path("lease", "0" * 32), lease.to_bytes())
        clock.now += 2 * DAY
        assert collect(registry, grace_s=DAY).held == (prefix(1),)
        assert has(registry, 1)
        # Its holder died: after a week it is nobody's.
        assert visit(registry, clock, after_s=7 * DAY) == [prefix(1)]

    def test_an_object_that_is_named_again_survives(self, registry: Registry, clock: Clock) -> None:
        withdraw(registry, 2)
        visit(registry, clock)
        clock.now += 2 * DAY
        with Publication(registry.storage) as publication:
            publication.stored(prefix(1), upload(registry, 1), reused=True)
            assert [path.split("/")[1][:5] for path in registry.storage.list("_pending")].count("lease") == 1
            assert visit(registry, clock) == []
            publication.settle()
            registry.publish(naming(1))
        assert not [path for path in registry.storage.list("_pending") if "lease" in path]
        assert visit(registry, clock) == []
        assert has(registry, 1)
        # Withdrawn again it is as unreachable as if it had never been before.
        withdraw(registry, 5)
        assert visit(registry, clock) == []
        assert visit(registry, clock, after_s=DAY) == []
        assert visit(registry, clock, after_s=DAY) == [prefix(1)]

    def test_a_quick_publication_of_new_objects_costs_no_request(self, registry: Registry) -> None:
        counting = CountingStorage(registry.storage)
        with Publication(counting) as publication:
            publication.stored(prefix(9), {"zarr.json": 8}, reused=False)
            publication.settle()
        assert counting.requests == []

    def test_a_slow_publication_holds_a_lease_and_looks_again(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pending, "_LEASE_AFTER_S", -1.0)
        with Publication(registry.storage) as publication:
            publication.stored(prefix(9), upload(registry, 9), reused=False)
            registry.storage.delete(f"{prefix(9)}/core/c/0")
            with pytest.raises(StorageError) as caught:
                publication.settle()
        assert caught.value.kind == "storage/collected"

    def test_a_publisher_waits_for_a_sweep(
        self, registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pending, "_POLL_S", 0.01)
        monkeypatch.setattr(pending, "_WAIT_FOR_SWEEP_S", 0.05)
        mark = pending_path("sweep", "1" * 32)
        registry.storage.put(mark, PendingNote(kind="sweep").to_bytes())
        with Publication(registry.storage) as publication:
            publication.stored(prefix(1), upload(registry, 1), reused=True)
            with pytest.raises(StorageError) as caught:
                publication.settle()
            assert caught.value.kind == "storage/collecting"
            monkeypatch.setattr(pending, "_WAIT_FOR_SWEEP_S", 30.0)
            timer = threading.Timer(0.05, registry.storage.delete, [mark])
            timer.start()
            publication.settle()
            timer.join()
            # A collector that was killed is not waited for.
            registry.storage.put(mark, PendingNote(kind="sweep").to_bytes())
            clock.now += pending.SWEEP_LIFE_S + 1
            publication.settle()

    def test_whatever_the_order_nothing_that_is_named_is_removed(self, clock: Clock) -> None:
        """A publisher that names an old object acts at every point of a collector's second visit."""
        for point in range(60):
            storage = MemoryStorage("race", clock=clock)
            made = Registry.over(storage, create=True)
            made.publish(
                lambda _: [
                    FamilyAction(family="f", architecture="a" * 64),
                    BasisAction(family="f", revision=1, digest=BASIS, size_bytes=5),
                ]
            )
            publish(made, 1)
            withdraw(made, 1)
            clock.now += DAY
            collect(made, grace_s=DAY)
            clock.now += 2 * DAY
            steps = _publisher(storage)
            collector = _Interrupted(storage, at=point, action=functools.partial(next, steps, None))
            collect(Registry.over(collector), grace_s=DAY)
            for _ in steps:
                pass
            live = [entry.digest for entry in Registry.over(storage).state().models()]
            if live:
                assert storage.size(f"{prefix(1)}/zarr.json") == 8
                assert storage.size(f"{prefix(1)}/core/c/0") == 4
            if collector.calls < point:
                break
        else:
            pytest.fail("the collector never came to its end")


def _publisher(storage: MemoryStorage) -> Iterator[None]:
    """Name an object that is there already: first the upload and the lease, later the rest."""
    registry = Registry.over(storage)
    with Publication(storage) as publication:
        created = [
            storage.put_if_absent(f"{prefix(1)}/{path}", data)
            for path, data in (("core/c/0", b"core"), ("zarr.json", b"document"))
        ]
        publication.stored(prefix(1), {"core/c/0": 4, "zarr.json": 8}, reused=not all(created))
        yield
        try:
            publication.settle()
        except StorageError as error:
            assert error.kind == "storage/collected"
            return
        registry.publish(naming(1, "again"))


class _Interrupted(CountingStorage):
    """Lets another act before one of its calls."""

    def __init__(self, inner: MemoryStorage, *, at: int, action: Callable[[], object]) -> None:
        super().__init__(inner)
        self.calls = 0
        self._at = at
        self._action = action

    def _tick(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            self._action()

    def size(self, path: str) -> int | None:
        self._tick()
        return super().size(path)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        self._tick()
        return super().read_at_most(path, limit_bytes)

    def put(self, path: str, data: bytes) -> None:
        self._tick()
        super().put(path, data)

    def list(self, prefix: str) -> Iterator[str]:
        self._tick()
        return super().list(prefix)

    def modified(self, path: str) -> float | None:
        self._tick()
        return super().modified(path)

    def delete(self, path: str) -> None:
        self._tick()
        super().delete(path)


@pytest.mark.parametrize("path", [commit_path(3), pending_path("lease", "2" * 32)])
def test_a_damaged_log_or_note_keeps_everything(registry: Registry, clock: Clock, path: str) -> None:
    withdraw(registry, 2)
    visit(registry, clock)
    clock.now += 2 * DAY
    registry.storage.put(path, b"{")
    registry.storage.delete("_log/head")
    before = set(registry.storage.list("families"))
    with pytest.raises(FormatError):
        collect(Registry.over(registry.storage), grace_s=DAY)
    assert set(registry.storage.list("families")) == before


def test_snapshots_of_old_checkpoints_are_removed(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "_CHECKPOINT_COMMITS", 2)
    for number in range(10, 20):
        publish(registry, number)
    snapshots = set(registry.storage.list("_log/snapshots"))
    assert len(snapshots) >= 4
    clock.now += DAY
    visit(registry, clock)
    visit(registry, clock, after_s=2 * DAY)
    left = set(registry.storage.list("_log/snapshots"))
    assert len(left) == 2
    counting = CountingStorage(registry.storage)
    assert Registry.over(counting).resolve("f", "t").version == 14
    assert len(counting.requests) == 4


def test_the_command_tells_what_it_did(tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=2)
    registry = tmp_path / "registry"
    run_well("build", zoo, "--family", "mlp", "--registry", registry)
    run_well("delete", "mlp/task-01", "--registry", registry)
    shown = run_well("gc", "--registry", registry, "--grace", "1h", "--json").document
    assert shown["removed"] == shown["marked"] == []
    assert len(shown["young"]) == 1
    said = run_well("gc", "--dry-run", "--keep-last", 1, "--registry", registry)
    assert "too young to tell" in said.stdout
    assert "it is marked once it is 1d old" in said.stderr
    assert run("gc", "--grace", "1s", "--registry", registry).error_kind == "invalid-input/gc"
    assert run("gc", "--older-than", "soon", "--registry", registry).error_kind == "invalid-input/duration"


def test_adding_what_was_withdrawn_writes_nothing_twice_and_works(tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=2)
    registry = str(tmp_path / "registry")
    api.build(zoo, family="mlp", registry=registry)
    api.delete("mlp", "task-01", registry=registry)
    added = api.add(zoo / "task-01.safetensors", family="mlp", registry=registry)
    assert added.model.version == 2
    assert api.verify("mlp", registry=registry).ok
    assert not list(Path(registry, "_pending").glob("lease*"))
