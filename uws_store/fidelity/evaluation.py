"""A user's evaluation: found by name, called with weights and a task, its answer checked.

Owns what an evaluation is and what it may return. Knows nothing about bases and stored models. An evaluation is code:
it runs only when the caller names it, and no record or registry is ever a source of such a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from uws_store.errors import InvalidInputError, Problem

__all__ = ["KIND", "Evaluation", "EvaluationFunction", "Score"]

EvaluationFunction = Callable[[dict[str, torch.Tensor], str], object]
"""Called with a model's weights and its task; see :class:`Evaluation` for what it returns."""

KIND = "invalid-input/evaluation"

_HASH_DIGITS = 16
_LONGEST_METRIC = 200
_LARGEST_COUNT = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What an evaluation said of one set of weights.

    Attributes
    ----------
    metric : str
        Name of the number.
    value : float
        The number. Of a reconstruction it may be NaN or infinite, which is worse than any other.
    higher_is_better : bool
        Its direction.
    n : int or None
        Examples scored; None when the evaluation did not say.
    goodness : numpy.ndarray or None
        float64, (n,): each example's own result, higher is better; None when the evaluation gave none.
    """

    metric: str
    value: float
    higher_is_better: bool
    n: int | None
    goodness: npt.NDArray[np.float64] | None

    def drop_to(self, other: Score) -> float:
        """How much worse another score is, positive when it is worse; infinite when it is no number."""
        if not math.isfinite(other.value):
            return math.inf
        return self.value - other.value if self.higher_is_better else other.value - self.value


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A named evaluation.

    The function takes ``(weights, task)``: a dict of tensors by name, in the checkpoint's own dtypes, and the task's
    name. It returns a mapping with ``metric`` (text), ``value`` (a number), ``higher_is_better`` (a boolean), ``n``
    (how many examples) and, where it can, per example either ``correct`` (0 or 1, or a number that is higher when
    better) or ``per_example`` (numbers in the metric's own direction, such as losses), in an order that is the same
    for every model of the task. A plain mapping of numbers will do when the caller says which of them counts and in
    which direction. None, or ``KeyError(task)``, means that it has nothing to score this task with. It should be
    repeatable: the same weights, the same answer.

    Attributes
    ----------
    name : str
        ``module:function``, or ``file.py:function`` without its folder.
    sha256 : str or None
        Of its source file, hex; None when it has none, as for a function typed into a shell.
    function : callable
        See above.
    metric : str or None
        Which number of a plain mapping counts.
    higher_is_better : bool or None
        Its direction.
    """

    name: str
    sha256: str | None
    function: EvaluationFunction
    metric: str | None = None
    higher_is_better: bool | None = None

    @property
    def identity(self) -> str:
        """Name and hash as records keep them: the first 16 hexadecimal digits tell versions apart."""
        return f"{self.name} sha256:{self.sha256[:_HASH_DIGITS]}" if self.sha256 else self.name

    def score(self, weights: dict[str, torch.Tensor], task: str) -> Score | None:
        """Run the evaluation.

        Parameters
        ----------
        weights : dict of str to torch.Tensor
            A model's tensors; the function may do with them what it likes.
        task : str
            The task's name.

        Returns
        -------
        Score or None
            None when it says that it cannot score this task.

        Raises
        ------
        InvalidInputError
            When it raises anything (``invalid-input/evaluation-raised``, the cause chained), or returns what is not
            as above (``invalid-input/evaluation``, every problem listed).
        """
        try:
            result = self.function(weights, task)
        except KeyError as error:
            if error.args == (task,):
                return None
            raise self._raised(task, error) from error
        except (Exception, SystemExit) as error:
            # Whatever a user's function does, the caller learns for which task it was.
            raise self._raised(task, error) from error
        if result is None:
            return None
        if not isinstance(result, Mapping):
            raise InvalidInputError(
                f"evaluation {self.name} returned {type(result).__name__} for task {task!r}; return a dict with metric, "
                "value, higher_is_better and n, or None where it cannot score",
                kind=KIND,
            )
        reading = _Reading(result, self.metric, self.higher_is_better)
        score = reading.score()
        if score is None:
            raise InvalidInputError(
                f"what evaluation {self.name} returned for task {task!r} cannot be used",
                kind=KIND,
                problems=tuple(reading.problems),
            )
        return score

    def _raised(self, task: str, error: BaseException) -> InvalidInputError:
        return InvalidInputError(
            f"evaluation {self.name} failed on task {task!r}: {type(error).__name__}: {error}; if it has no examples for "
            "a task, return None",
            kind="invalid-input/evaluation-raised",
        )


