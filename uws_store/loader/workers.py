"""Threads that decode: one torch thread each, as many as torch uses.

Tensors are decoded side by side, each by one thread: entropy decoding, hashing and small steps then use all cores,
which a product that is split over threads leaves idle. Owns the pool; knows nothing of what is run in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Literal, TypeVar

import torch

__all__ = ["Where", "place_for", "run_tasks"]

T = TypeVar("T")

Where = Literal["here", "worker", "workers"]

_PARALLEL_COEFFICIENTS = 1 << 20


class _Pool:
    """The process's decoding threads; made anew in a forked process, or when torch is given other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[int, int, ThreadPoolExecutor] | None = None

    def get(self, threads: int) -> ThreadPoolExecutor:
        with self._lock:
            key = (os.getpid(), threads)
            if self._made is None or self._made[:2] != key:
                if self._made is not None and self._made[0] == key[0]:
                    self._made[2].shutdown(wait=False)
                self._made = (*key, _start(threads))
            return self._made[2]


def _start(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="uws-decode")
    ready = threading.Barrier(threads + 1)

    def prepare() -> None:
        # torch keeps the number per thread, once a thread has asked for it: one that only sets it is given the
        # process's at its first operation.
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    for _ in range(threads):
        pool.submit(prepare)
    ready.wait()
    torch.set_num_threads(threads)
    return pool


_POOL = _Pool()


def run_tasks(
    tasks: Iterable[Callable[[], T]], *, where: Where, stopped: threading.Event | None = None
) -> list[T]:
    """Run tasks and return their results in order.

    Parameters
    ----------
    tasks : iterable of callable
        What to run. Where tasks run side by side, those that were given are at work while the next is waited for.
    where : {"here", "worker", "workers"}
        In this thread; all in one worker, for tasks so small that splitting one over threads costs more than it
        saves, above all where others use the cores too; or side by side.
    stopped : threading.Event, optional
        When it is set, no further task begins and the results so far are returned.

    Raises
    ------
    Exception
        The first that a task raises; tasks that have not begun are dropped.
    """
    threads = torch.get_num_threads()
    failed = threading.Event()

    def in_turn(some: Iterable[Callable[[], T]]) -> list[T]:
        results: list[T] = []
        for task in some:
            if failed.is_set() or (stopped is not None and stopped.is_set()):
                break
            try:
                results.append(task())
            except BaseException:
                failed.set()
                raise
        return results

    if where == "here" or threads == 1:
        return in_turn(tasks)
    pool = _POOL.get(threads)
    futures: list[Future[list[T]]] = []
    try:
        for part in [tasks] if where == "worker" else ([task] for task in tasks):
            futures.append(pool.submit(in_turn, list(part)))
            if failed.is_set():
                break
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
    for future in futures:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            raise error
    return [result for future in futures for result in future.result()]


def place_for(device: torch.device, coefficients: int) -> Where:
    """Where to run tasks on a device that decode so many coefficients together."""
    if device.type != "cpu":
        return "here"
    return "workers" if coefficients >= _PARALLEL_COEFFICIENTS else "worker"
