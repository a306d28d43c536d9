"""Signatures: what they bind, and what is found out by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from independent_documents import check_record

from uws_store import api
from uws_store.errors import FormatError, InvalidInputError, NotFoundError
from uws_store.layout import commit_path, signature_path
from uws_store.metadata.signature import Statement
from uws_store.registry import Registry
from uws_store.storage import LocalStorage, MemoryStorage

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519", reason="signs")
from cryptography.hazmat.primitives import serialization  # noqa: E402 - only where it is installed


def key_file(path: Path, seed: int) -> Path:
    """Write a key pair: the private key at the path, the public one beside it with ``.pub``."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MemoryStorage]:
    folder = tmp_path_factory.mktemp("signed")
    zoo = make_small_zoo(folder / "zoo", models=2)
    storage = MemoryStorage("signed")
    api.build(zoo, family="mlp", registry=Registry.over(storage, create=True))
    return zoo, storage


@pytest.fixture
def registry(made: tuple[Path, MemoryStorage]) -> Registry:
    copy = MemoryStorage("copy")
    for path in made[1].list(""):
        copy.put(path, made[1].read(path))
    return Registry.over(copy)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return key_file(tmp_path / "key.pem", 1)


def test_a_statement_is_signed_as_these_bytes(key: Path) -> None:
    statement = Statement(registry="0" * 32, number=7, sha256="a" * 64, family="mlp")
    expected = (
        b'uws-1 signature\n{"family":"mlp","number":7,"registry":"'
        + b"0" * 32
        + b'","sha256":"'
        + b"a" * 64
        + b'"}'
    )
    assert statement.signed_bytes() == expected
    assert b"family" not in statement.model_copy(update={"family": None}).signed_bytes()


def test_a_signature_is_what_the_specification_says(registry: Registry, key: Path) -> None:
    result = api.sign("mlp", key=key, registry=registry)
    document = json.loads(registry.storage.read(signature_path(result.key, "mlp")))
    check_record("signature", document, "signature")
    statement = document["statement"]
    assert statement["number"] == 1
    public = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32).public_key()
    text = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    public.verify(bytes.fromhex(document["signature"]), b"uws-1 signature\n" + text)


def test_what_was_signed_is_good_and_what_came_since_is_named(
    registry: Registry, key: Path, made: tuple[Path, MemoryStorage]
) -> None:
    api.sign(key=key, registry=registry)
    public = key.with_suffix(".pub")
    assert api.check_signature(key=public, registry=registry).commits_since == 0
    api.add(made[0] / "task-00.safetensors", family="mlp", task="new", registry=registry)
    result = api.check_signature(key=public, registry=registry)
    assert (result.number, result.commits_since, result.unsigned) == (1, 1, (("mlp", "new", 1),))


def test_an_older_log_is_found_out(registry: Registry, key: Path) -> None:
    api.set_alias("mlp", "task-00", "prod", registry=registry)
    api.sign(key=key, registry=registry)
    registry.storage.delete(commit_path(2))
    registry.storage.delete("_log/head")
    with pytest.raises(FormatError) as caught:
        api.check_signature(key=key, registry=Registry.over(registry.storage))
    assert caught.value.kind == "format/rollback"


def test_a_rewritten_log_is_found_out(registry: Registry, key: Path) -> None:
    api.set_alias("mlp", "task-00", "prod", registry=registry)
    api.sign(key=key, registry=registry)
    registry.storage.delete(commit_path(2))
    registry.storage.delete("_log/head")
    other = Registry.over(registry.storage)
    api.set_alias("mlp", "task-01", "prod", registry=other)
    api.set_alias("mlp", "task-01", "next", registry=other)
    with pytest.raises(FormatError) as caught:
        api.check_signature(key=key, registry=other)
    assert caught.value.kind == "format/rollback"


@pytest.mark.parametrize("damage", ["statement", "signature", "family"])
def test_a_signature_of_something_else_is_refused(registry: Registry, key: Path, damage: str) -> None:
    result = api.sign(key=key, registry=registry)
    path = signature_path(result.key, None)
    raw = json.loads(registry.storage.read(path))
    if damage == "statement":
        raw["statement"]["sha256"] = "0" * 64
    elif damage == "signature":
        raw["signature"] = "0" * 128
    else:
        path = signature_path(result.key, "mlp")
    registry.storage.put(path, json.dumps(raw).encode())
    with pytest.raises(FormatError) as caught:
        api.check_signature("mlp" if damage == "family" else None, key=key, registry=registry)
    assert caught.value.kind == "format/signature"


def test_another_key_has_not_signed(registry: Registry, key: Path, tmp_path: Path) -> None:
    api.sign(key=key, registry=registry)
    with pytest.raises(NotFoundError) as caught:
        api.check_signature(key=key_file(tmp_path / "other.pem", 2), registry=registry)
    assert caught.value.kind == "not-found/signature"


@pytest.mark.parametrize(
    "content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_refused_and_not_shown(registry: Registry, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        api.sign(key=path, registry=registry)
    assert caught.value.kind == "invalid-input/key"
    assert "AAAA" not in str(caught.value)


def test_the_commands_sign_and_verify(made: tuple[Path, MemoryStorage], key: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    run_well("build", made[0], "--family", "mlp", "--registry", registry)
    public = key.with_suffix(".pub")
    assert (
        run("verify", "mlp", "--signature", public, "--registry", registry).error_kind
        == "not-found/signature"
    )
    assert "commit 1" in run_well("sign", "mlp", "--key", key, "--registry", registry).stdout
    run_well("verify", "mlp", "--signature", public, "--registry", registry)
    run_well("alias", "mlp/task-00", "prod", "--registry", registry)
    run_well("sign", "mlp", "--key", key, "--registry", registry)
    (registry / "_log" / f"{2:020d}.json").unlink()
    (registry / "_log" / "head").unlink()
    ran = run("verify", "mlp", "--signature", public, "--registry", registry)
    assert (ran.code, ran.error_kind) == (1, "format/rollback")


def test_verifying_with_a_signature_opens_the_registry_once(
    made: tuple[Path, MemoryStorage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, key = tmp_path / "registry", key_file(tmp_path / "jo.pem", 1)
    api.build(made[0], family="mlp", registry=str(place))
    api.sign("mlp", key=key, registry=str(place))
    read: list[str] = []
    plain = LocalStorage.read_at_most

    def counted(storage: LocalStorage, path: str, limit_bytes: int) -> bytes | None:
        read.append(path)
        return plain(storage, path, limit_bytes)

    monkeypatch.setattr(LocalStorage, "read_at_most", counted)
    run_well("verify", "mlp", "--signature", key.with_suffix(".pub"), "--registry", place)
    assert read.count("uws.json") == 1
    assert read.count("_log/head") <= 2
