"""Writers that die at every single write, on a disk and on the clouds: what was there stays, nothing half is seen.

A writer that is gone after its k-th write left what one left that is gone before the next, so dying before each write
is dying anywhere between two. What is staged for a Hub lies on the writer's own disk, and is no write there.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from azure_support import CONTAINER, azure_options, azurite, azurite_folder
from hub_support import TOKEN, hub_server
from remote_support import moto_server, open_s3
from safetensors.torch import load_file, save_file
from storage_support import CountingStorage
from zoo_support import Weights, make_zoo, same_bits

from uws_store import add, build, open_family
from uws_store.api import push, verify
from uws_store.registry import Registry, RegistryState
from uws_store.storage import Storage, open_storage
from uws_store.storage.hugging import HubStorage

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # within huggingface_hub
    pytest.mark.filterwarnings(
        "ignore:Sending a large body directly:ResourceWarning"
    ),  # within gcsfs and adlfs
]

OpenPlace = Callable[[], Storage]


class Died(Exception):  # noqa: N818 - it is no error: the process is gone
    """The writer is no more."""


class Mortal(CountingStorage):
    """Dies before its k-th write, whichever of its threads makes it, and writes nothing afterwards."""

    def __init__(self, inner: Storage, *, at: int) -> None:
        super().__init__(inner)
        self.writes = 0
        self._at = at
        self._is_hub = isinstance(inner, HubStorage)
        self._lock = threading.Lock()

    @property
    def died(self) -> bool:
        return self.writes >= self._at

    def _count(self) -> None:
        with self._lock:
            self.writes += 1
            if self.writes >= self._at:
                raise Died

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        self._count()
        if self._is_hub:
            return self.inner.put_if_absent(path, data, hints=hints)
        created = self.inner.put_if_absent(path, data)
        for hint, held in (hints or {}).items() if created else ():
            self.put(hint, held)
        return created

    def stage(self, path: str, data: bytes) -> bool:
        if not self._is_hub:
            self._count()
        return self.inner.stage(path, data)

    def put(self, path: str, data: bytes) -> None:
        self._count()
        self.inner.put(path, data)

    def delete(self, path: str) -> None:
        self._count()
        self.inner.delete(path)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with hub_server() as (_, address):
        yield address


@pytest.fixture(scope="module")
def gcs() -> Iterator[tuple[str, dict[str, Any]]]:
    pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")
    from gcs_support import BUCKET, gcs_options, gcs_server, private_key  # noqa: PLC0415 - needs what signs tokens

    with gcs_server() as (_, address):
        yield BUCKET, gcs_options(address, private_key())


@pytest.fixture(scope="module")
def azure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("adlfs", reason="az:// needs adlfs")
    with azurite(azurite_folder(request.config, tmp_path_factory)) as address:
        yield address


def opening(kind: str, request: pytest.FixtureRequest, folder: Path) -> OpenPlace:
    """Give what opens an empty place, anew each time: a process that is gone leaves no open storage."""
    name = uuid.uuid4().hex[:12]
    if kind == "disk":
        return lambda: open_storage(str(folder / "registry"), create=True)
    if kind == "s3":
        endpoint = request.getfixturevalue("s3")
        return lambda: open_s3(endpoint, name)
    if kind == "gcs":
        bucket, options = request.getfixturevalue("gcs")
        return lambda: open_storage(f"gs://{bucket}/{name}", storage_options=options)
    if kind == "azure":
        options = azure_options(request.getfixturevalue("azure"))
        return lambda: open_storage(f"az://{CONTAINER}/{name}", storage_options=options)
    options = {"endpoint": request.getfixturevalue("hub"), "token": TOKEN}
    return lambda: open_storage(f"hf://team/{name}", create=True, storage_options=options)


@pytest.fixture(params=["disk", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> OpenPlace:
    return opening(request.param, request, tmp_path)


@pytest.fixture(params=["disk", "s3", "gcs", "azure", "hub"])
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> OpenPlace:
    return opening(request.param, request, tmp_path)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), models=2, shapes={"a.weight": (12, 10), "b": (12,)})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, zoo: Path) -> Registry:
    """What is pushed: `old`, and whatever :func:`fresh` has made."""
    registry = Registry.init(str(tmp_path_factory.mktemp("source") / "registry"))
    build(zoo, family="old", registry=registry, executor="serial")
    return registry


def fresh(source: Registry, zoo: Path, k: int) -> str:
    """Give the k-th family to push, made when it is asked for first."""
    family = f"new-{k}"
    if family not in source.state().families:
        build(zoo, family=family, registry=source, executor="serial")
    return family


def whole(registry: Registry, family: str, *, only: Collection[str] | None = None) -> dict[str, Weights]:
    """Load the first version of the tasks of a family."""
    tasks = registry.state().family(family).tasks if only is None else only
    opened = open_family(family, registry=registry)
    return {task: dict(opened.load(f"{task}@1")) for task in tasks}


def same(first: dict[str, Weights], second: dict[str, Weights]) -> bool:
    return first.keys() == second.keys() and all(
        first[task].keys() == second[task].keys()
        and all(same_bits(first[task][name], second[task][name]) for name in first[task])
        for task in first
    )


def die_everywhere(place: OpenPlace, step: Callable[[Registry, int], object]) -> int:
    """Let the k-th writer die before its k-th write of a step, for every k; tell how many writes a step has."""
    reader = place()
    before = Registry.over(reader).state()
    old = whole(Registry.over(reader), "old")
    for point in range(1, 100):
        mortal = Mortal(place(), at=point)
        registry = Registry.over(mortal)
        with contextlib.suppress(Died):
            step(registry, point)
        after = Registry.over(reader).state()
        assert is_all_or_nothing(before, after, Registry.over(reader))
        assert same(whole(Registry.over(reader), "old", only=old), old)
        if not mortal.died:
            return mortal.writes
        if after.number == before.number and point % 4 == 1:
            # Whoever comes next does the same, and succeeds with what was left behind.
            step(Registry.over(place()), point)
            after = Registry.over(reader).state()
            assert after.number == before.number + 1
            assert is_all_or_nothing(before, after, Registry.over(reader))
        before = after
    pytest.fail("a step has no end")


def is_all_or_nothing(before: RegistryState, after: RegistryState, registry: Registry) -> bool:
    """Tell whether the state is the old one, or one commit newer with every object that it names."""
    if after.number == before.number:
        return after == before
    new = [name for name in after.families if name not in before.families] or ["old"]
    return after.number == before.number + 1 and all(verify(name, registry=registry).ok for name in new)


def test_a_build_that_dies_anywhere_leaves_what_was_and_the_next_goes_on(place: OpenPlace, zoo: Path) -> None:
    build(zoo, family="old", registry=Registry.over(place(), create=True), executor="serial")
    writes = die_everywhere(
        place, lambda registry, k: build(zoo, family=f"new-{k}", registry=registry, executor="serial")
    )
    assert writes >= 1
    assert Registry.over(place()).audit() == ()


def test_an_addition_that_dies_anywhere_leaves_what_was_and_the_next_goes_on(
    place: OpenPlace, zoo: Path, tmp_path: Path
) -> None:
    build(zoo, family="old", registry=Registry.over(place(), create=True), executor="serial")
    weights = load_file(zoo / "task-00.safetensors")

    def step(registry: Registry, k: int) -> None:
        path = tmp_path / f"new-{k}.safetensors"
        save_file({name: value + 1e-3 * k for name, value in weights.items()}, path)
        add(path, family="old", registry=registry)

    assert die_everywhere(place, step) >= 1  # the Hub takes all of a publication in one
    assert Registry.over(place()).audit() == ()


def test_a_push_that_dies_anywhere_leaves_what_was_and_the_next_goes_on(
    place: OpenPlace, zoo: Path, source: Registry
) -> None:
    push("old", Registry.over(place(), create=True), registry=source)

    def step(target: Registry, k: int) -> None:
        push(fresh(source, zoo, k), target, registry=source)

    assert die_everywhere(place, step) >= 1  # the Hub takes all of a publication in one
    assert Registry.over(place()).audit() == ()


def test_a_push_in_packs_that_dies_anywhere_leaves_what_was_and_the_next_goes_on(
    any_place: OpenPlace, zoo: Path, source: Registry
) -> None:
    push("old", Registry.over(any_place(), create=True), registry=source, pack=True)

    def step(target: Registry, k: int) -> None:
        push(fresh(source, zoo, k), target, registry=source, pack=True)

    assert die_everywhere(any_place, step) >= 1
    target = Registry.over(any_place())
    assert target.audit() == ()
    assert all(entry.pack is not None for entry in target.state().models())
