"""The builder's bench: a build beside its floors, and the same subspaces from every package."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "bench"))

import building
import building_report
import planted_zoo
import subspace_methods


def test_a_build_is_measured_beside_its_floors() -> None:
    result = building.measure_build(
        models=6,
        rows=48,
        columns=64,
        rank=6,
        width=24,
        blocks=1,
        whole_models=5,
        methods=("ours",),
        wide=None,
    )
    assert result.several.captured == pytest.approx(result.methods[0].captured, abs=0.1)
    assert 0.5 < result.methods[0].captured <= 1.0
    assert result.whole.peak_bytes <= result.whole.projected_bytes
    assert min(result.read_seconds, result.product_cpu_seconds, result.whole.read_seconds) > 0
    text = io.StringIO()
    building_report.show_build(result, Console(file=text, width=150))
    assert "ours" in text.getvalue()
    assert "4 such tensors at once" in text.getvalue()
    json.dumps(building.build_document(result), allow_nan=False)


def test_a_synthetic_zoo_is_built_on_a_device_and_removed(tmp_path: Path) -> None:
    result = building.measure_whole(tmp_path, width=24, blocks=1, models=4, device="cpu:0")
    assert set(result.phases) == {"reading", "fitting", "encoding"}
    assert sum(result.phases.values()) <= result.seconds
    assert result.copy_bytes_per_s > 0
    assert 0 < result.stored_bytes < result.zoo_bytes
    assert list(tmp_path.iterdir()) == []
    text = io.StringIO()
    building_report.show_whole(result, Console(file=text, width=200))
    assert "GB/s" in text.getvalue()


def test_as_many_models_are_made_as_half_the_disk_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = planted_zoo.vit_shapes(width=768, blocks=12)
    free = 80 * 85_000_000 * 4
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    count = planted_zoo.models_that_fit(tmp_path, shapes)
    assert 35 <= count <= 42
    usage.free = 1 << 60
    assert planted_zoo.models_that_fit(tmp_path, shapes) == 500


def test_other_packages_find_the_subspaces_that_ours_finds(tmp_path: Path) -> None:
    pytest.importorskip("tensorly", reason="the bench's extra")
    planted_zoo.make_planted_zoo(tmp_path, {subspace_methods.TENSOR: (48, 64)}, models=6, rank=6)
    captured = {
        name: subspace_methods.captured(tmp_path, *method(tmp_path, 6))
        for name, method in subspace_methods.METHODS.items()
    }
    assert captured["ours"] > 0.5
    assert max(captured.values()) - captured["ours"] < 1e-3
