"""The contract of a storage on Google Cloud Storage, talked to by the real client, and publishers at once."""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import run
from cloud_support import CloudTests
from storage_contract import StorageTests

from uws_store.api import doctor
from uws_store.errors import StorageError
from uws_store.registry import Registry
from uws_store.storage import Storage, StorageUrl, open_storage
from uws_store.storage.probing import probe

pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")

from gcs_support import BUCKET, TOKEN, Bucket, gcs_options, gcs_server, private_key

# Of aiohttp's own making, where gcsfs uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Bucket, str]]:
    with gcs_server() as found:
        yield found


@pytest.fixture(scope="module")
def options(served: tuple[Bucket, str]) -> dict[str, Any]:
    return gcs_options(served[1], private_key())


@pytest.fixture
def bucket(served: tuple[Bucket, str]) -> Bucket:
    return served[0]


@pytest.fixture
def url(options: dict[str, Any]) -> StorageUrl:
    return StorageUrl(f"gs://{BUCKET}/{uuid.uuid4().hex}", options)


class TestGcsStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path, url: StorageUrl) -> Storage:
        return open_storage(url)


def test_each_call_costs_one_request(bucket: Bucket, url: StorageUrl) -> None:
    storage = open_storage(url)
    storage.put("first", b"")  # gets the token
    bucket.requests.clear()
    assert storage.put_if_absent("a", b"0123456789")
    assert not storage.put_if_absent("a", b"x")
    assert storage.size("a") == 10
    assert storage.size("none") is None
    assert storage.modified("a")
    assert storage.read("a", start=2, end=4) == b"23"
    assert storage.read("a", start=-2) == b"89"
    assert storage.read_at_most("a", 10) == b"0123456789"
    assert storage.read_at_most("none", 10) is None
    storage.delete("a")
    assert [request.split()[0] for request in bucket.requests] == ["POST"] * 2 + ["GET"] * 7 + ["DELETE"]


def test_an_object_in_parts_is_created_once_too(url: StorageUrl) -> None:
    storage, data = open_storage(url), bytes(range(256)) * (210 << 10)
    assert len(data) > 50 << 20
    assert storage.put_if_absent("large", data)
    assert not storage.put_if_absent("large", b"x" * len(data))
    assert storage.read("large", start=len(data) - 4) == data[-4:]
    assert storage.size("large") == len(data)


def test_doctor_finds_it_safe_for_many_writers_and_leaves_nothing(url: StorageUrl) -> None:
    found = doctor(url)
    assert found.safe
    assert all(check.kept for check in found.checks)
    assert list(open_storage(url).list("")) == []


def test_doctor_finds_out_that_conditions_are_ignored(bucket: Bucket, url: StorageUrl) -> None:
    bucket.honours_conditions = False
    try:
        broken = {check.name for check in probe(open_storage(url)) if not check.kept}
        with pytest.raises(StorageError) as caught:
            Registry.init(url)
    finally:
        bucket.honours_conditions = True
    assert broken >= {"create only if absent", "one winner of concurrent creations"}
    assert caught.value.kind == "storage/not-exclusive"


class TestPublishing(CloudTests):
    """Publishers at once, and a family on its way there and back."""


def test_refusals_are_told_apart_and_show_no_credential(
    bucket: Bucket, options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint, secret = options["endpoint_url"], options["token"]["private_key"]
    anonymous = open_storage(
        f"gs://{BUCKET}/x", storage_options={"anon": True, "endpoint_url": endpoint, "project": "p"}
    )
    with pytest.raises(StorageError) as caught:
        anonymous.read("a")
    assert caught.value.kind == "storage/permission"
    storage = open_storage(f"gs://{BUCKET}/x", storage_options=options)
    storage.put("a", b"1")
    bucket.answer = 403
    try:
        for call in (lambda: storage.read("a"), lambda: storage.size("a"), lambda: storage.put("a", b"")):
            with pytest.raises(StorageError) as caught:
                call()
            assert caught.value.kind == "storage/permission"
            shown = "".join(traceback.format_exception(caught.value))
            assert secret not in shown
            assert TOKEN not in shown
    finally:
        bucket.answer = None
    assert capfd.readouterr().err == ""


def test_a_token_that_cannot_be_looked_up_is_a_typed_error_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The client asks Google what a raw token may do; here nobody answers.
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ran = run("list", "--registry", f"gs://{BUCKET}/x", "--storage-option", f"token={TOKEN}")
    assert ran.code == 2
    assert ran.error_kind == "storage/unreachable"
    assert TOKEN not in ran.stdout + ran.stderr
