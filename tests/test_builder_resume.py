"""A build that was killed goes on where it was: no finished work is done twice, and the bytes are the same."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from build_in_process import build_in_process
from zoo_support import make_zoo, snapshot

import uws_store
from uws_store.api.encoding import StoredModel
from uws_store.api.results import ModelResult
from uws_store.builder import Members, Progress, fit
from uws_store.builder.packing import pack, unpack
from uws_store.builder.survey import Surveyed, SurveyJob, survey_tensor
from uws_store.builder.work import WorkFolder
from uws_store.checkpoint import scan_zoo
from uws_store.config import cache_folder
from uws_store.errors import InvalidInputError
from uws_store.storage.protocol import TEMPORARY_PREFIX

WIDE = {"a.weight": (48, 32), "b.weight": (32, 48), "norm.weight": (64,)}


def _objects(registry: Path) -> dict[str, bytes]:
    """Every object but those of the log, which hold times and nonces.

    What a killed writer leaves under a temporary name is no object: nobody reads it, and when a thread was writing
    as its process was killed depends on the load of the machine.
    """
    return {
        path: data
        for path, data in snapshot(registry).items()
        if path.startswith("families") and not Path(path).name.startswith(TEMPORARY_PREFIX)
    }


def test_a_build_killed_anywhere_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=5)
    options = {"change_error": 0.1, "workers": 2}
    whole = build_in_process(zoo, tmp_path / "whole", options=options)
    assert whole["reused"] == 0
    assert whole["kept"] >= len(WIDE) + 5 + len(WIDE) + 5, "surveys, digests, fits and models"
    done = 0
    # In the survey, among the fits, and when two models are left.
    for pieces in (2, 5, whole["kept"] - 9):
        build_in_process(zoo, tmp_path / "killed", options=options, killed=True, kill_after=pieces)
        done += pieces
        assert not list((tmp_path / "killed" / "_log").glob("*.json"))
    rest = build_in_process(zoo, tmp_path / "killed", options=options)
    assert rest["reused"] == done
    assert rest["kept"] == whole["kept"] - done, "nothing finished was done again"
    assert _objects(tmp_path / "killed") == _objects(tmp_path / "whole")


class _StoppedError(RuntimeError):
    """The test ends a build."""


def _stop_when(phase: str, count: int) -> Progress:
    def report(now: str, done: int, _total: int, _size_bytes: int = 0) -> None:
        if now == phase and done == count:
            raise _StoppedError

    return report


def _build(zoo: Path, registry: Path, **options: object) -> list[tuple[str, int]]:
    """Build in this process and tell each phase's first report."""
    phases: dict[str, int] = {}

    def report(phase: str, _done: int, _total: int, _size_bytes: int = 0) -> None:
        phases[phase] = phases.get(phase, 0) + 1

    uws_store.build(zoo, family="f", registry=str(registry), progress=report, **options)  # type: ignore[arg-type]
    return sorted(phases.items())


