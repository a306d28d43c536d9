"""The contract of a storage on S3 (moto), and what becomes of everything a server may answer."""

from __future__ import annotations

import base64
import hashlib
import http.server
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_support import BUCKET, KEY, SECRET, moto_server, open_s3, proxy, s3_options, serving
from storage_contract import StorageTests

from uws_store.errors import InvalidInputError, NotFoundError, StorageError, UwsError
from uws_store.registry import Registry
from uws_store.storage import Storage, StorageUrl, open_storage, parse_options

pytest.importorskip("s3fs", reason="s3:// needs s3fs")
pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")

# What is tested here is a client on loopback; one attempt is enough to see an error.
ONCE = {"config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 60, "read_timeout": 120}}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture
def prefix() -> str:
    return f"team/{uuid.uuid4().hex}"


class TestS3Storage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path, endpoint: str, prefix: str) -> Storage:
        return open_s3(endpoint, prefix)


def test_objects_of_other_prefixes_are_not_seen(endpoint: str, prefix: str) -> None:
    storage, other = open_s3(endpoint, prefix), open_s3(endpoint, f"{prefix}-other")
    other.put("a/b", b"1")
    assert list(storage.list("")) == []
    assert storage.size("a/b") is None


def test_an_upload_is_checked_on_arrival(endpoint: str, prefix: str) -> None:
    seen: list[str | None] = []

    def look(request: http.server.BaseHTTPRequestHandler, number: int) -> None:
        if request.command == "PUT":
            seen.append(request.headers.get("Content-MD5"))

    with proxy(endpoint, answers=look) as address:
        open_s3(address, prefix).put_if_absent("a", b"bytes")
        open_s3(address, prefix).put("a", b"bytes")
    md5 = base64.b64encode(hashlib.md5(b"bytes").digest()).decode()
    assert seen == [md5, md5]


def test_each_call_costs_one_request(endpoint: str, prefix: str) -> None:
    made: list[str] = []

    def note(request: http.server.BaseHTTPRequestHandler, number: int) -> None:
        made.append(request.command)

    with proxy(endpoint, answers=note) as address:
        storage = open_s3(address, prefix)
        assert storage.put_if_absent("a", b"0123456789")
        assert not storage.put_if_absent("a", b"x")
        storage.put("b", b"1")
        assert storage.size("a") == 10
        assert storage.size("none") is None
        assert storage.read("a") == b"0123456789"
        assert storage.read("a", start=2, end=4) == b"23"
        assert storage.read("a", start=-2) == b"89"
        assert storage.read_at_most("a", 10) == b"0123456789"
        assert storage.read_at_most("none", 10) is None
        storage.delete("b")
    assert made == ["PUT", "PUT", "PUT", "HEAD", "HEAD", "GET", "GET", "GET", "GET", "GET", "DELETE"]


def test_a_conflict_with_a_request_in_flight_is_waited_out(endpoint: str, prefix: str) -> None:
    def conflict_twice(request: http.server.BaseHTTPRequestHandler, number: int) -> int | None:
        return 409 if number <= 2 else None

    with proxy(endpoint, answers=conflict_twice) as address:
        assert open_s3(address, prefix, **ONCE).put_if_absent("a", b"1") is True


def test_a_condition_that_fails_without_a_name_is_told_as_existing(endpoint: str, prefix: str) -> None:
    with proxy(endpoint, answers=lambda *_: 412) as address:
        assert open_s3(address, prefix, **ONCE).put_if_absent("a", b"1") is False


def test_a_server_that_stumbles_is_asked_again(endpoint: str, prefix: str) -> None:
    def stumble(request: http.server.BaseHTTPRequestHandler, number: int) -> int | None:
        return 503 if number == 1 else None

    open_s3(endpoint, prefix).put("a", b"1")
    with proxy(endpoint, answers=stumble) as address:
        assert open_s3(address, prefix).read("a") == b"1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, "storage/permission"),
        (401, "storage/permission"),
        (500, "storage/io"),
        (503, "storage/throttled"),
        (504, "storage/unreachable"),
    ],
)
def test_what_a_server_answers_becomes_a_kind(endpoint: str, prefix: str, status: int, kind: str) -> None:
    with proxy(endpoint, answers=lambda *_: status) as address:
        storage = open_s3(address, prefix, **ONCE)
        for call in (
            lambda: storage.read("a"),
            lambda: storage.size("a"),
            lambda: storage.put("a", b""),
            lambda: storage.put_if_absent("a", b""),
            lambda: storage.delete("a"),
            lambda: list(storage.list("")),
        ):
            with pytest.raises(StorageError) as caught:
                call()
            assert caught.value.kind == kind


