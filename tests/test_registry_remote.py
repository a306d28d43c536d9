"""The command line and the API on registries behind a network: S3 (moto) and a plain web server."""

from __future__ import annotations

import json
import pickle
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_support import TASKS, make_small_zoo, run, run_well
from click.testing import CliRunner
from remote_support import BUCKET, KEY, SECRET, file_server, moto_server, open_s3, proxy, s3_options
from safetensors.torch import load_file, save_file
from storage_support import found_family

from uws_store import add, build, load_model
from uws_store.api import open_registry
from uws_store.cli import PROGRAM
from uws_store.errors import NotFoundError, StorageError
from uws_store.registry import Registry
from uws_store.storage import LocalStorage, Storage, StorageUrl, open_storage

pytest.importorskip("s3fs", reason="s3:// needs s3fs")
pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("zoo"))


def flags(url: str, endpoint: str) -> list[str]:
    options = (f"endpoint_url={endpoint}", f"key={KEY}", f"secret={SECRET}")
    return ["--registry", url, *(word for option in options for word in ("--storage-option", option))]


def test_every_command_works_on_s3(endpoint: str, url: str, zoo: Path, tmp_path: Path) -> None:
    there = flags(url, endpoint)
    made = run_well("init", url, *there[2:], "--json")
    assert made.document["registry"] == url
    built = run_well("build", zoo, "--family", "f", "--exact", *there)
    assert url in built.stdout
    assert run_well("list", "f", "--quiet", *there).stdout.splitlines() == [f"f/{task}" for task in TASKS]
    run_well("add", zoo / "task-00.safetensors", "--family", "f", "--task", "again", *there)
    run_well("show", "f/again", *there)
    verified = run_well("verify", "f", "--against", zoo, "--json", *there)
    run_well("export", "f", "task-03", "-o", tmp_path / "out.safetensors", "--tier", "exact", *there)
    for ran in (made, built, verified):
        assert SECRET not in ran.stdout + ran.stderr
        assert KEY not in ran.stdout + ran.stderr
    registry = open_registry(url, storage_options={"endpoint_url": endpoint, "key": KEY, "secret": SECRET})
    weights = load_model("f", "task-03", registry=registry)
    assert weights["fc1.weight"].shape == (64, 48)


def test_no_credential_is_stored_or_told_when_a_command_fails(endpoint: str, url: str, zoo: Path) -> None:
    there = flags(url, endpoint)
    run_well("build", zoo, "--family", "f", *there)
    storage = open_storage(url, storage_options=s3_options(endpoint))
    for path in storage.list(""):
        assert SECRET.encode() not in storage.read(path)
        assert KEY.encode() not in storage.read(path)
    with proxy(endpoint, answers=lambda *_: 403) as refusing:
        for more in ((), ("--json",), ("--traceback",)):
            ran = CliRunner().invoke(PROGRAM, ["list", *flags(url, refusing), *more])
            assert ran.exit_code == 2
            assert "error [storage/permission]" in ran.stderr
            assert SECRET not in ran.output
            assert KEY not in ran.output


def test_an_option_that_cannot_be_read_is_refused_before_anything_is_asked(url: str) -> None:
    ran = run("list", "--registry", url, "--storage-option", SECRET)
    assert ran.code == 2
    assert ran.error_kind == "invalid-input/storage-option"
    assert SECRET not in ran.stdout + ran.stderr


