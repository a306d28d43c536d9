"""The check after encoding: a zoo that misleads the planner is still no larger than a plain coder makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from zoo_support import make_zoo

from uws_store.basis import step_of
from uws_store.builder import Fidelity, Members, build_basis, encode_model
from uws_store.builder import surveyed as surveyed_module
from uws_store.checkpoint import scan_zoo
from uws_store.store import encode_array

MODELS = 24
SIZE = 48


def _misleading(folder: Path) -> Path:
    """Write models of which those that the planner keeps out lie in a subspace, and fourteen of the others do not.

    The others have a few spikes of one height each: a plain coder pays for where these are, and a rotation makes
    noise of them.
    """
    folder.mkdir()
    source = torch.Generator().manual_seed(3)
    kept_out = set(np.random.default_rng(0).permutation(MODELS)[:6].tolist())
    smooth = kept_out | {index for index in range(MODELS) if index not in kept_out and index % 6 == 1}
    left = torch.linalg.qr(torch.randn(SIZE, 3, generator=source)).Q
    right = torch.linalg.qr(torch.randn(SIZE, 3, generator=source)).Q
    for index in range(MODELS):
        if index in smooth:
            weight = 40.0 * left @ torch.diag(torch.randn(3, generator=source)) @ right.T
        else:
            weight = 8.0 * (torch.rand(SIZE, SIZE, generator=source) < 0.03).float()
        save_file({"weight": weight.contiguous()}, folder / f"task-{index:02}.safetensors")
    return folder


def _stored(zoo: Path) -> tuple[int, int, set[str]]:
    """Bytes of all models' coefficients in a family, by a plain coder at the same error; the planner's reasons."""
    ours = plain = 0
    with Members(scan_zoo(zoo)) as members:
        built = build_basis(members, fidelity=Fidelity("change-error", 0.1))
        step = step_of(built.basis.document.step)
        for checkpoint in (members.checkpoints[task] for task in members.checkpoints):
            model = encode_model(built.basis, checkpoint, step=step, rounding="error")
            weight = checkpoint.read("weight").to(torch.float64)
            assert model.document.core is not None
            ours += model.document.core.size_bytes
            integers = _at_error(weight, model.document.rel_error)
            # In the same container: an index and checksums.
            document = built.basis.document
            packed = encode_array(integers, chunk=document.core_chunk, page=document.core_page)
            plain += packed.record.size_bytes
    return ours, plain, {fit.choice.reason for fit in built.fits}


def _at_error(weight: torch.Tensor, error: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Round to the largest step that keeps a relative error."""
    step = float(weight.abs().max())
    while float((weight - torch.round(weight / step) * step).norm() / weight.norm()) > max(error, 1e-6):
        step /= 1.05
    return torch.round(weight / step).to(torch.int16).reshape(-1).numpy()


def test_a_zoo_that_misleads_the_planner_is_no_larger_than_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = _misleading(tmp_path / "zoo")
    guarded, plain, reasons = _stored(zoo)
    assert reasons == {"a plain coder took less on encoded models"}
    monkeypatch.setattr(surveyed_module, "beaten_by_plain", lambda *_args, **_options: {})
    trusting, _, _ = _stored(zoo)
    assert trusting > 1.05 * guarded, "the zoo did not mislead the planner: it tests nothing"
    assert guarded <= 1.01 * plain


def test_a_zoo_with_a_subspace_keeps_its_factors(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes={"a.weight": (96, 64)}, models=12)
    with Members(scan_zoo(zoo)) as members:
        built = build_basis(members, fidelity=Fidelity("change-error", 0.1), expect_models=1000)
    assert any(fit.left or fit.right for fit in built.fits)
