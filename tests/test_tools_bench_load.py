"""The bench of loading: its family loads with digests checked, its link waits, its tables hold every number."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import forged_vit  # noqa: E402 - found only now
import load  # noqa: E402
import load_report  # noqa: E402

import uws_store  # noqa: E402


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> forged_vit.ForgedVit:
    return forged_vit.forge_vit(tmp_path_factory.mktemp("vit"), models=1, width=192, depth=1)


def test_a_forged_family_loads_with_the_digests_of_the_float64_path(forged: forged_vit.ForgedVit) -> None:
    weights = uws_store.load_model(forged_vit.FAMILY, "task-0", registry=str(forged.registry)).materialize()
    plain = load_file(forged.plain)
    assert forged.parameters == sum(tensor.numel() for tensor in weights.values())
    assert all(torch.equal(plain[name], tensor) for name, tensor in weights.items())
    assert 0.3 < 8 * forged.model_bytes / forged.parameters < 0.8


def test_every_container_gives_the_same_weights(forged: forged_vit.ForgedVit, tmp_path: Path) -> None:
    plain = load_file(forged.plain)
    ways = load.Rivals.write(forged.plain, tmp_path / "rivals").tasks()
    assert len(ways) == 5
    for how, size_bytes, requests in ways.values():
        found = how()
        assert all(torch.equal(plain[name], tensor) for name, tensor in found.items())
        assert found.keys() == plain.keys()
        assert size_bytes > 0
        assert requests > 0


def test_a_link_makes_requests_wait_and_counts_them(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(bytes(10_000))
    link = load.LinkStorage(tmp_path, bits_per_s=1e6, latency_s=0.05)
    started_s = time.perf_counter()
    link.read("object")
    taken_s = time.perf_counter() - started_s
    assert taken_s >= 0.05 + 0.08
    assert (link.requests, link.size_bytes) == (1, 10_000)
    assert link.size("object") == 10_000
    assert link.requests == 2


def test_results_are_written_whole() -> None:
    rows = [
        load.LoadRow(
            "disk", "ours", seconds=0.5, size_bytes=10, requests=3, value=2.0, unit="x", goal="1", met=True
        ),
        load.LoadRow("disk", "theirs", seconds=1.5),
    ]
    text = load_report.load_markdown(rows)
    assert "| ours | 500.00 ms |  | 0.0 MB | 3 | 2.00 x | 1 | met |" in text
    document = load_report.load_document(rows)
    assert [row["what"] for row in document["rows"]] == ["ours", "theirs"]
    assert document["rows"][1]["goal"] == ""
