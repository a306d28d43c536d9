"""What the bench of loading writes down, and how it takes time: one row per measurement, medians of turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from forged_vit import ForgedVit

__all__ = ["NO_GOAL", "Goal", "LoadRow", "Taken", "goal_for", "median_of", "medians", "timed"]

_GOAL_PARAMETERS = 80_000_000


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One measurement.

    Attributes
    ----------
    group : str
        What is compared: one table.
    what : str
        The way of loading.
    seconds : float or None
        Median time to all weights in memory.
    busy_s : float or None
        Median processor time, of all threads together: what is left of it when others use the cores too.
    size_bytes : int or None
        Bytes that were fetched.
    requests : int or None
        Requests that were made.
    value : float or None
        Another number, with its unit in ``unit``.
    unit : str
        Unit of ``value``.
    goal : str
        What the project set itself.
    met : bool or None
        Whether it is met.
    """

    group: str
    what: str
    seconds: float | None = None
    busy_s: float | None = None
    size_bytes: int | None = None
    requests: int | None = None
    value: float | None = None
    unit: str = ""
    goal: str = ""
    met: bool | None = None


class Goal(TypedDict):
    """The part of a row that says what is aimed at."""

    goal: str
    met: bool | None


NO_GOAL: Goal = {"goal": "", "met": None}


def goal_for(forged: ForgedVit, goal: str, *, met: bool) -> Goal:
    """A goal, where the network has the size that it was set for."""
    return {"goal": goal, "met": met} if forged.parameters > _GOAL_PARAMETERS else NO_GOAL


@dataclass(frozen=True, slots=True)
class Taken:
    """What a task took.

    Attributes
    ----------
    seconds : float
        By the clock.
    busy_s : float
        Processor time of this process, all threads together.
    """

    seconds: float
    busy_s: float


def timed(task: Callable[[], object]) -> Taken:
    """Run a task once; what it gives is dropped after the clock is read."""
    started_s, busy_s = time.perf_counter(), time.process_time()
    made = task()
    taken = Taken(time.perf_counter() - started_s, time.process_time() - busy_s)
    del made
    return taken


def median_of(values: list[Taken]) -> Taken:
    """The medians of both clocks, each on its own."""
    return Taken(
        statistics.median(one.seconds for one in values), statistics.median(one.busy_s for one in values)
    )


def medians(tasks: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, Taken]:
    """Time tasks by repeats that take turns, after one round to warm up."""
    taken: dict[str, list[Taken]] = {name: [] for name in tasks}
    for index in range(repeats + 1):
        for name, task in tasks.items():
            one = timed(task)
            if index:
                taken[name].append(one)
    return {name: median_of(values) for name, values in taken.items()}
