"""Publishing straight to the Hub: one commit whatever happens, the card in it, and nothing named that is being removed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import make_small_zoo
from hub_support import TOKEN, Hub, hub_server

from uws_store import add, build
from uws_store.api import extend, open_registry
from uws_store.errors import StorageError
from uws_store.layout import pack_path, pending_path
from uws_store.metadata.log import new_nonce
from uws_store.metadata.pending import PendingNote
from uws_store.registry import Registry, pending

pytest.importorskip("huggingface_hub", reason="hf:// needs huggingface_hub")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # within huggingface_hub


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Hub, str]]:
    with hub_server() as (hub, address):
        yield hub, address


@pytest.fixture
def repo() -> str:
    return f"team/r-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def registry(served: tuple[Hub, str], repo: str) -> Registry:
    options = {"endpoint": served[1], "token": TOKEN}
    return open_registry(f"hf://{repo}", create=True, storage_options=options)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("zoo"), models=4)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("new"), models=1, seed=9) / "task-00.safetensors"


def commits(served: tuple[Hub, str], repo: str) -> int:
    return len(served[0].repos[f"models/{repo}"].commits)


def test_build_add_and_extend_are_one_commit_each_with_the_card(
    served: tuple[Hub, str], repo: str, registry: Registry, zoo: Path, tmp_path: Path
) -> None:
    files = served[0].repos[f"models/{repo}"].files
    before = commits(served, repo)
    build(zoo, family="f", registry=registry)
    assert commits(served, repo) == before + 1
    assert "| models | 4 |" in files["README.md"].decode()
    more = make_small_zoo(tmp_path / "more", models=2, seed=5)
    add(more / "task-00.safetensors", family="f", task="new", registry=registry)
    assert commits(served, repo) == before + 2
    assert "| models | 5 |" in files["README.md"].decode()
    assert "| new |" in files["README.md"].decode()
    extend("f", registry=registry)
    assert commits(served, repo) == before + 3


def test_what_was_there_already_and_what_takes_long_is_one_commit_too(
    served: tuple[Hub, str],
    repo: str,
    registry: Registry,
    zoo: Path,
    new: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pending, "_LEASE_AFTER_S", -1.0)
    before = commits(served, repo)
    build(zoo, family="f", registry=registry)
    # The same weights under another name: every object is there.
    for count, task in enumerate(("new", "again"), start=2):
        add(new, family="f", task=task, registry=registry)
        assert commits(served, repo) == before + count
    assert registry.resolve("f", "new").digest == registry.resolve("f", "again").digest
    assert not any(path.startswith("_pending/") for path in served[0].repos[f"models/{repo}"].files)


def test_what_is_gone_before_the_commit_is_not_named(
    served: tuple[Hub, str],
    repo: str,
    registry: Registry,
    zoo: Path,
    new: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build(zoo, family="f", registry=registry)
    add(new, family="f", task="new", registry=registry)
    pack = registry.resolve("f", "new").pack
    assert pack is not None
    path = pack_path("f", pack.digest)
    settle = pending.Publication.settle

    def removed_after(self: pending.Publication) -> None:
        settle(self)
        del served[0].repos[f"models/{repo}"].files[path]

    monkeypatch.setattr(pending.Publication, "settle", removed_after)
    before = commits(served, repo)
    with pytest.raises(StorageError) as caught:
        add(new, family="f", task="again", registry=registry)
    assert caught.value.kind == "storage/collected"
    assert commits(served, repo) == before


def test_a_sweep_at_work_is_waited_for(
    registry: Registry, zoo: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(zoo, family="f", registry=registry)
    add(new, family="f", task="new", registry=registry)
    monkeypatch.setattr(pending, "_WAIT_FOR_SWEEP_S", 0.1)
    mark = pending_path("sweep", new_nonce())
    registry.storage.put(mark, PendingNote(kind="sweep").to_bytes())
    with pytest.raises(StorageError) as caught:
        add(new, family="f", task="again", registry=registry)
    assert caught.value.kind == "storage/collecting"
    registry.storage.delete(mark)
    add(new, family="f", task="again", registry=registry)
    assert registry.resolve("f", "again").version == 1
