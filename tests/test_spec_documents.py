"""The specification's schemas and rules stand in one place each: schemas come from the code, rules have their tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import make_schemas
import pytest
from zoo_support import make_zoo

import uws_store

SPEC = Path(__file__).resolve().parent.parent / "spec"
RULE = re.compile(r"R-[A-Z]+-[0-9]+")


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SPEC / "schemas" / f"{name}.json").read_bytes())
    return schema


def _documents(registry: Path) -> dict[str, list[dict[str, Any]]]:
    """Every document of a registry, by the name of its schema."""

    def attributes(pattern: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes())["attributes"]["uws_store"] for path in registry.glob(pattern)]

    return {
        "registry": [json.loads((registry / "uws.json").read_bytes())],
        "head": [json.loads((registry / "_log" / "head").read_bytes())],
        "commit": [json.loads(path.read_bytes()) for path in registry.glob("_log/*.json")],
        "basis": attributes("families/*/basis/*/zarr.json"),
        "model": attributes("families/*/models/*/zarr.json"),
    }


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("documents")
    registry = folder / "registry"
    zoo = make_zoo(folder / "zoo")
    uws_store.build(zoo, family="f", registry=str(registry), exact=True)
    uws_store.add(zoo / "task-00.safetensors", family="f", task="again", registry=str(registry))
    return _documents(registry)


def test_the_schemas_are_those_of_the_code() -> None:
    assert make_schemas.stale(SPEC / "schemas") == []


def test_a_schema_that_is_not_up_to_date_is_found(tmp_path: Path) -> None:
    for path in (SPEC / "schemas").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.json").write_bytes(b"{}\n")
    (tmp_path / "left-over.json").write_bytes(b"{}\n")
    assert make_schemas.stale(tmp_path) == ["left-over.json", "model.json"]


@pytest.mark.parametrize("name", ["registry", "head", "commit", "basis", "model"])
def test_what_is_written_fits_its_schema(name: str, documents: dict[str, list[dict[str, Any]]]) -> None:
    validator = jsonschema.Draft202012Validator(_schema(name))
    assert documents[name]
    for document in documents[name]:
        validator.validate(document)


@pytest.mark.parametrize("name", ["registry", "head", "commit", "basis", "model"])
def test_the_frozen_vectors_fit_the_schemas(name: str) -> None:
    validator = jsonschema.Draft202012Validator(_schema(name))
    found = _documents(SPEC / "vectors" / "v1" / "registry")[name]
    assert found
    for document in found:
        validator.validate(document)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model", {"colour": "red"}),
        ("model", {"rel_error": -1.0}),
        ("model", {"basis": "ABC"}),
        ("model", {"uws": 2}),
        ("basis", {"fraction_bits": 11}),
        ("basis", {"core_chunk": 0}),
        ("commit", {"number": 0}),
        ("commit", {"nonce": "short"}),
        ("registry", {"created": "yesterday"}),
        ("head", {"number": "1"}),
    ],
)
def test_what_breaks_a_rule_breaks_its_schema(
    name: str, change: dict[str, Any], documents: dict[str, list[dict[str, Any]]]
) -> None:
    validator = jsonschema.Draft202012Validator(_schema(name))
    assert list(validator.iter_errors({**documents[name][0], **change}))


def test_every_rule_stands_in_the_conformance_table_once() -> None:
    rules = re.findall(r"\*\*\[(R-[A-Z]+-[0-9]+)\]\*\*", (SPEC / "uws-1.md").read_text(encoding="utf-8"))
    assert len(rules) == len(set(rules)) > 50
    table = (SPEC / "conformance.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (R-[A-Z]+-[0-9]+) \| (.+) \|$", table, flags=re.MULTILINE)
    assert sorted(rule for rule, _ in rows) == sorted(rules)


def test_what_the_conformance_table_names_exists() -> None:
    tests = Path(__file__).resolve().parent
    table = (SPEC / "conformance.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+\.py)(?:::(\w+))?`", table))
    assert named
    for file, test in named:
        text = (tests / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{file}::{test}"


def test_rules_named_by_the_independent_reader_exist() -> None:
    rules = set(RULE.findall((SPEC / "uws-1.md").read_text(encoding="utf-8")))
    for path in Path(__file__).resolve().parent.glob("independent_*.py"):
        unknown = set(RULE.findall(path.read_text(encoding="utf-8"))) - rules
        assert not unknown, path.name
