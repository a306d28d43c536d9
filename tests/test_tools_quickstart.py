"""The quickstart on a zoo of six half-trained models: its numbers are those of the files, and its promises can fail."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from io import StringIO
from pathlib import Path

import figures
import measuring
import pytest
import quickstart
import torch
from rich.console import Console


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, figures.Report]:
    folder = tmp_path_factory.mktemp("quickstart")
    console = Console(file=StringIO(), width=200)
    return folder, quickstart.run(folder, console, tasks=6, base_steps=60, task_steps=30)


def test_two_thirds_are_in_the_basis_and_the_rest_is_kept_out(ran: tuple[Path, figures.Report]) -> None:
    folder, report = ran
    assert len(list((folder / "zoo").iterdir())) == 4
    assert len(list((folder / "kept-out").iterdir())) == 2
    assert [original.in_basis for original in report.originals] == [True] * 4 + [False] * 2
    for setting in report.settings:
        assert len(setting.group(in_basis=True)) == 4
        assert len(setting.group(in_basis=False)) == 2


def test_every_byte_of_the_registry_is_counted_once(ran: tuple[Path, figures.Report]) -> None:
    folder, report = ran
    for stored, name in (
        (report.settings[0].stored, f"registry-{quickstart.BITS}"),
        (report.settings[1].stored, f"registry-{quickstart.SMALL_BITS}"),
        (report.exact, "registry-exact"),
    ):
        sizes = [path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()]
        assert stored.bytes.total == sum(sizes)
        assert (stored.bytes.residual > 0) == stored.exact
        # No part is missing from the table because a folder got another name.
        assert min(stored.bytes.basis, stored.bytes.cores, stored.bytes.private, stored.bytes.metadata) > 0


def test_the_stores_own_sizes_are_those_of_the_files(ran: tuple[Path, figures.Report]) -> None:
    folder, report = ran
    for setting in report.settings:
        models = folder / f"registry-{setting.stored.bits}" / "families" / quickstart.FAMILY / "models"
        on_disk = sorted(
            sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
            for model in models.iterdir()
            if model.is_dir()
        )
        assert sorted(model.size_bytes for model in setting.scored) == on_disk


def test_smaller_setting_is_smaller(ran: tuple[Path, figures.Report]) -> None:
    first, second = (setting.stored.bytes for setting in ran[1].settings)
    assert second.total < first.total


def test_every_tensor_of_the_exact_tier_is_bit_identical(ran: tuple[Path, figures.Report]) -> None:
    exactness = ran[1].exactness
    assert exactness.models == 6
    assert exactness.identical == exactness.tensors == 6 * 56


def test_json_carries_the_numbers_of_the_tables(ran: tuple[Path, figures.Report]) -> None:
    report = ran[1]
    document = json.loads(json.dumps(figures.as_document(report)))
    out = StringIO()
    quickstart.print_report(report, Console(file=out, width=200))
    printed = out.getvalue()
    assert f"{document['baselines']['safetensors_bytes']:,}" in printed
    for setting in document["settings"]:
        assert f"{setting['bytes']['total']:,}" in printed
        for group in ("basis_members", "kept_out"):
            assert f"{setting[group]['bits_per_parameter']:.3f}" in printed
            assert f"{setting[group]['reconstructed']:.4f}" in printed
            assert f"{setting[group]['mean_only']:.4f}" in printed
    assert printed.count("holds: ") + printed.count("FAILS: ") == len(document["bars"]) == 3


def test_a_broken_promise_is_told(ran: tuple[Path, figures.Report]) -> None:
    report = ran[1]
    exactness = replace(report.exactness, identical=report.exactness.tensors - 1)
    worse = [
        replace(model, bits_per_parameter=1.3, reconstructed=model.original - 0.006)
        for model in report.settings[0].scored
    ]
    setting = replace(report.settings[0], scored=tuple(worse))
    broken = replace(report, exactness=exactness, settings=(setting, report.settings[1]))
    assert [bar["holds"] for bar in figures.bars_of(broken).values()] == [False, False, False]


def test_bits_are_compared_not_values() -> None:
    one = torch.tensor([0.0, float("nan")])
    assert measuring.same_bits(one, one.clone())
    assert not measuring.same_bits(one, torch.tensor([-0.0, float("nan")]))
    assert not measuring.same_bits(one, one.to(torch.float64))
    assert not measuring.same_bits(one, one.reshape(1, 2))


@pytest.mark.parametrize(
    "arguments", [["--tasks", "3"], ["--keep", "."], ["--json", "no/such/folder/q.json"]]
)
def test_option_that_cannot_be_followed_is_refused_before_anything_is_trained(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(SystemExit) as refused:
        quickstart.main(arguments)
    assert refused.value.code == 2


@pytest.mark.parametrize("name", ["tools/test", "tools/quickstart", ".ci/run", "tools/environment.sh"])
def test_shell_script_parses(repository: Path, name: str) -> None:
    subprocess.run(["bash", "-n", repository / name], check=True)


@pytest.mark.parametrize("name", ["tools/test", "tools/quickstart"])
def test_python_that_is_too_old_is_told_before_anything_is_made(
    repository: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    monkeypatch.setenv("UWS_PYTHON", str(old))
    monkeypatch.setenv("UWS_VENV", str(tmp_path / "venv"))
    done = subprocess.run([repository / name], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3.11" in done.stderr
    assert not (tmp_path / "venv").exists()
