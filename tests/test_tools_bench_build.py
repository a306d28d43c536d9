"""The builder's bench: a build beside its floors, and the same subspaces from every package."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "bench"))

import building


def test_a_build_is_measured_beside_its_floors() -> None:
    result = building.measure_build(
        models=6,
        rows=48,
        columns=64,
        rank=6,
        width=24,
        blocks=1,
        zoo_models=5,
        methods=("ours",),
        device="cpu",
    )
    assert 0.5 < result.methods[0].captured <= 1.0
    assert result.build_peak_bytes <= result.projected_bytes
    assert result.device["moments_bytes_per_s"] > 0
    text = io.StringIO()
    building.show_build(result, Console(file=text, width=150))
    assert "ours" in text.getvalue()
    json.dumps(building.build_document(result), allow_nan=False)


def test_other_packages_find_the_subspaces_that_ours_finds(tmp_path: Path) -> None:
    pytest.importorskip("tensorly", reason="the bench's extra")
    building.make_planted_zoo(tmp_path, {"layer.weight": (48, 64)}, models=6, rank=6)
    captured = {
        method: building._captured(tmp_path, *building._RUN[method](tmp_path, 6))
        for method in building.METHODS
    }
    assert captured["ours"] > 0.5
    assert max(captured.values()) - captured["ours"] < 1e-3
