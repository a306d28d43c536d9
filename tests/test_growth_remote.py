"""Growth from a network: ``add``, ``extend`` and ``rebase`` read checkpoints behind URLs as ``build`` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from remote_support import BUCKET, KEY, SECRET, moto_server, open_s3, s3_options

import uws_store
from uws_store.api import extend, rebase
from uws_store.checkpoint import task_of
from uws_store.errors import NotFoundError
from uws_store.storage import open_storage


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")
    with moto_server() as address:
        yield address


@pytest.fixture
def registry(tmp_path: Path) -> str:
    zoo = make_small_zoo(tmp_path / "zoo", models=6)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry, change_error=0.1, exact=True)
    return registry


def _more(tmp_path: Path, count: int = 3) -> Path:
    more = make_small_zoo(tmp_path / "more", models=count, seed=7)
    for path in sorted(more.iterdir()):
        path.rename(path.with_name(f"more-{path.name}"))
    return more


def _digests(registry: str, tasks: list[str]) -> list[str]:
    family = uws_store.open_family("f", registry=registry)
    return [family.basis().digest, *(family.resolve(task).digest for task in tasks)]


@pytest.mark.parametrize(
    ("place", "task"),
    [
        ("s3://bucket/zoo/night.safetensors", "night"),
        ("memory://zoo/night-00001-of-00001.safetensors", "night"),
        ("s3://bucket/zoo/night/", "night"),
        ("hf://org/night@v2", "night"),
        ("hf://org/night-1.5", "night-1.5"),
    ],
)
def test_the_task_of_a_url_is_its_last_part(place: str, task: str) -> None:
    assert task_of(place) == task


def test_what_is_added_from_a_url_is_what_is_added_from_a_disk(tmp_path: Path, registry: str) -> None:
    more = _more(tmp_path)
    name = f"growth/{tmp_path.name}"
    storage = open_storage(f"memory://{name}/one", create=True)
    storage.put("model.safetensors", (more / "more-task-00.safetensors").read_bytes())
    open_storage(f"memory://{name}/two", create=True)
    near = uws_store.add(more / "more-task-00.safetensors", family="f", task="near", registry=registry)
    far = uws_store.add(f"memory://{name}/one", family="f", registry=registry)
    assert far.model.task == "one"
    family = uws_store.open_family("f", registry=registry)
    assert family.resolve("near").digest == family.resolve("one").digest
    assert near.model.size_bytes == far.model.size_bytes
    with pytest.raises(NotFoundError) as caught:
        uws_store.add(f"memory://{name}/two", family="f", registry=registry)
    assert caught.value.kind == "not-found/checkpoint"


def test_a_revision_from_a_url_or_a_manifest_is_that_from_a_disk(tmp_path: Path) -> None:
    more = _more(tmp_path)
    name = f"extended/{tmp_path.name}"
    storage = open_storage(f"memory://{name}", create=True)
    rows = []
    for path in sorted(more.iterdir()):
        storage.put(path.name, path.read_bytes())
        rows.append({"task": path.stem, "url": f"memory://{name}/{path.name}"})
    (tmp_path / "more.json").write_text(json.dumps(rows))
    zoo = make_small_zoo(tmp_path / "zoo", models=6)
    found = []
    for number, source in enumerate((str(more), f"memory://{name}", str(tmp_path / "more.json"))):
        registry = str(tmp_path / f"registry-{number}")
        uws_store.build(zoo, family="f", registry=registry, change_error=0.1)
        result = extend("f", [source], registry=registry)
        assert (result.revision, len(result.models)) == (2, 3)
        found.append(_digests(registry, [path.stem for path in sorted(more.iterdir())]))
    assert found[0] == found[1] == found[2]


def test_options_reach_the_storage_of_what_is_added(s3: str, tmp_path: Path, registry: str) -> None:
    more = _more(tmp_path)
    bucket = open_s3(s3, f"zoos/{tmp_path.name}")
    for path in sorted(more.iterdir()):
        bucket.put_if_absent(path.name, path.read_bytes())
    place = f"s3://{BUCKET}/zoos/{tmp_path.name}"
    words = [
        f"--zoo-option={name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in s3_options(s3).items()
    ]
    one = f"{place}/more-task-00.safetensors"
    told = [
        run_well("add", one, "--family", "f", "--task", "x", "--registry", registry, *words),
        run_well("extend", "f", place, "--registry", registry, *words),
        run_well("rebase", "f/x", "--source", one, "--registry", registry, *words),
    ]
    family = uws_store.open_family("f", registry=registry)
    assert [family.resolve(task).basis_revision for task in ("x", "more-task-00", "task-00")] == [2, 2, 1]
    assert family.resolve("x").digest == family.resolve("more-task-00").digest
    assert SECRET not in repr(told)
    assert KEY not in repr(told)


def test_a_source_behind_a_url_that_is_another_is_refused(tmp_path: Path, registry: str) -> None:
    more = _more(tmp_path)
    name = f"source/{tmp_path.name}"
    storage = open_storage(f"memory://{name}", create=True)
    storage.put("other.safetensors", (more / "more-task-01.safetensors").read_bytes())
    extend("f", [more], registry=registry)
    before = _digests(registry, ["task-00"])
    with pytest.raises(uws_store.UwsError) as caught:
        rebase("f", "task-00", source=f"memory://{name}/other.safetensors", registry=registry)
    assert caught.value.kind == "incompatible/source"
    assert _digests(registry, ["task-00"]) == before


def test_an_option_that_cannot_be_read_is_refused(registry: str) -> None:
    ran = run("add", "s3://bucket/x.safetensors", "--family", "f", "--registry", registry, "--zoo-option=key")
    assert ran.error_kind == "invalid-input/storage-option"