def _interrupted(zoo: Path, registry: Path, *, phase: str = "encoding", count: int = 2) -> None:
    with pytest.raises(_StoppedError):
        uws_store.build(
            zoo, family="f", registry=str(registry), executor="serial", progress=_stop_when(phase, count)
        )


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return make_zoo(tmp_path / "zoo", shapes=WIDE, models=5)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that are fitted."""
    from uws_store.builder import fit_tiles  # noqa: PLC0415 - replaced for one test

    names: list[str] = []
    whole = fit.fit_tensor

    def counted(job: fit.FitJob) -> fit.TensorFit:
        names.append(job.survey.name)
        return whole(job)

    monkeypatch.setattr(fit_tiles, "fit_tensor", counted)
    return names


def test_finished_work_is_used_and_then_cleared(tmp_path: Path, zoo: Path, fits: list[str]) -> None:
    _interrupted(zoo, tmp_path / "r")
    assert fits
    fits.clear()
    _build(zoo, tmp_path / "r", executor="threads", workers=2)
    assert fits == [], "the executor is no part of what work depends on"
    assert not list((cache_folder() / "builds").iterdir())


def test_restart_begins_anew(tmp_path: Path, zoo: Path, fits: list[str]) -> None:
    _interrupted(zoo, tmp_path / "r")
    fits.clear()
    _build(zoo, tmp_path / "r", restart=True)
    assert fits


@pytest.mark.parametrize("change", ["option", "zoo"])
def test_other_options_or_another_zoo_begin_anew(
    tmp_path: Path, zoo: Path, fits: list[str], change: str
) -> None:
    _interrupted(zoo, tmp_path / "r")
    fits.clear()
    if change == "zoo":
        make_zoo(zoo, shapes=WIDE, models=5, seed=7)
    _build(zoo, tmp_path / "r", **({"change_error": 0.2} if change == "option" else {}))
    assert fits


def test_damaged_work_is_done_again(tmp_path: Path, zoo: Path, fits: list[str]) -> None:
    _interrupted(zoo, tmp_path / "r")
    pieces = [path for path in (cache_folder() / "builds").rglob("fit/*/*") if path.is_file()]
    assert pieces
    for path in pieces:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    fits.clear()
    _build(zoo, tmp_path / "r")
    _build(zoo, tmp_path / "clean")
    assert sorted(set(fits)) == sorted(WIDE)
    assert _objects(tmp_path / "r") == _objects(tmp_path / "clean")


def test_a_model_whose_objects_are_gone_is_encoded_again(tmp_path: Path, zoo: Path) -> None:
    _interrupted(zoo, tmp_path / "r", count=3)
    stored = [path for path in (tmp_path / "r" / "families").rglob("*") if "/models/" in path.as_posix()]
    for path in stored:
        if path.is_file() and path.name != "zarr.json":
            path.unlink()
    _build(zoo, tmp_path / "r")
    _build(zoo, tmp_path / "clean")
    assert _objects(tmp_path / "r") == _objects(tmp_path / "clean")


def test_a_full_cache_disk_costs_the_resumption_and_not_the_build(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("uws_store.builder.work.tempfile.NamedTemporaryFile", full)
    _build(zoo, tmp_path / "r")
    assert uws_store.verify("f", registry=str(tmp_path / "r"), against=zoo).ok


@dataclass(frozen=True)
class _Value:
    words: tuple[str, ...]
    numbers: dict[str, torch.Tensor]
    maybe: float | None


def test_what_is_packed_comes_back(tmp_path: Path, zoo: Path) -> None:
    value = _Value(("a", "b"), {"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor(3)}, 0.1)
    found = unpack(pack(value), _Value)
    assert (found.words, found.maybe) == (value.words, value.maybe)
    assert all(torch.equal(found.numbers[name], tensor) for name, tensor in value.numbers.items())
    assert unpack(pack(_Value((), {}, None)), _Value) == _Value((), {}, None)
    with Members(scan_zoo(zoo)) as members:
        surveyed = survey_tensor(SurveyJob(members.checkpoints, "a.weight", (48, 32)))
        assert unpack(pack(surveyed), Surveyed) == surveyed
        made = fit.fit_tensor(fit.FitJob(members.checkpoints, surveyed.survey, 0.01, 0, 9, ("task-01",)))
        again = unpack(pack(made), fit.TensorFit)
        assert again.survey == made.survey
        assert again.choice == made.choice
        assert torch.equal(again.mean, made.mean)
        assert list(again.samples) == ["task-01"]
    result = ModelResult("t", 1, 0.5, 1, 2, 0, 3, 4, float("inf"), ("n",), 0.1, (), ())
    model = StoredModel(result, "d", exact=True, objects=(("core/c/0", 3),), is_new=True)
    assert unpack(pack(model), StoredModel) == model


@pytest.mark.parametrize("data", [b"", b"PK", pack(3), pack({"a": "b"}), pack([1, 2, 3, 4, 5, 6, 7, 8, 9])])
def test_other_bytes_are_no_piece(data: bytes) -> None:
    with pytest.raises(ValueError, match="these bytes"):
        unpack(data, Surveyed)


def test_a_work_folder_gives_what_was_put_or_nothing(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path, ["zoo", "options"])
    assert work.get("fit/1") is None
    work.put("fit/1", b"piece")
    assert work.get("fit/1") == b"piece"
    assert WorkFolder(tmp_path, ["zoo", "options"]).get("fit/1") == b"piece"
    assert WorkFolder(tmp_path, ["zoo", "others"]).get("fit/1") is None
    file = next(path for path in work.path.rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-1])
    assert work.get("fit/1") is None
    work.clear()
    assert not work.path.exists()


def test_a_zoo_of_one_is_no_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        uws_store.build(make_zoo(tmp_path / "one", models=1), family="f", registry=str(tmp_path / "r"))
    assert not (cache_folder() / "builds").exists()
