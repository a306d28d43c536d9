"""Where work runs: the same bytes from every executor, pieces that are tried again, workers that die."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from zoo_support import make_zoo

import uws_store
from uws_store.errors import InvalidInputError, StorageError, UwsError, WorkerError
from uws_store.executors import ExecutorSpec, Workers, one_thread

WIDE = {"a.weight": (96, 64), "b.weight": (64, 96), "norm.weight": (64,), "norm.bias": (64,)}


def _digests(folder: Path, zoo: Path, *, executor: str, workers: int | None, threads: int) -> list[str]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        uws_store.build(
            zoo, family="f", registry=str(folder), executor=executor, workers=workers, expect_models=500
        )
        assert torch.get_num_threads() == threads, "the caller's threads are as they were"
    finally:
        torch.set_num_threads(before)
    family = uws_store.open_family("f", registry=str(folder))
    assert any(record.left or record.right for record in family.basis().document.tensors)
    return [family.basis().digest, *(family.resolve(task).digest for task in family)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoos") / "zoo", shapes=WIDE, models=12)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, zoo: Path) -> list[str]:
    return _digests(tmp_path_factory.mktemp("serial"), zoo, executor="serial", workers=1, threads=1)


def test_threads_give_the_same_bytes(tmp_path: Path, zoo: Path, serial: list[str]) -> None:
    assert _digests(tmp_path, zoo, executor="threads", workers=3, threads=2) == serial


def test_processes_give_the_same_bytes(tmp_path: Path, zoo: Path, serial: list[str]) -> None:
    assert _digests(tmp_path, zoo, executor="processes", workers=2, threads=2) == serial


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_dask_gives_the_same_bytes(tmp_path: Path, zoo: Path, serial: list[str]) -> None:
    pytest.importorskip("distributed", reason="Dask is an extra")
    assert _digests(tmp_path, zoo, executor="dask", workers=1, threads=2) == serial


def _square(value: int) -> int:
    return value * value


def _die_once(job: tuple[str, int]) -> int:
    folder, value = job
    marker = Path(folder) / "died"
    if value == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


def _die(value: int) -> int:
    if value == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_a_lost_worker_costs_no_result(tmp_path: Path) -> None:
    with Workers(ExecutorSpec("processes", 2)) as pool:
        jobs = [(str(tmp_path), value) for value in range(6)]
        assert sorted(pool.map(_die_once, jobs)) == [(index, index**2) for index in range(6)]
        assert pool.resubmitted > 0
        assert (tmp_path / "died").exists()


def test_work_that_kills_every_worker_ends_with_a_typed_error() -> None:
    with Workers(ExecutorSpec("processes", 1)) as pool, pytest.raises(WorkerError) as caught:
        list(pool.map(_die, [0]))
    assert caught.value.kind == "worker/lost"


@pytest.mark.parametrize("kind", ["serial", "threads"])
def test_results_come_with_their_index(kind: str) -> None:
    with Workers(ExecutorSpec.parse(kind, workers=None)) as pool:
        assert dict(pool.map(_square, range(20))) == {index: index**2 for index in range(20)}


class _Failing:
    """Fails some times before it succeeds."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.left = times
        self.calls = 0

    def __call__(self, value: int) -> int:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return value


@pytest.mark.parametrize("error", [StorageError("reset", kind="storage/io"), ConnectionResetError("reset")])
def test_a_passing_failure_is_tried_again(error: Exception) -> None:
    work = _Failing(error, 2)
    with Workers(ExecutorSpec("threads", 1)) as pool:
        assert list(pool.map(work, [7])) == [(0, 7)]
    assert work.calls == 3
    work = _Failing(error, 3)
    with Workers() as pool, pytest.raises(type(error)):
        list(pool.map(work, [7]))


@pytest.mark.parametrize(
    "error", [InvalidInputError("no"), StorageError("full", kind="storage/no-space"), ValueError("no")]
)
def test_a_failure_that_stays_is_raised_at_once(error: Exception) -> None:
    work = _Failing(error, 1)
    with Workers(ExecutorSpec("threads", 2)) as pool, pytest.raises(type(error)):
        list(pool.map(work, range(5)))
    assert work.left == 0


def test_no_more_pieces_are_in_flight_than_allowed() -> None:
    lock = threading.Lock()
    now = most = 0

    def work(value: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return value

    with Workers(ExecutorSpec("threads", 4)) as pool:
        pool.bound(2)
        assert len(list(pool.map(work, range(12)))) == 12
    assert most <= 2


def test_each_piece_computes_with_one_thread() -> None:
    with Workers(ExecutorSpec("threads", 2)) as pool:
        found = [threads for _, threads in pool.map(lambda _: torch.get_num_threads(), range(6))]
    assert found == [1] * 6
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("text", "workers"), [("gpu", None), ("dask://", None), ("threads", 0), ("serial", 2), ("", -1)]
)
def test_an_executor_that_cannot_be_is_refused(text: str, workers: int | None) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ExecutorSpec.parse(text, workers=workers)
    assert caught.value.kind == "invalid-input/executor"


def test_a_dask_address_is_kept() -> None:
    spec = ExecutorSpec.parse("dask://head:8786")
    assert (spec.kind, spec.address, spec.shares_memory) == ("dask", "head:8786", False)


def test_a_scheduler_that_is_not_there_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is an extra")

    def client(*_: object, **__: object) -> None:
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", client)
    with Workers(ExecutorSpec.parse("dask://127.0.0.1:1")) as pool, pytest.raises(UwsError) as caught:
        list(pool.map(_square, [1]))
    assert caught.value.kind == "worker/no-scheduler"


def test_other_processes_cannot_see_a_registry_in_memory(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        uws_store.build(
            make_zoo(tmp_path / "zoo"), family="f", registry="memory://executors", executor="processes"
        )
    assert caught.value.kind == "invalid-input/executor"
