"""Rules of the specification held to numbers and bytes that are written out here, in what is stored just now."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import independent_arithmetic
import numpy as np
import pytest
import torch
from independent_basis import Basis
from independent_documents import read_log
from spec_support import (
    HEAD,
    TAIL,
    VECTORS,
    basis_folder,
    decoded,
    model_folder,
    payloads_of,
    read_commits,
    read_document,
    slots_of,
    to_json,
)
from zoo_support import make_zoo

from uws_store import add, build
from uws_store.canonical import Side, Step, reconstruct, round_to_dtype
from uws_store.dtypes import dtype_named
from uws_store.entropy import significance_order
from uws_store.registry import Registry
from uws_store.tensor_bytes import bytes_of, digest_of

OBJECT = re.compile(
    r"uws\.json|_log/(head|[0-9]{20}\.json|snapshots/[0-9a-f]{64}\.json)|families/[A-Za-z0-9_][A-Za-z0-9._-]*/(zarr\.json|(basis|models)/zarr\.json|"
    r"basis/[0-9a-f]{64}/(zarr\.json|(mean|left|right|exponents|profile|shared|files)/(zarr\.json|c/(0|[1-9][0-9]*)))|"
    r"packs/[0-9a-f]{64}|models/[0-9a-f]{64}/(zarr\.json|(core|(private|residual)(16|32|64)|private|files)/(zarr\.json|c/(0|[1-9][0-9]*))))"
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that the package wrote just now."""
    folder = tmp_path_factory.mktemp("rules")
    zoo = make_zoo(folder / "zoo", models=5)
    build(zoo, family="small", registry=str(folder / "registry"), exact=True, exact_overhead=100.0)
    return folder / "registry"


@pytest.fixture(params=["fresh", "vectors"])
def registry(request: pytest.FixtureRequest, fresh: Path) -> Path:
    return fresh if request.param == "fresh" else VECTORS / "registry"


def groups_of(registry: Path) -> list[Path]:
    """The folders of all bases and models."""
    return [path.parent for path in registry.glob("families/*/*/*/zarr.json")]


def test_objects_stand_at_these_paths_and_no_others(registry: Path) -> None:
    found = [str(path.relative_to(registry)) for path in registry.rglob("*") if path.is_file()]
    assert len(found) > 20
    assert [path for path in found if not OBJECT.fullmatch(path)] == []


def test_groups_without_a_document_are_these_bytes(registry: Path) -> None:
    paths = [*registry.glob("families/*/zarr.json"), *registry.glob("families/*/*/zarr.json")]
    assert len(paths) == 3
    assert {path.read_bytes() for path in paths} == {b'{"attributes":{},"node_type":"group","zarr_format":3}'}


def test_documents_are_written_in_the_one_form(registry: Path) -> None:
    assert (len(HEAD), len(TAIL)) == (27, 38)
    documents = [(registry / "uws.json").read_bytes(), (registry / "_log" / "head").read_bytes()]
    documents += [path.read_bytes() for path in (registry / "_log").glob("*.json")]
    for folder in groups_of(registry):
        data = (folder / "zarr.json").read_bytes()
        assert hashlib.sha256(data).hexdigest() == folder.name
        assert data.startswith(HEAD)
        assert data.endswith(TAIL)
        documents.append(data[len(HEAD) : -len(TAIL)])
    for data in documents:
        assert data == to_json(json.loads(data))


def test_what_an_action_says_of_its_objects_is_true(registry: Path) -> None:
    actions = [action for commit in read_commits(registry) for action in commit["actions"]]
    (family,) = [action for action in actions if action["op"] == "family"]
    for action in actions:
        if action["op"] not in ("basis", "model"):
            continue
        kind = "basis" if action["op"] == "basis" else "models"
        folder = registry / "families" / action["family"] / kind / action["digest"]
        sizes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert action["size_bytes"] == sizes
        document = read_document(folder)
        if action["op"] == "model":
            assert action["exact"] == ("exact" in document or "lossless" in document)
        else:
            assert document["architecture"] == family["architecture"]
            rows = sorted([row["name"], row["shape"]] for row in document["tensors"])
            text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
            assert family["architecture"] == hashlib.sha256(text.encode()).hexdigest()


