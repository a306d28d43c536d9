"""The JSON schemas: up to date, true of what is written, and not true of what is wrong."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import make_schemas
import pytest
from independent_documents import check_record
from spec_support import VECTORS, basis_folder, model_folder, read_commits, read_document
from zoo_support import make_zoo

from uws_store import add, build, verify
from uws_store.errors import FormatError
from uws_store.metadata.document import Document
from uws_store.metadata.log import HeadHint
from uws_store.metadata.pending import PendingNote
from uws_store.registry import committing

Json = dict[str, Any]


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((make_schemas.SCHEMAS / f"{name}.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def is_valid(name: str, document: object) -> bool:
    found: bool = validator(name).is_valid(document)
    return found


def documents_of(registry: Path) -> list[tuple[str, Json]]:
    """Every document of a registry, with the name of its schema."""
    found = [("registry", json.loads((registry / "uws.json").read_bytes()))]
    found.append(("head", json.loads((registry / "_log" / "head").read_bytes())))
    found += [("commit", commit) for commit in read_commits(registry)]
    found += [
        ("snapshot", json.loads(path.read_bytes()))
        for path in (registry / "_log" / "snapshots").glob("*.json")
    ]
    found += [
        ("verification", json.loads(path.read_bytes()))
        for path in (registry / "families").glob("*/verifications/*.json")
    ]
    for name, folder in (("basis", "basis"), ("model", "models")):
        found += [
            (name, read_document(path.parent))
            for path in (registry / "families").glob(f"*/{folder}/{'[0-9a-f]' * 64}/zarr.json")
        ]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that the package wrote just now."""
    folder = tmp_path_factory.mktemp("schemas")
    zoo = make_zoo(folder / "zoo", models=5)
    shutil.move(zoo / "task-04.safetensors", folder / "new.safetensors")
    build(zoo, family="small", registry=str(folder / "registry"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(committing, "_CHECKPOINT_COMMITS", 1)
        add(folder / "new.safetensors", family="small", registry=str(folder / "registry"), exact=True)
    verify("small", registry=str(folder / "registry"), record=True)
    return folder / "registry"


def test_the_schemas_are_up_to_date() -> None:
    assert make_schemas.main(["--check"]) == 0


def test_a_stale_schema_is_found_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_schemas.main(["--check", "--folder", str(tmp_path)]) == 1
    assert make_schemas.main(["--folder", str(tmp_path)]) == 0
    assert make_schemas.main(["--check", "--folder", str(tmp_path)]) == 0
    (tmp_path / "model.json").write_bytes(b"{}")
    (tmp_path / "other.json").write_bytes(b"{}")
    assert make_schemas.stale(tmp_path) == ["model.json", "other.json"]
    assert make_schemas.main(["--check", "--folder", str(tmp_path)]) == 1
    assert "model.json" in capsys.readouterr().out


def test_what_the_package_writes_is_valid(built: Path) -> None:
    documents = documents_of(built)
    assert {name for name, _ in documents} == set(make_schemas.DOCUMENTS) - {"pending", "plan", "signature"}
    note = PendingNote(kind="lease", prefixes=(f"families/small/models/{'0' * 64}",))
    documents.append(("pending", json.loads(note.to_bytes())))
    check_record("pending", documents[-1][1], "a note")
    for name, document in documents:
        validator(name).validate(document)


def test_the_vectors_are_valid() -> None:
    documents = documents_of(VECTORS / "registry")
    assert [name for name, _ in documents].count("model") == 6
    for name, document in documents:
        validator(name).validate(document)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("registry", lambda d: d.pop("id")),
        ("registry", lambda d: d.update(id="0" * 31)),
        ("registry", lambda d: d.update(created="yesterday")),
        ("registry", lambda d: d.update(uws=2)),
        ("registry", lambda d: d.update(note="x")),
        ("head", lambda d: d.update(number=0)),
        ("head", lambda d: d.pop("uws")),
        ("commit", lambda d: d.update(actions=[])),
        ("commit", lambda d: d.update(parent=None)),
        ("commit", lambda d: d["actions"][0].pop("op")),
        ("commit", lambda d: d["actions"][0].update(op="rename")),
        ("commit", lambda d: d["actions"][0].update(architecture="x")),
        ("commit", lambda d: d["actions"][2].update(version=0)),
        ("commit", lambda d: d["actions"][2].update(exact=1)),
        ("basis", lambda d: d.pop("kind")),
        ("basis", lambda d: d.update(kind="model")),
        ("basis", lambda d: d.update(fraction_bits=11)),
        ("basis", lambda d: d["step"].update(mantissa=127)),
        ("basis", lambda d: d["mean"].update(dtype="float32")),
        ("basis", lambda d: d["mean"]["shards"][0].update(sha256="A" * 64)),
        ("basis", lambda d: d["tensors"][0].update(mode="other")),
        ("basis", lambda d: d["tensors"][0].update(shape=[-1])),
        ("basis", lambda d: d["tensors"][0].update(shape=[1] * 33)),
        ("basis", lambda d: d["tensors"][0].update(dtype="float32")),
        ("basis", lambda d: d["tensors"][0].update(name="")),
        ("basis", lambda d: d["tensors"][0]["left"].update(rank=0)),
        ("model", lambda d: d.pop("compact")),
        ("model", lambda d: d.update(basis=None)),
        ("model", lambda d: d.update(rel_error=-1)),
        ("model", lambda d: d.update(rel_error="0")),
        ("model", lambda d: d.update(dtypes=[["x"]])),
        ("model", lambda d: d.update(dtypes=[["x", "F32", "F32"]])),
        ("model", lambda d: d["source"].pop("sha256")),
        ("model", lambda d: d["exact"].update(leaf="x")),
        ("model", lambda d: d.update(scores=[{"metric": "x"}])),
    ],
)
def test_what_is_wrong_is_neither_valid_nor_read(name: str, edit: Callable[[Json], object]) -> None:
    registry = VECTORS / "registry"
    originals = {
        "registry": json.loads((registry / "uws.json").read_bytes()),
        "head": json.loads((registry / "_log" / "head").read_bytes()),
        "commit": read_commits(registry)[0],
        "basis": read_document(basis_folder(registry)),
        "model": read_document(model_folder(registry, "exact")),
    }
    document = copy.deepcopy(originals[name])
    assert is_valid(name, document)
    edit(document)
    assert not is_valid(name, document)
    with pytest.raises(FormatError) as caught:
        make_schemas.DOCUMENTS[name].parse(json.dumps(document).encode(), where="here")
    assert caught.value.kind in ("format/document", "format/newer-version")


def test_no_two_documents_can_be_taken_for_each_other() -> None:
    for name, document in documents_of(VECTORS / "registry"):
        assert [other for other in make_schemas.DOCUMENTS if is_valid(other, document)] == [name]


def test_every_document_class_has_a_schema() -> None:
    def below(cls: type[Document]) -> set[type[Document]]:
        own = {other for other in cls.__subclasses__() if other.__module__.startswith("uws_store.")}
        return own.union(*(below(other) for other in own)) if own else own

    assert below(Document) == set(make_schemas.DOCUMENTS.values())
    assert make_schemas.DOCUMENTS["head"] is HeadHint
