"""Where work runs: this thread, threads, processes or Dask, all through ``concurrent.futures.Executor``.

Owns what is independent of the work: how many pieces are in flight, what is tried again, what happens when a worker
dies, and that every piece computes with one thread of torch, so that no number depends on where or how often it was
computed. Must not know what the pieces are.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Literal, Self, TypeVar, get_args

import torch

from uws_store.errors import InvalidInputError, StorageError, UwsError, WorkerError

__all__ = ["ExecutorKind", "ExecutorSpec", "SerialExecutor", "Workers", "one_thread"]

T = TypeVar("T")
R = TypeVar("R")

ExecutorKind = Literal["serial", "threads", "processes", "dask"]

_ATTEMPTS = 3
_DASK_PREFIX = "dask://"
# What a storage may do better the next time; no room and no permission stay as they are.
_PASSING = frozenset({"storage", "storage/io", "storage/timeout", "storage/connection"})


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class ExecutorSpec:
    """Which executor, and how many workers.

    Attributes
    ----------
    kind : {"serial", "threads", "processes", "dask"}
        ``dask`` needs the extra of this name.
    workers : int
        At least 1; of a Dask scheduler that already runs, all it has are used.
    address : str or None
        ``host:port`` of a Dask scheduler; None starts a cluster on this machine.
    """

    kind: ExecutorKind = "serial"
    workers: int = 1
    address: str | None = None

    @classmethod
    def parse(cls, text: str | None = None, *, workers: int | None = None) -> ExecutorSpec:
        """Read what a user wrote.

        Parameters
        ----------
        text : str, optional
            One of the kinds, or ``dask://host:port``; ``threads`` when absent.
        workers : int, optional
            By default the cores this process may use, and 1 for ``serial``.

        Raises
        ------
        InvalidInputError
            Kind ``invalid-input/executor``.
        """
        if workers is not None and workers < 1:
            raise InvalidInputError(f"workers is at least 1, not {workers}", kind="invalid-input/executor")
        name = text or "threads"
        if name == "serial":
            if workers not in (None, 1):
                raise InvalidInputError(
                    f"the serial executor has one worker, not {workers}; use threads or processes",
                    kind="invalid-input/executor",
                )
            return cls()
        count = workers or usable_cores()
        if name.startswith(_DASK_PREFIX) and len(name) > len(_DASK_PREFIX):
            return cls("dask", count, name.removeprefix(_DASK_PREFIX))
        kind = next((known for known in get_args(ExecutorKind) if known == name), None)
        if kind is None:
            raise InvalidInputError(
                f"{name!r} is no executor; expected {', '.join(get_args(ExecutorKind))} or dask://HOST:PORT",
                kind="invalid-input/executor",
            )
        return cls(kind, count)

    @property
    def shares_memory(self) -> bool:
        """Whether work sees this process's objects; if not, arguments and results are pickled."""
        return self.kind in ("serial", "threads")


class SerialExecutor(Executor):
    """Runs each piece in the calling thread, when it is submitted."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:  # noqa: ANN401 - the base's signature
        """Run a function and return what came of it."""
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
        return future


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread in this process: sums and eigenvectors then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(function: Callable[[T], R], item: T) -> R:
    """Run one piece in a worker, which keeps to one thread from then on."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    return function(item)


@dataclass(slots=True)
class _Piece:
    index: int
    item: Any
    attempts: int = 0
    executor: Executor | None = None


