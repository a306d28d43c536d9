"""Buckets of the Hub: a registry for one writer, read by ranges, with a second writer found out where that can be."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("hf_xet", reason="what is written to a bucket goes by hf_xet")

from bucket_support import Buckets, bucket_server
from cli_support import make_small_zoo, run, run_well
from hub_support import TOKEN
from storage_support import found_family, next_models

from uws_store import load_model
from uws_store.api import doctor, open_registry, pull, push, verify
from uws_store.errors import FormatError, InvalidInputError, NotFoundError, StorageError
from uws_store.layout import commit_path
from uws_store.registry import Registry, collect
from uws_store.storage import Storage, StorageUrl, list_entries, open_storage


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Buckets, str]]:
    with bucket_server(tmp_path_factory.mktemp("store")) as (hub, address):
        yield hub, address


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("zoo"), models=3)


@pytest.fixture
def hub(served: tuple[Buckets, str]) -> Buckets:
    return served[0]


@pytest.fixture
def url(served: tuple[Buckets, str]) -> StorageUrl:
    options = {"endpoint": served[1], "token": TOKEN}
    return StorageUrl(f"hf://buckets/team/b-{uuid.uuid4().hex[:12]}", options)


def files(hub: Buckets, url: str) -> dict[str, bytes]:
    found = hub.buckets[url.removeprefix("hf://buckets/")]
    return {path: file.data for path, file in found.items()}


class TestStorage:
    @pytest.fixture
    def storage(self, url: StorageUrl) -> Storage:
        return open_storage(url, create=True)

    def test_what_is_put_is_read_whole_and_by_ranges(self, storage: Storage) -> None:
        storage.put("ä/b c#%.json", b"0123456789")
        storage.put("empty", b"")
        assert storage.read("ä/b c#%.json") == b"0123456789"
        assert storage.read("ä/b c#%.json", start=2, end=5) == b"234"
        assert storage.read("ä/b c#%.json", start=-4) == b"6789"
        assert storage.read("ä/b c#%.json", start=10) == b""
        assert (storage.size("ä/b c#%.json"), storage.size("none")) == (10, None)
        assert storage.read("empty") == b""
        assert storage.read_at_most("ä/b c#%.json", 10) == b"0123456789"
        assert storage.read_at_most("none", 10) is None
        assert storage.modified("ä/b c#%.json")
        for options in ({}, {"start": 0, "end": 1}):
            with pytest.raises(NotFoundError):
                storage.read("none", **options)
        with pytest.raises(FormatError):
            storage.read("ä/b c#%.json", start=5, end=11)

    def test_a_large_object_comes_back(self, storage: Storage) -> None:
        data = bytes(range(256)) * (1 << 14)
        storage.put("large", data)
        assert storage.read("large") == data
        assert storage.read("large", start=1_000_000, end=1_000_256) == data[1_000_000:1_000_256]

    def test_listing_tells_sizes_and_times_and_deleting_removes(self, storage: Storage) -> None:
        for path in ("a/2", "a/1", "ab", "c"):
            storage.put(path, path.encode())
        assert list(storage.list("")) == ["a/1", "a/2", "ab", "c"]
        assert [(one.path, one.size_bytes) for one in list_entries(storage, "a")] == [("a/1", 3), ("a/2", 3)]
        assert all(one.modified for one in list_entries(storage, ""))
        storage.delete("a/1")
        storage.delete("none")
        assert list(storage.list("a")) == ["a/2"]
        assert storage.size("a/1") is None

    def test_staged_objects_arrive_before_what_names_them(
        self, hub: Buckets, url: str, storage: Storage
    ) -> None:
        assert storage.stage("x/1", b"one")
        assert storage.stage("x/2", b"two")
        assert not storage.stage("x/1", b"one")
        assert storage.read("x/1", start=1) == b"ne"
        assert files(hub, url) == {}
        hub.batches.clear()
        assert storage.put_if_absent("commit", b"3", hints={"head": b"4"})
        assert [sorted(batch) for batch in hub.batches] == [["x/1", "x/2"], ["commit"], ["head"]]
        assert files(hub, url) == {"x/1": b"one", "x/2": b"two", "commit": b"3", "head": b"4"}

    def test_a_prefix_is_a_storage_of_its_own(self, hub: Buckets, url: StorageUrl) -> None:
        below = open_storage(StorageUrl(f"{url}/some/where", url.options), create=True)
        below.put("x", b"1")
        assert files(hub, url) == {"some/where/x": b"1"}
        assert list(below.list("")) == ["x"]

    @pytest.mark.parametrize("rest", ["org", "org/name@main", "org/name?x=1", ""])
    def test_other_urls_are_refused(self, rest: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            open_storage(f"hf://buckets/{rest}")
        assert caught.value.kind == "invalid-input/storage-url"

    def test_a_bucket_that_is_not_there_and_a_wrong_token_are_told_without_the_token(
        self, url: StorageUrl
    ) -> None:
        with pytest.raises(StorageError) as caught:
            list(open_storage(url).list(""))
        assert caught.value.kind == "storage/no-bucket"
        open_storage(url, create=True)
        with pytest.raises(StorageError) as caught:
            open_storage(StorageUrl(url, {**url.options, "token": "hf_wrong-token"})).put("x", b"1")
        assert "hf_wrong-token" not in str(caught.value)


class TestRegistry:
    @pytest.fixture
    def registry(self, url: StorageUrl) -> Registry:
        return Registry.init(url, single_writer=True)

    def test_it_is_refused_for_many_writers_and_doctor_says_why(self, hub: Buckets, url: StorageUrl) -> None:
        with pytest.raises(StorageError) as caught:
            Registry.init(url)
        assert caught.value.kind == "storage/not-exclusive"
        assert files(hub, url) == {}
        Registry.init(url, single_writer=True)
        before = files(hub, url)
        found = doctor(url)
        assert files(hub, url) == before
        assert (found.writable, found.single_writer) == (True, True)
        kept = {check.name: check.kept for check in found.checks}
        assert not kept.pop("create only if absent")
        assert not kept.pop("one winner of concurrent creations")
        assert all(kept.values())
        assert len(kept) == 9

    def test_a_family_is_pushed_loaded_verified_and_pulled(
        self, hub: Buckets, url: StorageUrl, registry: Registry, zoo: Path, tmp_path: Path
    ) -> None:
        here = Registry.init(str(tmp_path / "here"))
        run_well("build", zoo, "--family", "mlp", "--exact", "--registry", here.url)
        opened = open_registry(url, cache_dir=tmp_path / "cache")
        result = push("mlp", opened, registry=here)
        assert result.published == 3
        objects = {path: here.storage.read(path) for path in here.storage.list("families")}
        assert {p: data for p, data in files(hub, url).items() if p.startswith("families")} == objects
        assert verify("mlp", registry=opened).ok
        hub.requests.clear()
        weights = load_model("mlp", "task-01", tier="exact", registry=opened)
        expected = load_model("mlp", "task-01", tier="exact", registry=here)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert push("mlp", opened, registry=here).objects == 0
        back = Registry.init(str(tmp_path / "back"))
        assert pull(opened, "mlp", registry=back).published == 3
        assert verify("mlp", registry=back).ok

    def test_the_command_line_publishes_there(
        self, url: StorageUrl, registry: Registry, zoo: Path, served: tuple[Buckets, str]
    ) -> None:
        there = ["--registry", url, "--storage-option", f"endpoint={served[1]}"]
        there += ["--storage-option", f"token={TOKEN}"]
        run_well("build", zoo, "--family", "mlp", *there)
        run_well("add", zoo / "task-01.safetensors", "--family", "mlp", "--task", "more", *there)
        run_well("verify", "mlp", *there)
        shown = run_well("doctor", *there)
        assert "single" in shown.stdout
        assert run("show", "none", *there).error_kind == "not-found/family"

    def test_what_nothing_reaches_is_removed(
        self, hub: Buckets, url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["uws_store.registry.collect"], "LEAST_GRACE_S", 0.0)
        registry.publish(found_family())
        stray = f"families/digits/models/{'a' * 64}/zarr.json"
        registry.storage.put(stray, b"x")
        assert [one.prefix for one in collect(registry, grace_s=0.0).marked] == [stray.rpartition("/")[0]]
        assert len(collect(registry, grace_s=0.0).removed) == 1
        assert stray not in files(hub, url)
        assert registry.state().number == 1

    def test_a_second_writer_is_followed_where_it_is_seen_in_time(
        self, url: StorageUrl, registry: Registry
    ) -> None:
        registry.publish(found_family())
        other = Registry.open(url)
        other.state()
        registry.publish(next_models("mine"))
        assert other.publish(next_models("theirs")).number == 3
        assert sorted(registry.state().families["digits"].tasks) == ["mine", "theirs"]

    def test_a_second_writer_that_replaced_a_commit_is_found_out(
        self, url: StorageUrl, registry: Registry
    ) -> None:
        registry.publish(found_family())
        registry.publish(next_models("mine"))
        path = commit_path(2)
        mine = registry.storage.read(path)
        other = Registry.open(url)
        # It looked before our commit was there, and wrote after it.
        open_storage(url).put(path, mine.replace(b"mine", b"thei"))
        with pytest.raises(StorageError) as caught:
            registry.publish(next_models("more"))
        assert caught.value.kind == "storage/second-writer"
        assert other.state().number == 2

    def test_a_commit_that_is_replaced_while_it_is_written_is_not_acknowledged(
        self, url: StorageUrl, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry.publish(found_family())
        storage = registry.storage
        create = storage.put_if_absent

        def overtaken(path: str, data: bytes, **more: object) -> bool:
            created = create(path, data)
            nonce = data.index(b'"nonce":"') + 9
            other = data[:nonce] + b"0" * 32 + data[nonce + 32 :]
            open_storage(url).put(path, other)
            return created

        monkeypatch.setattr(storage, "put_if_absent", overtaken)
        with pytest.raises(StorageError) as caught:
            registry.publish(next_models("mine"))
        assert caught.value.kind == "storage/second-writer"

    def test_a_writer_that_is_gone_between_two_changes_leaves_the_old_state(
        self, hub: Buckets, url: StorageUrl, registry: Registry, zoo: Path, tmp_path: Path
    ) -> None:
        here = Registry.init(str(tmp_path / "here"))
        run_well("build", zoo, "--family", "mlp", "--registry", here.url)
        registry.publish(found_family("before"))
        old = files(hub, url)
        seen: list[tuple[str, ...]] = []
        for changes in range(10):
            hub.buckets[url.removeprefix("hf://buckets/")].clear()
            for path, data in old.items():
                open_storage(url).put(path, data)
            hub.changes_left = changes
            try:
                push("mlp", Registry.open(url), registry=here)
                left = True
            except StorageError:
                left = False
            finally:
                hub.changes_left = None
            again = Registry.open(url)
            seen.append(tuple(sorted(again.state().families)))
            assert old.items() <= files(hub, url).items() or len(seen[-1]) == 2
            # Whatever it left, the next one goes on from there.
            push("mlp", Registry.open(url), registry=here)
            assert len(list(Registry.open(url).state().family("mlp").models())) == 3
            if left:
                break
        assert verify("mlp", registry=Registry.open(url)).ok
        assert seen[0] == seen[1] == ("before",)
        assert seen[-1] == ("before", "mlp")
        assert len(seen) >= 3