def test_a_bucket_that_is_not_there_is_told_from_an_object_that_is_not(endpoint: str) -> None:
    storage = open_storage("s3://no-such-bucket/x", storage_options=s3_options(endpoint))
    for call in (
        lambda: storage.read("a"),
        lambda: storage.read_at_most("a", 10),
        lambda: storage.put_if_absent("a", b""),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.kind == "storage/no-bucket"


def test_a_server_that_is_not_there_is_unreachable(prefix: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_s3("http://127.0.0.1:9", prefix, **ONCE).read("a")
    assert caught.value.kind == "storage/unreachable"


def test_without_credentials_the_error_says_so(
    endpoint: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError) as caught:
        open_storage(f"s3://{BUCKET}/{prefix}", storage_options={"endpoint_url": endpoint}).read("a")
    assert caught.value.kind == "storage/permission"
    assert "credential" in str(caught.value).lower()
    anonymous = open_storage(
        f"s3://{BUCKET}/{prefix}", storage_options={"endpoint_url": endpoint, "anon": True}
    )
    with pytest.raises(NotFoundError):
        anonymous.read("a")


class TestCredentialsAreNeverSeen:
    @pytest.mark.parametrize("status", [400, 403, 404, 412, 416, 503])
    def test_in_an_error(self, endpoint: str, prefix: str, status: int) -> None:
        with proxy(endpoint, answers=lambda *_: status) as address:
            storage = open_s3(address, prefix, **ONCE)
            for call in (
                lambda: storage.read("a"),
                lambda: storage.size("a"),
                lambda: storage.put("a", b""),
                lambda: storage.put_if_absent("a", b""),
                lambda: storage.delete("a"),
                lambda: list(storage.list("")),
                lambda: Registry.over(storage),
                lambda: Registry.over(storage, create=True),
            ):
                try:
                    call()
                except UwsError as error:
                    shown = "".join(traceback.format_exception(error)) + repr(error) + str(error.__dict__)
                    assert SECRET not in shown
                    assert KEY not in shown

    def test_when_the_server_says_them_back(self, prefix: str) -> None:
        class Telltale(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = (
                    f"<Error><Code>AccessDenied</Code><Message>{KEY} and {SECRET}</Message></Error>".encode()
                )
                self.send_response(403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with serving(Telltale) as address, pytest.raises(StorageError) as caught:
            open_s3(address, prefix, **ONCE).read("a")
        assert "***" in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert SECRET not in shown
        assert KEY not in shown

    def test_in_what_a_storage_and_its_url_look_like(self, endpoint: str, prefix: str) -> None:
        storage = open_s3(endpoint, prefix)
        registry = Registry.over(storage, create=True)
        for value in (storage, storage.url, registry, registry.url, registry.document):
            for shown in (str(value), repr(value), f"{value}"):
                assert SECRET not in shown
                assert KEY not in shown
        for path in storage.list(""):
            assert SECRET.encode() not in storage.read(path)

    @pytest.mark.parametrize(
        "url",
        [
            f"s3://{KEY}:{SECRET}@bucket/x",
            f"https://user:{SECRET}@host/x",
            f"https://host/x?token={SECRET}",
            f"s3://bucket/x?secret={SECRET}",
            f"ftp://user:{SECRET}@host",
        ],
    )
    def test_a_url_that_holds_some_is_refused_and_not_shown(self, url: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            open_storage(url)
        assert SECRET not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        "options",
        [
            {"secret": SECRET, "no_such_option": SECRET},
            {"endpoint_url": f"http://user:{SECRET}@host"},
            {"secret": SECRET, "config_kwargs": {"retries": SECRET}},
            {"secret": SECRET, "config_kwargs": SECRET},
        ],
    )
    def test_options_that_cannot_be_used_are_named_without_their_values(
        self, options: dict[str, object]
    ) -> None:
        with pytest.raises(UwsError) as caught:
            open_storage("s3://bucket/x", storage_options=options).read("a")
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_options_are_read_as_they_are_typed() -> None:
    assert parse_options(
        ["key=a=b", "anon=true", "use_ssl=false", 'config_kwargs={"retries": 2}', "secret=123"]
    ) == {
        "key": "a=b",
        "anon": True,
        "use_ssl": False,
        "config_kwargs": {"retries": 2},
        "secret": "123",
    }
    for wrong in (["key"], ["=x"], ["a-b=1"], ["a=1", "a=2"], [f"token={{{SECRET}"]):
        with pytest.raises(InvalidInputError) as caught:
            parse_options(wrong)
        assert caught.value.kind == "invalid-input/storage-option"
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_url_with_options_is_the_url() -> None:
    url = StorageUrl("s3://bucket/x", {"secret": SECRET})
    assert url == "s3://bucket/x"
    assert {url: 1} == {"s3://bucket/x": 1}
    assert StorageUrl(url, {"key": KEY}).options == {"secret": SECRET, "key": KEY}


def test_a_folder_takes_no_options(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_storage(str(tmp_path), storage_options={"anon": True})
    assert caught.value.kind == "invalid-input/storage-option"
