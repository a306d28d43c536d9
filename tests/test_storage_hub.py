"""The contract of a storage on a Hub, talked to by the real client: one commit for all of a publication."""

from __future__ import annotations

import json
import threading
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_support import make_small_zoo, run, run_well
from hub_support import LFS_BYTES, TOKEN, Hub, hub_server
from safetensors.torch import load_file, save_file
from storage_contract import StorageTests
from storage_support import found_family, next_models
from zoo_support import make_zoo

from uws_store import add, build, load_model, open_family, verify
from uws_store.api import delete, diff, open_registry, publish_card, pull, push
from uws_store.errors import InvalidInputError, StorageError
from uws_store.registry import Registry
from uws_store.storage import Storage, open_storage

# Of huggingface_hub's own making, where it uploads large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Hub, str]]:
    with hub_server() as found:
        yield found


@pytest.fixture
def hub(served: tuple[Hub, str]) -> Hub:
    return served[0]


@pytest.fixture
def options(served: tuple[Hub, str]) -> dict[str, object]:
    return {"endpoint": served[1], "token": TOKEN}


@pytest.fixture
def repo() -> str:
    return f"team/{uuid.uuid4().hex[:12]}"


class TestHubStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path, repo: str, options: dict[str, object]) -> Storage:
        return open_storage(f"hf://{repo}/below", create=True, storage_options=options)


class TestDatasetStorage:
    def test_a_dataset_repository_is_a_storage_too(
        self, repo: str, hub: Hub, options: dict[str, object]
    ) -> None:
        storage = open_storage(f"hf://datasets/{repo}", create=True, storage_options=options)
        assert storage.put_if_absent("a/b", b"x" * (2 * LFS_BYTES))
        assert storage.read("a/b", start=-3) == b"xxx"
        assert list(storage.list("")) == ["a/b"]
        assert list(hub.repos)[-1] == f"datasets/{repo}"


def commits(hub: Hub, repo: str) -> list[str]:
    return hub.repos[f"models/{repo}"].messages


def test_a_zoo_is_read_from_repositories_and_from_one(
    repo: str, options: dict[str, object], tmp_path: Path
) -> None:
    """By a manifest of ``hf://`` ids, a model each, and by the id of one that holds all; token and endpoint as options."""
    zoo = make_small_zoo(tmp_path / "zoo", models=4)
    rows = []
    together = open_storage(f"hf://{repo}", create=True, storage_options=options)
    for path in sorted(zoo.glob("*.safetensors")):
        own = f"hf://{repo}.{path.stem}"
        open_storage(own, create=True, storage_options=options).put_if_absent(
            "model.safetensors", path.read_bytes()
        )
        together.put_if_absent(path.name, path.read_bytes())
        rows.append({"task": path.stem, "url": f"{own}@main"})
    (tmp_path / "models.json").write_text(json.dumps(rows))
    words = [f"--zoo-option={name}={value}" for name, value in options.items()]
    digests = set()
    for number, source in enumerate((str(zoo), str(tmp_path / "models.json"), f"hf://{repo}@main")):
        registry = str(tmp_path / f"registry-{number}")
        told = run_well("build", source, "--family", "f", "--registry", registry, *(words if number else ()))
        assert TOKEN not in repr(told)
        family = open_family("f", registry=registry)
        digests.add((family.basis().digest, *(family.resolve(task).digest for task in family)))
    assert len(digests) == 1


def test_a_publication_is_one_commit(hub: Hub, repo: str, options: dict[str, object], tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=5)
    registry = open_registry(f"hf://{repo}", create=True, storage_options=options)
    assert len(commits(hub, repo)) == 1
    build(zoo, family="f", registry=registry, exact=True)
    assert len(commits(hub, repo)) == 2
    add(zoo / "task-00.safetensors", family="f", task="again", registry=registry)
    assert len(commits(hub, repo)) == 3
    assert len(hub.repos[f"models/{repo}"].files) < 100
    again = open_registry(f"hf://{repo}", storage_options=options)
    assert again.state() == registry.state()
    folder = tmp_path / "registry"
    build(zoo, family="f", registry=str(folder), exact=True)
    expected = load_model("f", "task-03", registry=str(folder), tier="exact")
    found = load_model("f", "task-03", registry=again, tier="exact")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_every_command_works_on_a_hub(served: tuple[Hub, str], repo: str, tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=4)
    there = ["--storage-option", f"endpoint={served[1]}", "--storage-option", f"token={TOKEN}"]
    run_well("init", f"hf://{repo}", *there)
    told = [run_well("build", zoo, "--family", "f", "--registry", f"hf://{repo}", *there)]
    told.append(run_well("verify", "f", "--against", zoo, "--registry", f"hf://{repo}", *there))
    before = len(commits(served[0], repo))
    told.append(run_well("doctor", f"hf://{repo}", *there))
    assert "safe for many writers" in told[-1].stdout
    # The history of a repository stays; so few commits are made.
    assert len(commits(served[0], repo)) - before <= 4
    assert not any(path.startswith("uws-probe") for path in served[0].repos[f"models/{repo}"].files)
    assert not any(TOKEN in ran.stdout + ran.stderr for ran in told)


