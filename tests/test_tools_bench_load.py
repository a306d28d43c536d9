"""The bench of loading: its family loads with digests checked, its link waits, its tables hold every number."""

from __future__ import annotations

import contextlib
import http.server
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from remote_support import serving
from safetensors.torch import load_file

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import forged_vit  # noqa: E402 - found only now
import load_device  # noqa: E402
import load_disk  # noqa: E402
import load_links  # noqa: E402
import load_report  # noqa: E402
import load_rows  # noqa: E402
import s3_stand_in  # noqa: E402
import throttled_link  # noqa: E402

import uws_store  # noqa: E402
from uws_store.api import open_family  # noqa: E402


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
    ways = load_disk.Rivals.write(forged.plain, tmp_path / "rivals").tasks()
    assert len(ways) == 5
    for how, size_bytes, requests in ways.values():
        found = how()
        assert all(torch.equal(plain[name], tensor) for name, tensor in found.items())
        assert found.keys() == plain.keys()
        assert size_bytes > 0
        assert requests > 0


def test_a_link_holds_requests_back_and_shares_its_bandwidth() -> None:
    # Two connections at once: their bytes pass one bucket, and each request waits the delay.
    size_bytes, bits_per_s, latency_s = 100_000, 8e6, 0.05
    with _answering(bytes(size_bytes)) as port, throttled_link.throttled_link(port) as link:
        link.set(bits_per_s=bits_per_s, latency_s=latency_s)
        started_s = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: _get(link.port), range(2)))
        taken_s = time.perf_counter() - started_s
        passed = link.passed()
        assert link.passed() == throttled_link.Passed(0, 0)
    assert [len(answer) for answer in answers] == [size_bytes] * 2
    assert taken_s >= latency_s + 2 * 8 * size_bytes / bits_per_s - 0.01
    assert passed.requests == 2
    assert 2 * size_bytes < passed.size_bytes < 2 * size_bytes + 2_000


def test_every_way_over_a_link_gives_the_same_weights(forged: forged_vit.ForgedVit, tmp_path: Path) -> None:
    pytest.importorskip("moto.server", reason="the stand-in for S3 is moto[server]")
    plain = load_file(forged.plain)
    rivals = load_disk.Rivals.write(forged.plain, tmp_path / "rivals")
    with s3_stand_in.s3_stand_in() as port, throttled_link.throttled_link(port) as link:
        load_links.fill_bucket(forged, rivals, port=port)
        ours = load_links.Ours(link, tmp_path / "cache")
        link.passed()
        for how in (ours.load, *load_links.rivals_over(link).values()):
            ours.forget()
            found = how()
            assert link.passed().size_bytes > 0
            assert all(torch.equal(plain[name], tensor) for name, tensor in found.items())
            assert found.keys() == plain.keys()


@contextlib.contextmanager
def _answering(body: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield int(address.rpartition(":")[2])


def _get(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/object", timeout=120) as answer:
        data: bytes = answer.read()
        return data


def test_results_are_written_whole() -> None:
    rows = [
        load_rows.LoadRow(
            "disk", "ours", seconds=0.5, size_bytes=10, requests=3, value=2.0, unit="x", goal="1", met=True
        ),
        load_rows.LoadRow("disk", "theirs", seconds=1.5),
    ]
    text = load_report.load_markdown(rows, command="python tools/bench load")
    assert "| ours | 500.00 ms |  | 0.0 MB | 3 | 2.00 x | 1 | met |" in text
    document = load_report.load_document(rows)
    assert [row["what"] for row in document["rows"]] == ["ours", "theirs"]
    assert document["rows"][1]["goal"] == ""


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
        ),
    ],
)
def test_switches_on_a_device_stand_beside_the_copy_and_the_floors(
    forged: forged_vit.ForgedVit, device: str
) -> None:
    rows = load_device.measure_device(forged, device, repeats=1, tasks=120, quick=True)
    switches, floors, held = rows[:3], rows[3:-1], rows[-1]
    assert [row.what.split(",")[0] for row in switches] == [
        "uws-store",
        "uws-store",
        "copy of the float32 weights from page-locked memory",
    ]
    assert all(
        row.seconds and row.seconds > 0 and row.size_bytes == 4 * forged.parameters for row in switches
    )
    assert len(floors) == 4
    assert all(row.seconds and row.value for row in floors)
    assert "120 tasks" in held.what
    assert held.size_bytes is not None
    assert held.size_bytes >= 120 * forged.parameters, "a byte or more for each integer of each task"
    assert not any(row.goal for row in rows), "goals are those of a large network on a GPU"


def test_products_are_counted_by_the_blocks_of_their_factors(forged: forged_vit.ForgedVit) -> None:
    basis = open_family(forged_vit.FAMILY, registry=str(forged.registry)).basis()
    width = 192
    # Blocks of 256 on sides beyond 1024; the others whole: patches, queries and so on, projection, two of the MLP, head.
    sides = [
        (width, 768),
        (3 * width, width),
        (width, width),
        (4 * width, width),
        (width, 4 * width),
        (1000, width),
    ]
    expected = sum(2 * (m * n * n + m * m * n) for m, n in sides if m * n >= 1 << 17)
    assert load_device.product_operations(basis) == expected