class _Reading:
    """One answer being read, with every problem found on the way."""

    def __init__(self, result: Mapping[object, object], metric: str | None, higher: bool | None) -> None:  # noqa: FBT001 - None is a third value
        self.problems: list[Problem] = []
        self._result = result
        self._asked_metric = metric
        self._asked_direction = higher
        # The answer's own fields describe the number that it names itself; another one's are unknown.
        self._own = metric is None or result.get("metric", metric) == metric
        self._full = "metric" in result and self._own

    def score(self) -> Score | None:
        """Make the score; None when there was a problem."""
        metric = self._metric()
        value = self._value(metric)
        higher = self._direction()
        n = self._count()
        goodness = self._goodness(n, higher=higher)
        if self.problems or metric is None or value is None or higher is None:
            return None
        return Score(metric, value, higher, n, goodness)

    def _problem(self, key: str, message: str) -> None:
        self.problems.append(Problem(key, KIND, message))

    def _metric(self) -> str | None:
        if self._asked_metric is not None:
            return self._asked_metric
        name = self._result.get("metric")
        if isinstance(name, str) and 0 < len(name) <= _LONGEST_METRIC:
            return name
        if name is None:
            there = ", ".join(sorted(str(key) for key in self._result)) or "nothing"
            self._problem(
                "metric",
                f"is missing, there is {there}; return it, or say which number counts: metric= (--metric)",
            )
        else:
            self._problem("metric", f"is text of 1 to {_LONGEST_METRIC} characters, not {name!r:.100}")
        return None

    def _value(self, metric: str | None) -> float | None:
        if metric is None and "metric" not in self._result:
            return None  # one problem is enough
        key = "value" if self._full or metric is None else metric
        if key not in self._result:
            self._problem(key, "is missing")
            return None
        value = _number(self._result[key])
        if value is None:
            self._problem(key, f"is a number, not {self._result[key]!r:.100}")
        return value

    def _direction(self) -> bool | None:
        stated = self._result.get("higher_is_better") if self._own else None
        if stated is not None and not isinstance(stated, bool | np.bool_):
            self._problem("higher_is_better", f"is True or False, not {stated!r:.100}")
            return None
        asked = self._asked_direction
        if stated is not None and asked is not None and bool(stated) != asked:
            self._problem("higher_is_better", f"is {bool(stated)} in the answer, and the caller said {asked}")
            return None
        if stated is None and asked is None:
            self._problem(
                "higher_is_better",
                "is missing; return it, or say it: higher_is_better= (--higher-is-better, --lower-is-better)",
            )
            return None
        return bool(stated) if stated is not None else asked

    def _count(self) -> int | None:
        n = self._result.get("n")
        if isinstance(n, int | np.integer) and not isinstance(n, bool) and 1 <= n <= _LARGEST_COUNT:
            return int(n)
        if n is not None:
            self._problem("n", f"is a whole number from 1, not {n!r:.100}")
        elif self._full:
            self._problem("n", "is missing: how many examples were scored")
        return None

    def _goodness(self, n: int | None, *, higher: bool | None) -> npt.NDArray[np.float64] | None:
        if not self._own:
            return None
        given = [key for key in ("correct", "per_example") if self._result.get(key) is not None]
        if not given:
            return None
        if len(given) > 1:
            self._problem("per_example", "stands beside correct; return one of them")
            return None
        held = self._result[given[0]]
        try:
            values = np.array(held.tolist() if isinstance(held, torch.Tensor) else held, np.float64)
        except (TypeError, ValueError):
            self._problem(given[0], "is a list of numbers, one per example")
            return None
        if values.ndim != 1:
            self._problem(given[0], f"is a list of numbers, one per example, not of shape {values.shape}")
        elif n is not None and len(values) != n:
            self._problem(given[0], f"has {len(values)} results, and n is {n}")
        elif len(values):
            return -values if given[0] == "per_example" and higher is False else values
        return None


def _number(value: object) -> float | None:
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
