"""The contract of a storage, and sixteen publishers, on a real S3 server: Ceph's radosgw."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import run_well
from radosgw_support import missing_programs, radosgw_server
from remote_support import BUCKET, KEY, SECRET, open_s3, s3_options
from storage_contract import StorageTests
from storage_support import found_family
from test_registry_concurrent import WRITERS, publish_from

from uws_store.registry import Registry
from uws_store.storage import Storage, StorageUrl

# A cluster takes a minute to come up on an idle machine and more beside other tests, so it is a job of its own.
pytestmark = [
    pytest.mark.skipif("UWS_TEST_RADOSGW" not in os.environ, reason="a job of its own: .ci/run radosgw"),
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"Ceph is not installed ({', '.join(missing_programs())}); .ci/run radosgw installs it where it may",
    ),
]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with radosgw_server(tmp_path_factory.mktemp("ceph") / "c") as address:
        yield address


class TestRadosgwStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path, endpoint: str) -> Storage:
        return open_s3(endpoint, uuid.uuid4().hex)


def test_it_is_safe_for_many_writers(endpoint: str) -> None:
    options = (f"endpoint_url={endpoint}", f"key={KEY}", f"secret={SECRET}")
    flags = [word for option in options for word in ("--storage-option", option)]
    ran = run_well("doctor", f"s3://{BUCKET}/{uuid.uuid4().hex}", "--json", *flags)
    assert ran.document["allows"] == {"reading": True, "publishing": True, "many writers": True}


def test_of_sixteen_publishers_nothing_is_lost(endpoint: str) -> None:
    registry = Registry.init(StorageUrl(f"s3://{BUCKET}/{uuid.uuid4().hex}", s3_options(endpoint)))
    registry.publish(found_family())
    numbers = publish_from(registry, lambda number: ["shared", f"own-{number}"])
    assert sorted(numbers) == list(range(2, 2 + 2 * WRITERS))
    tasks = Registry.open(registry.url).state().families["digits"].tasks
    assert {name: sorted(task.versions) for name, task in tasks.items()} == {
        "shared": list(range(1, WRITERS + 1)),
        **{f"own-{number}": [1] for number in range(WRITERS)},
    }