def test_array_metadata_is_the_template_of_the_specification(registry: Path) -> None:
    text = (VECTORS.parents[1] / "uws-1.md").read_text(encoding="utf-8")
    block = re.search(r'(?m)^ +\{"chunk_grid".*"name":"regular"\},\n(?: +.*\n)*', text)
    whole = re.search(r'(?m)^ +\{"chunk_grid".*"chunk_key_encoding":\{"name":"default"\},\n +.*\n', text)
    coder = re.search(r'`(\{"configuration":\{"delta_spec".*\})`', text)
    assert block is not None
    assert whole is not None
    assert coder is not None
    template, single = ("".join(line.strip() for line in found[0].splitlines()) for found in (block, whole))
    seen = set()
    for folder in groups_of(registry):
        document = read_document(folder)
        for path in folder.glob("*/zarr.json"):
            name = path.parent.name
            array = document[{"private": "private_bytes", "files": "file_bytes"}.get(name, name)]
            own = coder[1].replace(":P,", f":{array['page']},") if "page" in array else '{"name":"bytes"}'
            if "chunk" in array:
                filled = template.replace("CODER", own).replace(
                    "[S]", f"[{array['chunk'] * slots_of(array)}]"
                )
                filled = filled.replace("[C]", f"[{array['chunk']}]")
            else:
                short = '{"configuration":{},"name":"numcodecs.pcodec"}'
                filled = single.replace("WORDS", short if "page" in array else own)
            filled = filled.replace("[L]", f"[{array['length']}]")
            assert path.read_text() == filled.replace('"D"', f'"{array["dtype"]}"')
            seen.add(name)
    assert seen >= {"mean", "core", "profile", "residual32"}


def test_an_empty_registry_is_valid(tmp_path: Path) -> None:
    Registry.init(str(tmp_path / "registry"))
    assert read_log(tmp_path / "registry") == {}
    assert Registry.open(str(tmp_path / "registry")).state().number == 0