@dataclass(slots=True)
class Workers:
    """An executor that outlives the death of its workers. A context manager.

    Attributes
    ----------
    spec : ExecutorSpec
        Which one.
    resubmitted : int
        How often a piece was submitted again, because it failed in passing or its worker was lost.
    """

    spec: ExecutorSpec = field(default_factory=ExecutorSpec)
    resubmitted: int = 0
    _bound: int | None = None
    _executor: Executor | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def width(self) -> int:
        """How many pieces run at once."""
        return self.spec.workers if self._bound is None else max(1, min(self._bound, self.spec.workers))

    def bound(self, pieces: int) -> None:
        """Run no more pieces at once than this, when memory bears fewer than there are workers."""
        self._bound = pieces

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R]]:
        """Run a function over items and yield ``(index, result)`` as they are done, in no fixed order.

        Parameters
        ----------
        function : callable
            Of a module, when the workers are other processes.
        items : iterable
            Taken one by one, only as far as they are in flight.

        Raises
        ------
        WorkerError
            When a piece loses its worker three times (kind ``worker/lost``).
        Exception
            What the function raises; a storage's passing failure only when it comes three times.
        """
        width = self.width
        if not self.spec.shares_memory and width == self.spec.workers:
            width *= 2  # the next one's arguments travel while one is at work
        waiting = (_Piece(index, item) for index, item in enumerate(items))
        again: list[_Piece] = []
        flying: dict[Future[R], _Piece] = {}
        with ExitStack() as stack:
            if self.spec.shares_memory:
                stack.enter_context(one_thread())
            stack.callback(_cancel, flying)
            while True:
                while len(flying) < width:
                    piece = again.pop() if again else next(waiting, None)
                    if piece is None:
                        break
                    self._submit(function, piece, flying, again)
                if not flying:
                    if again:
                        continue
                    return
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda one: flying[one].index):
                    piece = flying.pop(future)
                    try:
                        result = future.result()
                    except Exception as error:  # noqa: BLE001 - sorted out there
                        self._try_again(piece, error, again)
                    else:
                        yield piece.index, result

    def _submit(
        self,
        function: Callable[[T], R],
        piece: _Piece,
        flying: dict[Future[R], _Piece],
        again: list[_Piece],
    ) -> None:
        piece.attempts += 1
        try:
            piece.executor = self._open()
            flying[piece.executor.submit(_run, function, piece.item)] = piece
        except BrokenExecutor as error:
            self._try_again(piece, error, again)

    def _try_again(self, piece: _Piece, error: Exception, again: list[_Piece]) -> None:
        """Queue a piece once more, or raise what became of it."""
        lost = _is_lost(error)
        if isinstance(error, BrokenExecutor) and piece.executor is self._executor:
            self._close()  # the next submission opens another
        if piece.attempts < _ATTEMPTS and (lost or _is_passing(error)):
            self.resubmitted += 1
            again.append(piece)
        elif lost:
            raise WorkerError(
                f"a piece of work lost its worker {piece.attempts} times ({type(error).__name__}: {error}); the usual "
                "cause is too little memory: give fewer --workers or a smaller --memory",
                kind="worker/lost",
            ) from error
        else:
            raise error

    def _open(self) -> Executor:
        if self._executor is None:
            self._executor = self._stack.enter_context(_executor(self.spec, self._stack))
        return self._executor

    def _close(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            with suppress(BrokenExecutor):
                executor.shutdown(wait=True)
        self._stack.close()


def _executor(spec: ExecutorSpec, stack: ExitStack) -> Executor:
    if spec.kind == "serial":
        return SerialExecutor()
    if spec.kind == "threads":
        return ThreadPoolExecutor(spec.workers, thread_name_prefix="uws-store")
    if spec.kind == "processes":
        # Spawned: threads of torch or of a storage's client do not survive a fork.
        return ProcessPoolExecutor(spec.workers, mp_context=get_context("spawn"))
    return _dask_executor(spec, stack)


def _dask_executor(spec: ExecutorSpec, stack: ExitStack) -> Executor:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise InvalidInputError(
            "the Dask executor needs the package distributed; install it with: pip install 'uws-store[dask]'",
            kind="invalid-input/executor",
        ) from error
    try:
        if spec.address is None:
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=spec.workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address=":0",
                )
            )
            client = stack.enter_context(distributed.Client(cluster))
        else:
            client = stack.enter_context(distributed.Client(f"tcp://{spec.address}", timeout=10))
    except (OSError, TimeoutError) as error:
        raise WorkerError(
            f"there is no Dask scheduler at {spec.address or 'this machine'} ({error}); start one with 'dask scheduler'",
            kind="worker/no-scheduler",
        ) from error
    executor: Executor = client.get_executor(pure=False)
    return executor


def _is_lost(error: BaseException) -> bool:
    """Whether a worker died; Dask's own classes are known by name, since Dask need not be there."""
    return isinstance(error, BrokenExecutor | CancelledError) or type(error).__name__ in (
        "KilledWorker",
        "CommClosedError",
        "FutureCancelledError",
    )


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, UwsError):
        return isinstance(error, StorageError) and error.kind in _PASSING
    return isinstance(error, ConnectionError | TimeoutError)


def _cancel(flying: dict[Future[R], _Piece]) -> None:
    """Call off what has not begun and wait for what has: nobody may read a zoo that its owner has closed."""
    for future in flying:
        future.cancel()
    running = [future for future in flying if not future.cancelled()]
    if running:
        wait(running, timeout=60)
    flying.clear()
