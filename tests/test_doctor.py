"""``doctor`` and ``init`` on storages that keep their promises and on storages that do not."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cli_support import run, run_well
from loopback_support import started_program
from remote_support import BUCKET, KEY, SECRET, file_server, moto_server, proxy, s3_options
from storage_support import found_family, next_models

from uws_store.errors import StorageError
from uws_store.registry import Registry
from uws_store.storage import LocalStorage, MemoryStorage, Storage, open_storage
from uws_store.storage.probing import probe

NO_CONDITIONS = frozenset({"if-none-match"})


@pytest.fixture(scope="module")
def honest() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def lying(honest: str) -> Iterator[str]:
    """S3 that accepts the condition and ignores it."""
    with proxy(honest, dropped=NO_CONDITIONS) as address:
        yield address


@pytest.fixture(scope="module")
def s3rver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The npm package of that name, which ignores conditions and the last bytes of an object."""
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which fetches s3rver")
    folder = tmp_path_factory.mktemp("s3rver")
    try:
        subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--loglevel=error", "s3rver@3.7.1"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=90,
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm cannot install s3rver: {type(error).__name__}")
    program = [str(folder / "node_modules" / ".bin" / "s3rver"), "-a", "127.0.0.1", "-s"]
    program += ["-d", str(folder / "data"), "--configure-bucket", BUCKET]
    with started_program("s3rver", lambda port: [*program, "-p", str(port)], folder=folder) as address:
        yield address


def url() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def flags(endpoint: str, *, key: str = KEY, secret: str = SECRET) -> list[str]:
    options = (f"endpoint_url={endpoint}", f"key={key}", f"secret={secret}")
    return [word for option in options for word in ("--storage-option", option)]


def broken(storage: Storage) -> set[str]:
    return {check.name for check in probe(storage) if not check.kept}


def test_a_folder_and_memory_keep_every_promise_and_nothing_is_left(tmp_path: Path) -> None:
    for storage in (LocalStorage(tmp_path / "r", create=True), MemoryStorage()):
        assert broken(storage) == set()
        assert list(storage.list("")) == []
    assert list((tmp_path / "r").iterdir()) == []


def test_an_honest_s3_is_safe_for_many_writers_and_nothing_is_left(honest: str) -> None:
    there = url()
    ran = run_well("doctor", there, "--json", *flags(honest))
    assert ran.document["safe"] is True
    assert all(ran.document["allows"].values())
    assert ran.document["registry"] is None
    assert list(open_storage(there, storage_options=s3_options(honest)).list("")) == []
    assert "safe for many writers" in run_well("doctor", there, *flags(honest)).stdout
    assert SECRET not in ran.stdout + ran.stderr


def test_an_s3_that_ignores_conditions_is_caught(lying: str) -> None:
    there = url()
    ran = run("doctor", there, "--json", *flags(lying))
    assert ran.code == 1
    wrong = {check["name"] for check in ran.document["checks"] if not check["kept"]}
    assert wrong == {"create only if absent", "one winner of concurrent creations"}
    assert ran.document["allows"] == {"reading": True, "publishing": True, "many writers": False}
    told = run("doctor", there, *flags(lying))
    assert "safe for a single writer only" in told.stdout
    assert "the condition is ignored" in told.stdout


def test_a_registry_is_not_made_where_conditions_are_ignored_but_for_one_writer(lying: str) -> None:
    there = url()
    ran = run("init", there, *flags(lying))
    assert ran.code == 2
    assert ran.error_kind == "storage/not-exclusive"
    storage = open_storage(there, storage_options=s3_options(lying))
    assert list(storage.list("")) == []
    made = run_well("init", there, "--single-writer", "--json", *flags(lying))
    assert made.document["single_writer"] is True
    assert run("doctor", there, *flags(lying)).code == 0
    registry = Registry.over(storage)
    registry.publish(found_family())
    assert registry.publish(next_models("seven")).number == 2
    # What another wrote meanwhile is seen, as long as both are not at work at the same moment.
    late = Registry.over(storage)
    registry.publish(next_models("seven"))
    assert late.publish(next_models("seven")).number == 4


