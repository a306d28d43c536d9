"""The bits that a family was asked for: members take them, and so do models that are added later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import uws_store
from uws_store.api import extend, rebase
from uws_store.basis import Basis, step_of
from uws_store.builder import Fidelity, Members, build_basis, encode_model, member_step
from uws_store.builder.outside import coded_by_others
from uws_store.canonical import Step
from uws_store.checkpoint import open_checkpoint, scan_zoo
from uws_store.errors import FormatError
from uws_store.metadata.basis import BuildRecord
from uws_store.plan import Candidate

SIZE = 160
NAMES = ("first", "second")
ADDED = 3


def _write(folder: Path, models: int, added: int) -> tuple[Path, Path]:
    """Write fine-tunes of one base: changes in shared coordinates of steeply falling spread."""
    zoo, held = folder / "zoo", folder / "held"
    zoo.mkdir()
    held.mkdir()
    source = torch.Generator().manual_seed(0)
    spread = torch.exp2(-5.0 * torch.linspace(0, 1, SIZE).sqrt())
    base = {name: torch.randn(SIZE, SIZE, generator=source) for name in NAMES}
    sides = {
        name: [torch.linalg.qr(torch.randn(SIZE, SIZE, generator=source)).Q for _ in range(2)]
        for name in NAMES
    }
    for index in range(models + added):
        weights = {}
        for name in NAMES:
            left, right = sides[name]
            core = torch.randn(SIZE, SIZE, generator=source) * spread[:, None] * spread[None, :]
            weights[name] = base[name] + 0.05 * (left @ core @ right.T)
        save_file(weights, (zoo if index < models else held) / f"task-{index:02}.safetensors")
    return zoo, held


@pytest.mark.parametrize(("models", "bits"), [(3, 1.2), (7, 0.8), (14, 0.6)])
def test_models_in_the_basis_and_outside_it_take_what_was_asked_for(
    tmp_path: Path, models: int, bits: float
) -> None:
    zoo, held = _write(tmp_path, models, ADDED)
    with Members(scan_zoo(zoo)) as members:
        built = build_basis(members, fidelity=Fidelity("bits", bits), expect_models=1000)
        assert built.step == member_step(built.basis)
        inside = [
            encode_model(built.basis, checkpoint, step=built.step).bits_per_parameter(built.basis)
            for checkpoint in members.checkpoints.values()
        ]
    outside: list[float] = []
    at_members_step: list[float] = []
    for path in sorted(held.iterdir()):
        with open_checkpoint(path) as checkpoint:
            model = encode_model(built.basis, checkpoint)
            finer = encode_model(built.basis, checkpoint, step=built.step)
            outside.append(model.bits_per_parameter(built.basis))
            at_members_step.append(finer.bits_per_parameter(built.basis))
    assert np.mean(inside) == pytest.approx(bits, rel=0.03)
    assert np.mean(outside) == pytest.approx(bits, rel=0.1)
    assert np.mean(at_members_step) > 1.1 * bits, "or this zoo shows nothing"


def test_a_family_gives_members_and_added_models_steps_of_their_own(tmp_path: Path) -> None:
    zoo, held = _write(tmp_path, 6, ADDED)
    registry = str(tmp_path / "registry")
    built = uws_store.build(zoo, family="f", registry=registry, bits=0.6)
    paths = sorted(held.iterdir())
    added = uws_store.add(paths[0], family="f", registry=registry).model
    assert {model.step for model in built.models} == {built.models[0].step}
    assert added.step == built.step > built.models[0].step
    assert added.bits_per_parameter == pytest.approx(0.6, rel=0.1)
    grown = extend("f", [held], registry=registry)
    assert np.mean([model.bits_per_parameter for model in grown.models]) == pytest.approx(0.6, rel=0.1)
    old = built.models[0].task
    moved = rebase("f", old, source=zoo / f"{old}.safetensors", registry=registry)
    assert moved.model.step == grown.models[0].step, "it is among the models that the new basis was made from"


def test_who_asks_for_an_error_gets_one_step_for_all(tmp_path: Path) -> None:
    zoo, _ = _write(tmp_path, 4, 0)
    with Members(scan_zoo(zoo)) as members:
        built = build_basis(members, fidelity=Fidelity("change-error", 0.2))
    assert all(not fit.outside for fit in built.fits)
    assert built.step == member_step(built.basis) == step_of(built.basis.document.step)
    assert "member-step" not in dict(built.basis.document.build.options)


def test_models_that_share_nothing_but_a_size_differ_by_their_part_in_the_mean() -> None:
    source = torch.Generator().manual_seed(1)
    models = 9
    values = [torch.randn(40, 40, generator=source, dtype=torch.float64) for _ in range(models)]
    mean = torch.stack(values).mean(0)
    changes = {str(index): value - mean for index, value in enumerate(values)}
    found = coded_by_others(
        changes,
        Candidate(),
        sampled=list(changes)[:4],
        members=models,
        shift=1,
        device=torch.device("cpu"),
    )
    assert sorted(found) == ["0", "1", "2", "3"]
    for task, outside in found.items():
        fitted = round(outside.fitted_share * models)
        assert fitted == 7, "two at a time are kept out"
        inside = float(changes[task].square().mean())
        measured = float(outside.coefficients.to(torch.float64).square().mean()) / 4
        assert measured / inside == pytest.approx((1 + 1 / fitted) / (1 - 1 / models), rel=0.1)


@pytest.mark.parametrize("text", ["", "200", "100 * 2^-9", "200 * 2^-999", "200*2^-9", "200 * 2^-9 "])
def test_a_members_step_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    zoo, _ = _write(tmp_path, 2, 0)
    with Members(scan_zoo(zoo)) as members:
        basis = build_basis(members, fidelity=Fidelity("change-error", 0.2)).basis
    record = basis.document.build
    assert member_step(_told(basis, record, (("member-step", "200 * 2^-9"),))) == Step(200, -9)
    with pytest.raises(FormatError) as caught:
        member_step(_told(basis, record, (("member-step", text),)))
    assert caught.value.kind == "format/document"


def _told(basis: Basis, record: BuildRecord, options: tuple[tuple[str, str], ...]) -> Basis:
    told = record.model_copy(update={"options": options})
    basis.document = basis.document.model_copy(update={"build": told})
    return basis