def test_padding_and_tensors_that_are_not_coded_are_zeros_in_the_core() -> None:
    registry = VECTORS / "registry"
    document, table = read_document(model_folder(registry, "odd")), read_document(basis_folder(registry))
    data = (model_folder(registry, "odd") / "core" / "c" / "0").read_bytes()
    core = np.concatenate([decoded(payload) for payload in payloads_of(data, slots_of(document["core"]))])
    basis = Basis(basis_folder(registry), basis_folder(registry).name)
    missing = {row["name"] for row in document["private"]} | set(document["absent"])
    start = empty = 0
    for names in basis.groups:
        classes = np.concatenate([basis.coded[name].classes for name in names])
        owners = np.concatenate([np.full(len(basis.coded[name].classes), name in missing) for name in names])
        order = np.argsort(-classes, kind="stable")
        stop = start + -(-len(classes) // table["core_chunk"]) * table["core_chunk"]
        assert not core[start : start + len(classes)][owners[order]].any()
        assert core[start : start + len(classes)].any()
        assert not core[start + len(classes) : stop].any()
        empty += int(owners.sum()) + stop - start - len(classes)
        start = stop
    assert empty > 100


def test_the_order_of_the_example() -> None:
    rows, columns = np.array([0, -2], np.int16), np.array([1, 0, 1], np.int16)
    assert significance_order([(rows, columns)]).tolist() == [0, 2, 1, 3, 5, 4]


def test_the_first_product_is_rounded_half_to_even() -> None:
    """A factor of 2**-11 puts odd coefficients half way between two values of F."""
    right = Side(1, 1, 1, (torch.ones(1, 1, dtype=torch.float64),), 11)
    core = torch.tensor([[1.0], [3.0], [5.0], [-1.0], [-3.0], [2.0]], dtype=torch.float64)
    change = reconstruct(core, left=None, right=right, step=Step(128, 3), shift=0)
    assert change.reshape(-1).tolist() == [0, 2, 2, 0, -2, 1]
    lifted = independent_arithmetic.halve_even(core.reshape(-1).numpy().astype(np.int64), 1)
    assert lifted.tolist() == [0, 2, 2, 0, -2, 1]


@pytest.mark.parametrize(
    ("dtype", "value", "bits"),
    [
        ("F16", 65519.0, 0x7BFF),
        ("F16", 65520.0, 0x7BFF),
        ("F16", -1e30, 0xFBFF),
        ("F16", 2.0**-25, 0x0000),
        ("F16", 2.0**-25 * 1.5, 0x0001),
        ("F16", -(2.0**-25), 0x8000),
        ("F16", 1 + 2.0**-11, 0x3C00),
        ("F16", 1 + 3 * 2.0**-11, 0x3C02),
        ("F16", 1 + 2.0**-11 + 2.0**-40, 0x3C01),
        ("BF16", 1 + 2.0**-8 + 2.0**-40, 0x3F81),
        ("BF16", 3.4e38, 0x7F7F),
        ("BF16", 2.0**-133, 0x0001),
        ("F8_E4M3", 463.0, 0x7E),
        ("F8_E4M3", 1e6, 0x7E),
        ("F8_E4M3", -1e6, 0xFE),
        ("F8_E4M3", 2.0**-9, 0x01),
        ("F8_E4M3", 2.0**-10, 0x00),
        ("F8_E5M2", 1e9, 0x7B),
        ("F8_E5M2", 2.0**-16, 0x01),
        ("F8_E5M2", -(2.0**-18), 0x80),
        ("F32", 1e39, 0x7F7FFFFF),
        ("F32", 2.0**-150, 0x00000000),
        ("F32", -(2.0**-150), 0x80000000),
        ("F32", 2.0**-149 * 1.5, 0x00000002),
        ("F64", 0.1, 0x3FB999999999999A),
        ("F64", 0.0, 0x0000000000000000),
        ("F8_E4M3", 0.0, 0x00),
    ],
)
def test_rounding_gives_these_bits(dtype: str, value: float, bits: int) -> None:
    kind = dtype_named(dtype)
    found = round_to_dtype(torch.tensor([value], dtype=torch.float64), kind)
    assert bytes_of(found) == bits.to_bytes(kind.size_bytes, "little")
    numerator, denominator = value.as_integer_ratio()
    exponent = 1 - denominator.bit_length()
    assert independent_arithmetic.round_to(numerator, exponent, dtype) == bytes_of(found)


@pytest.mark.parametrize(
    ("dtype", "prediction", "residual", "source"),
    [
        ("BF16", 0x0000, 0, 0x0000),
        ("BF16", 0x0000, 1, 0x8000),
        ("BF16", 0x8000, 2, 0x0000),
        ("BF16", 0x3F80, 2, 0x3F81),
        ("BF16", 0xBF80, 2, 0xBF7F),
        ("BF16", 0x7FFF, 2, 0xFFFF),
        ("F8_E4M3", 0x7E, 4, 0xFF),
        ("F32", 0x3F800000, 3, 0x3F7FFFFE),
    ],
)
def test_residuals_lead_to_these_bits(dtype: str, prediction: int, residual: int, source: int) -> None:
    size = dtype_named(dtype).size_bytes
    found = independent_arithmetic.correct(prediction.to_bytes(size, "little"), np.array([residual]), dtype)
    assert found == source.to_bytes(size, "little")


def test_digests_are_of_the_bytes_alone() -> None:
    numbers = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    data = struct.pack("<4f", 1.0, -2.0, 0.5, 0.0)
    assert digest_of(numbers) == digest_of(numbers.reshape(4)) == hashlib.sha256(data).digest()
    assert digest_of(numbers.T) == hashlib.sha256(struct.pack("<4f", 1.0, 0.5, -2.0, 0.0)).digest()
    assert digest_of(torch.tensor([1 + 2j])) == hashlib.sha256(struct.pack("<2f", 1, 2)).digest()


def test_bits_per_parameter_are_counted_from_the_objects(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=5)
    build(zoo, family="small", registry=str(tmp_path / "registry"))
    added = add(
        zoo / "task-00.safetensors",
        family="small",
        task="new",
        registry=str(tmp_path / "registry"),
        exact=True,
        exact_overhead=100.0,
    )
    commit = read_commits(tmp_path / "registry")[-1]
    folder = tmp_path / "registry" / "families" / "small" / "models" / commit["actions"][0]["digest"]
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    counted = sum(size for path, size in sizes.items() if not path.startswith(("residual", "private/c/")))
    parameters = 24 * 16 + 24 + 10 * 24 + 10
    assert any(path.startswith("residual") for path in sizes)
    assert added.model.bits_per_parameter == pytest.approx(8 * counted / parameters, rel=1e-12)
