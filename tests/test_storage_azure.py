"""The contract of a storage on Azure (azurite), what doctor says of it, and publishers at once."""

from __future__ import annotations

import http.server
import traceback
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from azure_support import CONTAINER, KEY, azure_options, azurite, azurite_folder
from cli_support import run, run_well
from cloud_support import CloudTests
from remote_support import proxy
from storage_contract import StorageTests

from uws_store.errors import StorageError
from uws_store.storage import Storage, StorageUrl, open_storage

pytest.importorskip("adlfs", reason="az:// needs adlfs")
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

WRONG_KEY = "d3Jvbmcta2V5LW5ldmVyLWJlLXNlZW4="


@pytest.fixture(scope="module")
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with azurite(azurite_folder(request.config, tmp_path_factory)) as address:
        yield address


@pytest.fixture
def url(endpoint: str) -> StorageUrl:
    return StorageUrl(f"az://{CONTAINER}/{uuid.uuid4().hex}", azure_options(endpoint))


class TestAzureStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path, url: StorageUrl) -> Storage:
        return open_storage(url)


def test_doctor_finds_it_safe_for_many_writers_and_leaves_nothing(url: StorageUrl) -> None:
    flag = f"connection_string={url.options['connection_string']}"
    ran = run_well("doctor", str(url), "--json", "--storage-option", flag)
    assert ran.document["safe"] is True
    assert all(ran.document["allows"].values())
    assert list(open_storage(url).list("")) == []
    assert KEY not in ran.stdout + ran.stderr


class TestPublishing(CloudTests):
    """Publishers at once, and a family on its way there and back."""


def test_refusals_are_told_apart_and_show_no_key(endpoint: str) -> None:
    options = azure_options(endpoint, key=WRONG_KEY)
    wrong = open_storage(f"az://{CONTAINER}/x", storage_options=options)
    nowhere = open_storage("az://no-such-container/x", storage_options=azure_options(endpoint))
    for storage, kind in ((wrong, "storage/permission"), (nowhere, "storage/no-bucket")):
        with pytest.raises(StorageError) as caught:
            storage.put("a", b"")
        assert caught.value.kind == kind
        shown = "".join(traceback.format_exception(caught.value))
        assert KEY not in shown
        assert WRONG_KEY not in shown


def test_what_calls_cost_in_requests(endpoint: str) -> None:
    made: list[str] = []

    def note(request: http.server.BaseHTTPRequestHandler, number: int) -> None:
        made.append(request.command)

    with proxy(endpoint, answers=note) as address:
        storage = open_storage(f"az://{CONTAINER}/{uuid.uuid4().hex}", storage_options=azure_options(address))
        calls: list[tuple[str, Callable[[], object]]] = [
            ("PUT", lambda: storage.put_if_absent("a", b"0123456789")),
            ("PUT", lambda: storage.put_if_absent("a", b"x")),
            ("PUT", partial(storage.put, "b", b"1")),
            ("HEAD", lambda: storage.size("a")),
            ("HEAD", lambda: storage.modified("a")),
            ("GET", lambda: storage.read("a")),
            ("GET", lambda: storage.read("a", start=2, end=4)),
            ("GET", lambda: storage.read_at_most("a", 10)),
            ("GET", lambda: storage.read_at_most("none", 10)),
            ("DELETE", partial(storage.delete, "a")),
        ]
        for method, call in calls:
            made.clear()
            call()
            assert made == [method]


def test_options_that_cannot_be_used_are_told_without_their_values() -> None:
    ran = run(
        "list", "--registry", f"az://{CONTAINER}/x", "--storage-option", f"connection_string={WRONG_KEY}"
    )
    assert ran.code == 2
    assert ran.error_kind.startswith(("invalid-input/", "storage/"))
    assert WRONG_KEY not in ran.stdout + ran.stderr