def test_an_empty_bucket_holds_no_registry(endpoint: str, url: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        open_registry(url, storage_options=s3_options(endpoint))
    assert caught.value.kind == "not-found/registry"


def test_a_url_with_options_reaches_another_process(endpoint: str, url: str) -> None:
    registry = open_registry(url, storage_options=s3_options(endpoint), create=True)
    sent = pickle.loads(pickle.dumps(StorageUrl(registry.url)))
    assert Registry.open(sent).document == registry.document
    assert SECRET not in json.dumps(sent)


def test_publishing_costs_few_requests_beyond_its_data(
    endpoint: str, url: str, zoo: Path, tmp_path: Path
) -> None:
    made: list[tuple[str, str]] = []
    with proxy(endpoint, answers=lambda request, _: made.append((request.command, request.path))) as address:
        options = s3_options(address)
        build(zoo, family="f", registry=open_registry(url, storage_options=options, create=True))
        for number in range(2):
            path = tmp_path / f"new-{number}.safetensors"
            weights = load_file(zoo / "task-00.safetensors")
            save_file({name: value + 0.01 * (number + 1) for name, value in weights.items()}, path)
            made.clear()
            # Opened anew, as another process would.
            add(path, family="f", registry=open_registry(url, storage_options=options))
            beyond = [(method, path) for method, path in made if "/families/" not in path]
            assert len(beyond) <= 6, beyond
    assert Registry.over(open_storage(url, storage_options=s3_options(endpoint))).audit() == ()


def test_what_a_storage_was_seen_to_refuse_is_remembered_for_its_address_alone(
    endpoint: str, url: str
) -> None:
    Registry.over(open_storage(url, storage_options=s3_options(endpoint)), create=True).publish(
        found_family("first")
    )
    with proxy(endpoint, dropped=frozenset({"if-none-match"})) as lying:
        registry = Registry.over(open_storage(url, storage_options=s3_options(lying)))
        with pytest.raises(StorageError) as caught:
            registry.publish(found_family("second"))
        assert caught.value.kind == "storage/not-exclusive"
    assert list(Registry.over(open_storage(url, storage_options=s3_options(endpoint))).state().families) == [
        "first"
    ]


def test_a_commit_of_another_writer_since_the_first_reading_is_followed(endpoint: str, url: str) -> None:
    def open_one() -> Registry:
        return Registry.over(open_storage(url, storage_options=s3_options(endpoint)), create=True)

    open_one().publish(found_family("first"))
    late = open_one()
    late.state()
    open_one().publish(found_family("second"))
    assert late.publish(found_family("third")).number == 3
    assert sorted(open_one().state().families) == ["first", "second", "third"]


class TestWebServer:
    @pytest.fixture
    def folder(self, tmp_path: Path, zoo: Path) -> Path:
        folder = tmp_path / "registry"
        run_well("build", zoo, "--family", "f", "--exact", "--registry", folder)
        return folder

    def test_a_family_is_read_from_a_folder_that_a_web_server_serves(self, folder: Path) -> None:
        with file_server(folder.parent) as address:
            there = f"{address}/registry/"
            run_well("verify", "f", "--registry", there)
            weights = load_model("f", "task-03", registry=there)
            expected = load_model("f", "task-03", registry=str(folder))
            for name in expected:
                assert torch.equal(weights[name], expected[name])

    def test_it_cannot_be_published_to_nor_listed(self, folder: Path, zoo: Path) -> None:
        with file_server(folder) as address:
            ran = run(
                "add", zoo / "task-00.safetensors", "--family", "f", "--task", "x", "--registry", address
            )
            assert ran.error_kind == "storage/read-only"
            storage = open_storage(address)
            for call, kind in (
                (lambda: storage.put("a", b""), "storage/read-only"),
                (lambda: storage.delete("a"), "storage/read-only"),
                (lambda: list(storage.list("")), "storage/no-listing"),
            ):
                with pytest.raises(StorageError) as caught:
                    call()
                assert caught.value.kind == kind

    @pytest.mark.parametrize("ranges", [False, True])
    def test_ranges_are_exact_whether_the_server_knows_them_or_not(
        self, tmp_path: Path, endpoint: str, *, ranges: bool
    ) -> None:
        name = uuid.uuid4().hex
        local = LocalStorage(tmp_path / name, create=True)
        local.put("ä/b c?#%", b"0123456789")
        local.put("empty", b"")
        if ranges:
            shared = open_s3(endpoint, name, s3_additional_kwargs={"ACL": "public-read"})
            for path in local.list(""):
                shared.put(path, local.read(path))
            self._look_at(open_storage(f"{endpoint}/{BUCKET}/{name}"))
        else:
            with file_server(tmp_path) as address:
                self._look_at(open_storage(f"{address}/{name}"))

    @staticmethod
    def _look_at(storage: Storage) -> None:
        path = "ä/b c?#%"
        assert storage.read(path) == b"0123456789"
        assert storage.read(path, start=2, end=5) == b"234"
        assert storage.read(path, start=7) == b"789"
        assert storage.read(path, start=-4) == b"6789"
        assert storage.read(path, start=10) == b""
        assert storage.read("empty") == b""
        assert storage.size(path) == 10
        assert storage.read_at_most(path, 10) == b"0123456789"
        assert storage.read_at_most("empty", 10) == b""
        assert storage.read_at_most("none", 10) is None
        assert storage.size("none") is None
        assert storage.modified(path)
        with pytest.raises(NotFoundError):
            storage.read("none")

    def test_a_server_that_stumbles_is_asked_again_and_one_that_is_gone_is_unreachable(
        self, folder: Path
    ) -> None:
        with file_server(folder) as upstream:
            stumbling = proxy(upstream, answers=lambda _, number: 503 if number == 1 else None)
            with stumbling as address:
                assert open_storage(address).size("uws.json")
        with pytest.raises(StorageError) as caught:
            open_storage("http://127.0.0.1:9/x").read("a")
        assert caught.value.kind == "storage/unreachable"


def test_a_registry_that_was_copied_to_a_bucket_reads_the_same(
    endpoint: str, url: str, zoo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "registry"
    run_well("build", zoo, "--family", "f", "--registry", folder)
    local = LocalStorage(folder)
    remote = open_storage(url, storage_options=s3_options(endpoint))
    for path in local.list(""):
        assert remote.stage(path, local.read(path))
    shutil.rmtree(folder)
    run_well("verify", "f", *flags(url, endpoint))
