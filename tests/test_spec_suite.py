"""The conformance suite: both readers pass it, readers that err do not, and other Zarr implementations open the arrays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "conformance"
sys.path.insert(0, str(TOOL))

import suite as conformance  # noqa: E402 - a tool, found in its folder

REGISTRY = ROOT / "spec" / "vectors" / "v1" / "registry"
# Reads nothing: every model is empty.
EMPTY = "import sys\nfor line in sys.stdin: print('{\"tensors\": []}', flush=True)"
REFUSES = 'import sys\nfor line in sys.stdin: print(\'{"refused": "no"}\', flush=True)'
DIES = "import sys\nsys.stdin.readline()"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance") / "suite"
    conformance.write_suite(folder)
    return folder


@pytest.fixture(scope="module")
def cases(suite: Path) -> list[dict[str, Any]]:
    held: list[dict[str, Any]] = json.loads((suite / "cases.json").read_text(encoding="utf-8"))
    return held


def small(suite: Path, cases: list[dict[str, Any]], folder: Path, count: int) -> Path:
    """A suite of a few cases: valid ones first."""
    folder.mkdir()
    chosen = [case for case in cases if "tensors" in case][:count]
    chosen += [case for case in cases if "refused" in case][-count:]
    for name in {case["registry"] for case in chosen}:
        (folder / name).symlink_to(suite / name)
    (folder / "cases.json").write_text(json.dumps(chosen), encoding="utf-8")
    return folder


def test_every_case_names_its_rule_its_kind_and_where(suite: Path, cases: list[dict[str, Any]]) -> None:
    refused = [case["refused"] for case in cases if "refused" in case]
    assert len(refused) > 130
    assert sum("tensors" in case for case in cases) >= 40
    assert sum("signed" in case for case in cases) >= 3
    for expected in refused:
        assert expected["rule"].startswith("R-")
        assert expected["kind"].startswith(("format/", "not-found/", "fidelity/"))
    located = [expected["where"] for expected in refused if expected["where"]]
    assert len(located) == len(refused)
    assert any("/models/" in where for where in located)
    assert any("/basis/" in where for where in located)
    assert any("/packs/" in where for where in located)
    assert any(where.startswith("_log/") for where in located)
    assert any(where.startswith("_signatures/") for where in located)


@pytest.mark.parametrize(
    "reader",
    [TOOL / "package_reader.py", ROOT / "tests" / "independent_adapter.py"],
    ids=lambda path: path.stem,
)
def test_both_readers_pass(suite: Path, reader: Path) -> None:
    assert conformance.run_suite(suite, [sys.executable, str(reader)], tier="exact", any_rule=False) == []


def test_a_damage_to_an_earlier_commit_is_not_said_to_lie_in_the_last(cases: list[dict[str, Any]]) -> None:
    found = {case["name"]: case["refused"]["where"] for case in cases if "refused" in case}
    assert found["another offset"] == found["a length too short"] == f"_log/{1:020d}.json"


def test_signatures_may_be_left_out(suite: Path) -> None:
    every = conformance.chosen(suite, tier="compact", signatures=True)
    without = conformance.chosen(suite, tier="compact", signatures=False)
    assert [case for case in every if "key" not in case] == without
    assert {case["tier"] for case in without} == {"compact"}


def test_readers_that_err_do_not_pass(suite: Path, cases: list[dict[str, Any]], tmp_path: Path) -> None:
    few = small(suite, cases, tmp_path / "few", 4)

    def failed(code: str) -> list[tuple[str, str]]:
        return conformance.run_suite(few, [sys.executable, "-c", code], tier="exact", any_rule=True)

    assert len(failed(EMPTY)) == 8
    assert [name for name, _ in failed(REFUSES)] == [case["name"] for case in cases[:4]]
    assert {why for _, why in failed(DIES)} == {"the command has ended"}


def test_a_refusal_by_another_rule_is_told_apart() -> None:
    case = {"refused": {"rule": "R-A-1", "kind": "format/a", "where": "x"}}
    for answer, passes in (("R-A-1", True), ("format/a", True), ("R-B-1", False), ("damaged", True)):
        assert (conformance.judge(case, {"refused": answer}, any_rule=False) is None) is passes
        assert conformance.judge(case, {"refused": answer}, any_rule=True) is None
    assert conformance.judge(case, {"tensors": []}, any_rule=True) is not None


def test_the_command_tells_how_many_passed(suite: Path, cases: list[dict[str, Any]], tmp_path: Path) -> None:
    few = small(suite, cases, tmp_path / "few", 2)
    ran = subprocess.run(
        [
            sys.executable,
            str(TOOL / "suite.py"),
            "run",
            "--suite",
            str(few),
            "--",
            sys.executable,
            "-c",
            REFUSES,
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 1
    assert ran.stdout.splitlines()[-1] == "2 of 4 cases passed as a reader at exact"


def arrays() -> list[Path]:
    found = [path.parent for path in REGISTRY.rglob("zarr.json") if (path.parent / "c").is_dir()]
    assert len(found) > 15
    return found


def is_pcodec(array: Path) -> bool:
    return "pcodec" in (array / "zarr.json").read_text()


def test_zarrs_reads_every_array() -> None:
    zarrs = pytest.importorskip("zarrs", reason="the Rust implementation is not installed")
    assert zarrs is not None
    for array in arrays():
        ours = np.asarray(zarr.open_array(str(array), mode="r")[:])
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            theirs = np.asarray(zarr.open_array(str(array), mode="r")[:])
        np.testing.assert_array_equal(theirs, ours, err_msg=str(array))
        assert theirs.dtype == ours.dtype


def test_tensorstore_reads_every_array_that_is_not_pcodec() -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    plain = [array for array in arrays() if not is_pcodec(array)]
    assert len(plain) > 5
    for array in plain:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{array}/"}}
        theirs = tensorstore.open(spec, read=True).result().read().result()
        np.testing.assert_array_equal(theirs, np.asarray(zarr.open_array(str(array), mode="r")[:]))
