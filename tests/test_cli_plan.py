"""``build --plan-only`` and ``build --plan``: a plan is printed, saved, followed, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import Ran, run
from zoo_support import make_zoo

from uws_store import api
from uws_store.basis import Basis

SHAPES = {"a.weight": (48, 32), "b.weight": (32, 48)}


def _said(ran: Ran) -> str:
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("cli-plan") / "zoo", shapes=SHAPES)


@pytest.fixture(scope="module")
def saved(zoo: Path) -> Path:
    path = zoo.parent / "plan.json"
    result = run(
        *("build", str(zoo), "--family", "f", "--change-error", "0.2", "--expect-models", "300"),
        *("--plan-only", "-o", str(path), "--registry", str(zoo.parent / "none")),
    )
    assert result.code == 0, result
    assert "a.weight" in _said(result)
    assert "pays against safetensors" in _said(result)
    assert "shares" in _said(result)
    return path


def test_a_plan_stores_nothing(saved: Path) -> None:
    assert saved.is_file()
    assert not (saved.parent / "none").exists()


def test_the_plan_as_json_has_its_totals(zoo: Path) -> None:
    result = run("build", str(zoo), "--family", "f", "--plan-only", "--json")
    assert result.code == 0, result
    document = result.document
    assert {row["name"] for row in document["tensors"]} == set(SHAPES)
    assert set(document["totals"]) == {"break_even_with_plain", "break_even_with_safetensors"}
    assert document["model_bytes"] > 0


def test_a_saved_plan_is_followed_by_a_build(zoo: Path, saved: Path, tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    options = ("--family", "f", "--change-error", "0.2", "--registry", registry)
    result = run("build", str(zoo), "--plan", str(saved), *options)
    assert result.code == 0, result
    plan = api.read_plan(saved)
    family = api.open_family("f", registry=registry)
    basis: Basis = family.basis(None)
    table = basis.table
    assert {row.name: row.left for row in plan.tensors} == {name: row.left for name, row in table.items()}


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"uws":1,"kind":"basis"}', b"\xff" * 40])
def test_a_file_that_is_no_plan_is_refused(zoo: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    result = run("build", str(zoo), "--family", "f", "--plan", str(path), "--registry", str(tmp_path / "r"))
    assert result.code != 0
    assert not (tmp_path / "r").exists()


def test_a_plan_that_is_not_there_is_refused(zoo: Path, tmp_path: Path) -> None:
    result = run("build", str(zoo), "--family", "f", "--plan", str(tmp_path / "none.json"))
    assert result.code != 0
    assert "no plan" in _said(result)


def test_a_plan_is_not_made_and_followed_at_once(zoo: Path, saved: Path) -> None:
    assert run("build", str(zoo), "--family", "f", "--plan", str(saved), "--plan-only").code == 2
    assert run("build", str(zoo), "--family", "f", "-o", "somewhere.json").code == 2


def test_a_zoo_that_shares_nothing_is_told_so(tmp_path: Path) -> None:
    def scramble(index: int, weights: dict[str, torch.Tensor]) -> None:
        source = torch.Generator().manual_seed(index)
        for name, value in weights.items():
            weights[name] = torch.randn(value.shape, generator=source)

    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES, change=scramble)
    result = run("build", str(zoo), "--family", "f", "--registry", str(tmp_path / "r"))
    assert result.code == 0, result
    assert "share no subspace and no mean" in _said(result)


def test_a_zoo_of_one_base_is_not_told_so(zoo: Path, tmp_path: Path) -> None:
    result = run("build", str(zoo), "--family", "f", "--registry", str(tmp_path / "r"))
    assert result.code == 0, result
    assert "share no subspace" not in _said(result)
    assert "subspace" in _said(result)