def test_a_registry_on_a_storage_that_lies_is_not_published_to(honest: str, lying: str) -> None:
    there = url()
    Registry.over(open_storage(there, storage_options=s3_options(honest)), create=True).publish(
        found_family()
    )
    moved = Registry.over(open_storage(there, storage_options=s3_options(lying)))
    before = moved.state()
    with pytest.raises(StorageError) as caught:
        moved.publish(next_models("seven"))
    assert caught.value.kind == "storage/not-exclusive"
    assert Registry.over(open_storage(there, storage_options=s3_options(honest))).state() == before


def test_s3rver_is_caught(s3rver: str) -> None:
    credentials = flags(s3rver, key="S3RVER", secret="S3RVER")
    there = url()
    ran = run("doctor", there, "--json", *credentials)
    assert ran.code == 1
    kept = {check["name"]: check["kept"] for check in ran.document["checks"]}
    assert not kept["create only if absent"]
    assert not kept["one winner of concurrent creations"]
    assert run("init", there, *credentials).error_kind == "storage/not-exclusive"


class Faulty(MemoryStorage):
    """Breaks the promise it is told to."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.met = threading.Barrier(2)

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        if self.fault == "ranges" and end is not None:
            return super().read(path, start=start)[: end - (start or 0) + 1]
        if self.fault == "last bytes" and start is not None and start < 0:
            return super().read(path)[:-start]
        data = super().read(path, start=start, end=end)
        return (
            data[:-1] + bytes([data[-1] ^ 1])
            if self.fault == "large objects" and len(data) > 1 << 20
            else data
        )

    def put(self, path: str, data: bytes) -> None:
        if self.fault == "read after write" and self.size(path) is not None:
            return
        super().put(path, data)

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        if self.fault == "create only if absent":
            super().put(path, data)
            return True
        if self.fault == "one winner of concurrent creations":
            seen = self.size(path) is None
            if "race" in path and not self.met.broken:
                # The first two have both looked before either creates; the others come when they come.
                with contextlib.suppress(threading.BrokenBarrierError):
                    self.met.wait(120)
                    self.met.abort()
            if seen:
                super().put(path, data)
            return seen
        if self.fault == "empty objects" and not data:
            raise StorageError("an empty object cannot be stored", kind="storage/io")
        return super().put_if_absent(path, data, hints=hints)

    def delete(self, path: str) -> None:
        if self.fault != "deletion":
            super().delete(path)

    def list(self, prefix: str) -> Iterator[str]:
        found = list(super().list(prefix))
        return iter(found[:-1] if self.fault == "listing" else found)

    def modified(self, path: str) -> float | None:
        if self.fault == "the storage's clock":
            raise StorageError("no time is told", kind="storage/no-clock")
        return super().modified(path)


@pytest.mark.parametrize(
    ("fault", "also"),
    [
        ("read after write", set()),
        ("create only if absent", {"one winner of concurrent creations"}),
        ("one winner of concurrent creations", set()),
        ("ranges", {"several ranges at once"}),
        ("last bytes", set()),
        ("empty objects", set()),
        ("large objects", set()),
        ("deletion", set()),
        ("listing", set()),
        ("the storage's clock", set()),
    ],
)
def test_each_broken_promise_is_found(fault: str, also: set[str]) -> None:
    assert broken(Faulty(fault)) == {fault, *also}


def test_a_web_server_is_told_to_be_read_only(tmp_path: Path) -> None:
    run_well("init", tmp_path / "registry")
    with file_server(tmp_path) as address:
        ran = run_well("doctor", f"{address}/registry", "--json")
        assert ran.document["writable"] is False
        assert ran.document["allows"] == {"reading": True, "publishing": False, "many writers": False}
        assert run("doctor", f"{address}/nothing").error_kind == "storage/read-only"


def test_a_place_that_is_not_there_is_no_place_to_examine(tmp_path: Path) -> None:
    assert run("doctor", tmp_path / "none").error_kind == "not-found/storage"


def test_the_folder_of_a_registry_is_left_as_it_was(tmp_path: Path) -> None:
    run_well("init", tmp_path / "registry")
    before = sorted(tmp_path.rglob("*"))
    assert "safe for many writers" in run_well("doctor", tmp_path / "registry").stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_when_a_storage_fails_in_between() -> None:
    class Failing(MemoryStorage):
        count = 0

        def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
            self.count += 1
            if self.count > 10:
                raise StorageError("the connection is down", kind="storage/unreachable")
            return super().read(path, start=start, end=end)

    storage = Failing()
    assert broken(storage)
    assert list(storage.list("")) == []