def test_what_is_staged_is_not_there_until_it_is_published(
    hub: Hub, repo: str, options: dict[str, object]
) -> None:
    storage = open_storage(f"hf://{repo}", create=True, storage_options=options)
    other = open_storage(f"hf://{repo}", storage_options=options)
    assert storage.stage("data/1", b"1" * (LFS_BYTES + 1))
    assert storage.stage("data/2", b"2")
    assert list(storage.list("")) == ["data/1", "data/2"]
    assert other.size("data/1") is None
    assert commits(hub, repo) == []
    assert storage.put_if_absent("log", b"3", hints={"head": b"log"})
    assert list(other.list("")) == ["data/1", "data/2", "head", "log"]
    assert other.read("data/1", start=LFS_BYTES) == b"1"
    assert len(commits(hub, repo)) == 1


def test_a_commit_of_another_in_between_is_followed(
    hub: Hub, repo: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(f"hf://{repo}", create=True, storage_options=options)
    registry.publish(found_family())
    other = open_registry(f"hf://{repo}", storage_options=options)
    commit = hub.repos[f"models/{repo}"].commits
    seen = registry.state()

    def meanwhile(state: object) -> object:
        if len(commit) == 3:
            other.publish(next_models("seven"))
        return next_models("seven")(state)  # type: ignore[arg-type]

    assert seen.number == 1
    assert registry.publish(meanwhile).number == 3  # type: ignore[arg-type]
    assert len(commit) == 5
    assert sorted(registry.state().families["digits"].tasks["seven"].versions) == [1, 2]


def test_a_commit_elsewhere_in_the_repository_does_no_harm(
    hub: Hub, repo: str, options: dict[str, object]
) -> None:
    storage = open_storage(f"hf://{repo}", create=True, storage_options=options)
    ours = hub.repos[f"models/{repo}"]
    real = type(storage).put_if_absent
    threads = [
        threading.Thread(
            target=real, args=(open_storage(f"hf://{repo}", storage_options=options), f"{n}", b"")
        )
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(storage.list("")) == [f"{n}" for n in range(6)]
    assert len(ours.messages) == 6


def test_the_hubs_own_files_are_no_strangers(repo: str, options: dict[str, object]) -> None:
    storage = open_storage(f"hf://{repo}", create=True, storage_options=options)
    storage.put("README.md", b"---\nlicense: mit\n---\n")
    assert list(storage.list("")) == []
    Registry.over(storage, create=True)


@pytest.mark.parametrize(
    ("token", "kind"), [("hf_wrong-token-s3cr3t", "storage/permission"), (False, "storage/permission")]
)
def test_who_may_not_write_is_told_so_without_the_token(
    repo: str, options: dict[str, object], token: object, kind: str
) -> None:
    open_storage(f"hf://{repo}", create=True, storage_options=options).put("a", b"1")
    storage = open_storage(f"hf://{repo}", storage_options={**options, "token": token})
    assert storage.read("a") == b"1"
    with pytest.raises(StorageError) as caught:
        storage.put_if_absent("b", b"1")
    assert caught.value.kind == kind
    shown = "".join(traceback.format_exception(caught.value)) + repr(storage) + storage.url
    assert str(token) not in shown or token is False


def test_a_repository_that_is_not_there_is_told_from_a_file_that_is_not(options: dict[str, object]) -> None:
    storage = open_storage("hf://team/none", storage_options=options)
    for call in (
        lambda: storage.read("a"),
        lambda: storage.size("a"),
        lambda: storage.put_if_absent("a", b""),
        lambda: list(storage.list("")),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.kind == "storage/no-bucket"


def test_a_hub_that_is_not_there_is_unreachable() -> None:
    storage = open_storage("hf://team/x", storage_options={"endpoint": "http://127.0.0.1:9", "token": False})
    with pytest.raises(StorageError) as caught:
        storage.put_if_absent("a", b"")
    assert caught.value.kind == "storage/unreachable"


@pytest.mark.parametrize(
    "url",
    [
        "hf://",
        "hf://alone",
        "hf://spaces/a/b",
        "hf://buckets/a",
        f"hf://user:{TOKEN}@team/x",
        f"hf://a/b?{TOKEN}",
    ],
)
def test_a_url_that_names_no_repository_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_storage(url)
    assert caught.value.kind == "invalid-input/storage-url"
    assert TOKEN not in str(caught.value)


def test_other_options_are_refused(repo: str) -> None:
    ran = run("list", "--registry", f"hf://{repo}", "--storage-option", f"secret={TOKEN}")
    assert ran.error_kind == "invalid-input/storage-option"
    assert TOKEN not in ran.stderr


class TestCard:
    """The README.md that a push writes, in its own commit."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Registry:
        registry = Registry.init(str(tmp_path / "source"))
        build(make_small_zoo(tmp_path / "zoo", models=3), family="f", registry=registry)
        return registry

    def test_a_push_writes_it_in_its_one_commit_and_refreshes_it(
        self, hub: Hub, repo: str, options: dict[str, object], source: Registry, tmp_path: Path
    ) -> None:
        target = open_registry(f"hf://{repo}", create=True, storage_options=options)
        push("f", target, registry=source)
        assert len(commits(hub, repo)) == 2
        files = hub.repos[f"models/{repo}"].files
        shown = files["README.md"].decode()
        assert shown.startswith("---\nlibrary_name: uws-store\n")
        assert "| models | 3 |" in shown
        assert f"registry='hf://{repo}'" in shown
        assert TOKEN not in shown
        # The source knows less than the target: what was added there is in the card too.
        weights = load_file(tmp_path / "zoo" / "task-00.safetensors")
        for number, (task, registry) in enumerate({"there": target, "here": source}.items(), start=1):
            path = tmp_path / f"{task}.safetensors"
            save_file({name: (1 + 0.1 * number) * held for name, held in weights.items()}, path)
            add(path, family="f", registry=registry)
        push("f", target, "here", registry=source)
        assert len(commits(hub, repo)) == 4
        shown = files["README.md"].decode()
        assert "| models | 5 |" in shown
        assert "| here |" in shown
        assert "| there |" in shown
        assert publish_card("f", registry=target) == shown
        assert len(commits(hub, repo)) == 4

    def test_one_that_was_written_by_hand_stays(
        self, hub: Hub, repo: str, options: dict[str, object], source: Registry, served: tuple[Hub, str]
    ) -> None:
        target = open_registry(f"hf://{repo}", create=True, storage_options=options)
        files = hub.repos[f"models/{repo}"].files
        files["README.md"] = b"# Mine"
        push("f", target, registry=source)
        assert files["README.md"] == b"# Mine"
        there = [f"--storage-option=endpoint={served[1]}", f"--storage-option=token={TOKEN}"]
        there += ["--registry", f"hf://{repo}"]
        assert run("card", "f", "--publish", *there).error_kind == "already-exists/file"
        run_well("card", "f", "--publish", "--overwrite", *there)
        assert files["README.md"].startswith(b"---\nlibrary_name: uws-store\n")
        assert len(commits(hub, repo)) == 3

    def test_a_registry_below_a_folder_or_elsewhere_shows_none(
        self, hub: Hub, repo: str, options: dict[str, object], source: Registry
    ) -> None:
        push("f", open_registry(f"hf://{repo}/a", create=True, storage_options=options), registry=source)
        assert "README.md" not in hub.repos[f"models/{repo}"].files
        with pytest.raises(InvalidInputError) as caught:
            publish_card("f", registry=source)
        assert caught.value.kind == "invalid-input/no-card"


MANY = 80


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("many")
    registry = Registry.init(str(folder / "source"))
    zoo = make_zoo(folder / "zoo", models=MANY, shapes={"a.weight": (16, 16), "head.bias": (3,)})
    build(zoo, family="digits", registry=registry)
    verify("digits", registry=registry, record=True)
    return registry


class TestManyModels:
    """A family of 80 small models, pushed and pulled."""

    def test_they_take_one_commit_and_few_files_and_come_back_the_same(
        self, hub: Hub, repo: str, options: dict[str, object], many: Registry, tmp_path: Path
    ) -> None:
        target = open_registry(f"hf://{repo}", create=True, storage_options=options)
        made = len(commits(hub, repo))
        result = push("digits", target, registry=many)
        assert result.published == MANY
        assert len(commits(hub, repo)) == made + 1
        files = hub.repos[f"models/{repo}"].files
        assert len(files) < 100
        assert len([path for path in files if "/packs/" in path]) == 1
        assert push("digits", target, registry=many).commits == ()
        assert len(commits(hub, repo)) == made + 1
        back = Registry.init(str(tmp_path / "back"))
        hub.requests.clear()
        pull(open_registry(f"hf://{repo}", storage_options=options), "digits", registry=back)
        assert len([request for request in hub.requests if "/packs/" in request]) == 1
        digests = {(entry.task, entry.version): entry.digest for entry in many.state().models()}
        assert {(entry.task, entry.version): entry.digest for entry in back.state().models()} == digests
        assert all(entry.pack is None for entry in back.state().models())
        objects = {path: many.storage.read(path) for path in many.storage.list("families")}
        assert {path: back.storage.read(path) for path in back.storage.list("families")} == objects

    def test_one_of_them_is_loaded_with_at_most_six_requests(
        self, hub: Hub, repo: str, options: dict[str, object], many: Registry, tmp_path: Path
    ) -> None:
        push("digits", open_registry(f"hf://{repo}", create=True, storage_options=options), registry=many)

        def load(task: str) -> int:
            """Load a model as a new process would whose cache has the basis; tell how many requests it took."""
            opened = open_registry(f"hf://{repo}", storage_options=options, cache_dir=tmp_path / "cache")
            hub.requests.clear()
            weights = open_family("digits", registry=opened).load(task).materialize()
            made = [request for request in hub.requests if not request.startswith("GET /lfs/")]
            expected = load_model("digits", task, registry=many)
            assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
            return len(made)

        load("task-00")
        counts = [load(f"task-{number:02d}") for number in (1, 40, 79)]
        assert max(counts) <= 6

    def test_what_is_withdrawn_and_what_is_new_leave_the_pack_as_it_is(
        self, hub: Hub, repo: str, options: dict[str, object], many: Registry
    ) -> None:
        target = open_registry(f"hf://{repo}", create=True, storage_options=options)
        push("digits", target, registry=many)
        packs = [path for path in hub.repos[f"models/{repo}"].files if "/packs/" in path]
        delete("digits", "task-07@1", registry=target)
        assert verify("digits", "task-08", registry=target).ok
        assert diff(("digits", "task-08"), ("digits", "task-09"), registry=target).tensors
        assert [path for path in hub.repos[f"models/{repo}"].files if "/packs/" in path] == packs

    def test_a_build_there_is_one_commit_and_few_files_too(
        self, hub: Hub, repo: str, options: dict[str, object], tmp_path: Path
    ) -> None:
        target = open_registry(f"hf://{repo}", create=True, storage_options=options)
        made = len(commits(hub, repo))
        zoo = make_zoo(tmp_path / "zoo", models=12, shapes={"a.weight": (16, 16), "head.bias": (3,)})
        build(zoo, family="built", registry=target, exact=True)
        assert len(commits(hub, repo)) == made + 1
        files = hub.repos[f"models/{repo}"].files
        assert len([path for path in files if "/packs/" in path]) == 1
        assert [path for path in files if path.startswith("families/built/models/")] == [
            "families/built/models/zarr.json"
        ]
        # What is added later is an object each, and a file for its commit.
        weights = load_file(zoo / "task-00.safetensors")
        save_file({name: 1.1 * held for name, held in weights.items()}, tmp_path / "more.safetensors")
        before = len(files)
        add(tmp_path / "more.safetensors", family="built", registry=target)
        assert len(files) == before + 2
        again = open_registry(f"hf://{repo}", storage_options=options)
        assert verify("built", registry=again).ok
        pull(again, "built", registry=Registry.init(str(tmp_path / "back")))

    def test_other_processes_cannot_build_there(
        self, repo: str, options: dict[str, object], tmp_path: Path
    ) -> None:
        target = open_registry(f"hf://{repo}", create=True, storage_options=options)
        zoo = make_zoo(tmp_path / "zoo", models=3, shapes={"a.weight": (16, 16)})
        with pytest.raises(InvalidInputError) as caught:
            build(zoo, family="built", registry=target, executor="processes")
        assert caught.value.kind == "invalid-input/executor"
