"""Originals behind URLs: what ``verify --against`` finds there is what it finds on a disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from remote_support import BUCKET, KEY, SECRET, moto_server, open_s3, s3_options

import uws_store
from uws_store import verify
from uws_store.errors import UwsError
from uws_store.storage import open_storage


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("zoo"), models=4)


@pytest.fixture(scope="module")
def registry(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="f", registry=place, change_error=0.1, exact=True)
    return place


@pytest.fixture(scope="module")
def far(zoo: Path) -> str:
    storage = open_storage("memory://originals/zoo", create=True)
    for path in sorted(zoo.iterdir()):
        storage.put(path.name, path.read_bytes())
    return "memory://originals/zoo"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")
    with moto_server() as address:
        yield address


def test_a_zoo_behind_a_url_is_compared_as_on_a_disk(registry: str, zoo: Path, far: str) -> None:
    there = verify("f", registry=registry, against=far)
    assert there == verify("f", registry=registry, against=zoo)
    assert there.ok
    assert all(model.safe_to_delete for model in there.models)


def test_one_task_is_held_to_its_object(registry: str, far: str) -> None:
    result = verify("f", "task-01", registry=registry, against=f"{far}/task-01.safetensors")
    assert result.models[0].safe_to_delete
    other = verify("f", "task-01", registry=registry, against=f"{far}/task-02.safetensors")
    assert not other.models[0].safe_to_delete
    assert verify("f", "task-01", registry=registry, against=far).models == result.models


@pytest.mark.parametrize("place", ["folder", "url"])
def test_one_task_is_held_to_the_model_of_a_folder(
    registry: str, zoo: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "any-name"
    folder.mkdir()
    shutil.copy(zoo / "task-01.safetensors", folder / "model.safetensors")
    against = str(folder)
    if place == "url":
        against = f"memory://originals/{tmp_path.name}"
        open_storage(against, create=True).put(
            "model.safetensors", (folder / "model.safetensors").read_bytes()
        )
    assert verify("f", "task-01", registry=registry, against=against).models[0].safe_to_delete
    (folder / "model.safetensors").rename(folder / "another-task.safetensors")
    with pytest.raises(UwsError) as caught:
        verify("f", "task-01", registry=registry, against=folder)
    assert caught.value.kind == "not-found/original"


def test_a_manifest_names_originals_by_url(registry: str, far: str, tmp_path: Path) -> None:
    rows = [{"task": f"task-0{index}", "url": f"{far}/task-0{index}.safetensors"} for index in (0, 2)]
    (tmp_path / "zoo.json").write_text(json.dumps(rows))
    result = verify("f", registry=registry, against=tmp_path / "zoo.json")
    assert result.not_compared == ("task-01", "task-03")
    assert [model.task for model in result.models if model.safe_to_delete] == ["task-00", "task-02"]


def test_another_zoo_behind_a_url_is_not_of_originals(registry: str, tmp_path: Path) -> None:
    storage = open_storage(f"memory://originals/{tmp_path.name}", create=True)
    storage.put(
        "x.safetensors", (make_small_zoo(tmp_path / "x", models=1) / "task-00.safetensors").read_bytes()
    )
    with pytest.raises(UwsError) as caught:
        verify("f", registry=registry, against=storage.url)
    assert caught.value.kind == "not-found/original"


def test_options_reach_the_bucket_of_originals_and_are_not_shown(s3: str, registry: str, zoo: Path) -> None:
    bucket = open_s3(s3, "originals")
    for path in sorted(zoo.iterdir()):
        bucket.put_if_absent(path.name, path.read_bytes())
    place = f"s3://{BUCKET}/originals"
    words = [
        f"--zoo-option={name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in s3_options(s3).items()
    ]
    told = [
        run_well("verify", "f", "--against", place, "--registry", registry, "--json", *words),
        run_well("analyze", place, *words),
    ]
    assert len(told[0].document["safe_to_delete"]) == 4
    assert SECRET not in repr(told)
    assert KEY not in repr(told)


def test_options_of_originals_need_originals(registry: str) -> None:
    ran = run("verify", "f", "--registry", registry, "--zoo-option", "anon=true")
    assert ran.code == 2
    assert "--against" in ran.stderr
