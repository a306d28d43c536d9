"""The plan's document: made by a builder, read back, refused where it is hostile or of another zoo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_support import make_zoo

from uws_store.builder import BasisBuilder, Fidelity, Members
from uws_store.checkpoint import scan_zoo
from uws_store.errors import FormatError, InvalidInputError
from uws_store.metadata.plan import PlanDocument

SHAPES = {"a.weight": (48, 32), "b.weight": (32, 48), "norm": (32,)}


def _built(zoo: Path, plan: PlanDocument | None = None) -> tuple[PlanDocument, Mapping[str, bytes]]:
    with Members(scan_zoo(zoo)) as members:
        builder = BasisBuilder(members, fidelity=Fidelity("change-error", 0.1), expect_models=500, plan=plan)
        built = builder.build()
        return builder.plan(built), built.objects


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("plans") / "zoo", shapes=SHAPES)


@pytest.fixture(scope="module")
def plan(zoo: Path) -> PlanDocument:
    return _built(zoo)[0]


def test_a_plan_says_what_every_coded_tensor_gets_and_why(plan: PlanDocument) -> None:
    rows = {row.name: row for row in plan.tensors}
    assert set(rows) == set(SHAPES)
    assert rows["a.weight"].left or rows["a.weight"].right
    assert rows["a.weight"].bits_per_model < rows["a.weight"].plain_bits_per_model
    assert all(row.reason for row in rows.values())
    assert plan.models == 500
    assert plan.model_bytes < plan.plain_model_bytes < plan.source_bytes
    assert plan.sharing is not None
    assert plan.sharing.shares == "subspace"


def test_a_plan_comes_back_from_its_bytes(plan: PlanDocument) -> None:
    assert PlanDocument.parse(plan.to_bytes(), where="plan.json") == plan


def test_a_saved_plan_gives_the_same_basis(zoo: Path, plan: PlanDocument) -> None:
    again, objects = _built(zoo, PlanDocument.parse(plan.to_bytes(), where="plan.json"))
    assert [row.left for row in again.tensors] == [row.left for row in plan.tensors]
    assert [row.reason for row in again.tensors] == [row.reason for row in plan.tensors]
    assert objects == _built(zoo)[1]


def test_a_plan_that_was_edited_is_followed(zoo: Path, plan: PlanDocument) -> None:
    bare = plan.model_copy(
        update={
            "tensors": tuple(
                row.model_copy(update={"left": None, "right": None, "centred": False, "ordered": False})
                for row in plan.tensors
            )
        }
    )
    _, objects = _built(zoo, bare)
    assert not any(path.startswith(("left", "right")) for path in objects)


def test_break_even_is_where_both_take_the_same(plan: PlanDocument) -> None:
    models = plan.break_even(0.0, plan.source_bytes)
    assert models is not None
    assert models * plan.source_bytes == pytest.approx(plan.basis_bytes + models * plan.model_bytes)
    assert plan.break_even(0.0, plan.model_bytes / 2) is None
    assert plan.break_even(2 * plan.basis_bytes, 2 * plan.model_bytes) == 0.0


def _tampered(plan: PlanDocument, **changes: Any) -> bytes:
    document = json.loads(plan.to_bytes())
    for place, value in changes.items():
        if place in document:
            document[place] = value
        else:
            document["tensors"][0][place] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"bits_per_model": -1.0},
        {"elements": 0},
        {"elements": 2**43},
        {"left": {"block": 4, "rank": 5}},
        {"left": {"block": 0, "rank": 0}},
        {"left": {"block": 4, "rank": 4}, "centred": False},
        {"left": {"block": 4, "rank": 4}, "ordered": False},
        {"reason": "x" * 1001},
        {"models": 0},
        {"architecture": "abc"},
        {"step": {"mantissa": 3, "exponent": 0}},
        {"tensors": []} | {"kind": "basis"},
        {"command": "rm -rf /"},
    ],
)
def test_hostile_plans_are_refused(plan: PlanDocument, changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        PlanDocument.parse(_tampered(plan, **changes), where="plan.json")
    assert caught.value.kind == "format/document"


def test_a_tensor_that_stands_twice_is_refused(plan: PlanDocument) -> None:
    document = json.loads(plan.to_bytes())
    document["tensors"].append(document["tensors"][0])
    with pytest.raises(FormatError):
        PlanDocument.parse(json.dumps(document).encode(), where="plan.json")


def test_a_plan_of_another_architecture_is_refused(tmp_path: Path, plan: PlanDocument) -> None:
    other = make_zoo(tmp_path / "other", shapes=SHAPES | {"norm": (31,)})
    with pytest.raises(InvalidInputError) as caught:
        _built(other, plan)
    assert caught.value.kind == "invalid-input/plan"


def test_a_plan_for_other_coded_tensors_is_refused(tmp_path: Path, plan: PlanDocument) -> None:
    def freeze(_: int, weights: dict[str, torch.Tensor]) -> None:
        weights["norm"] = torch.ones(32)

    with pytest.raises(InvalidInputError) as caught:
        _built(make_zoo(tmp_path / "frozen", shapes=SHAPES, change=freeze), plan)
    assert caught.value.kind == "invalid-input/plan"


def test_a_block_wider_than_its_side_is_refused(zoo: Path, plan: PlanDocument) -> None:
    wide = _tampered(plan, left={"block": 4096, "rank": 4096}, centred=True, ordered=True)
    with pytest.raises(InvalidInputError) as caught:
        _built(zoo, PlanDocument.parse(wide, where="plan.json"))
    assert caught.value.kind == "invalid-input/plan"


def test_factors_that_do_not_pay_for_their_arrays_are_left_out(tmp_path: Path) -> None:
    # One small tensor shares a subspace: its factor saves some bytes a model, and an array takes hundreds.
    def scramble(index: int, weights: dict[str, torch.Tensor]) -> None:
        source = torch.Generator().manual_seed(index)
        weights["big"] = torch.randn(48, 48, generator=source)

    zoo = make_zoo(tmp_path / "zoo", shapes={"small": (8, 10), "big": (48, 48)}, change=scramble, models=8)
    with Members(scan_zoo(zoo)) as members:
        built = BasisBuilder(members, fidelity=Fidelity("change-error", 0.2)).build()
    assert not any(path.startswith(("left", "right", "exponents")) for path in built.objects)
