"""The search for the largest step that passes a test which is dear and noisy.

Pure: it sees steps and a test. A score is no smooth function of the step, so nothing is inferred between the steps that
were tried, and what is returned was itself tried and passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from uws_store.canonical import Step

__all__ = ["TRIALS", "largest_passing"]

TRIALS = 12
"""Steps that one search tries at most."""

_NEAR = 1.05


def largest_passing(
    passes: Callable[[Step], bool],
    *,
    start: Step,
    finest: float,
    coarsest: float,
    trials: int = TRIALS,
) -> Step | None:
    """Bracket the largest step that passes, then halve the bracket in log scale.

    Parameters
    ----------
    passes : callable
        The test of one step.
    start : Step
        Tried first.
    finest, coarsest : float
        No step beyond these is tried.
    trials : int
        Steps to try at most, at least 1.

    Returns
    -------
    Step or None
        The largest that passed, within 5 % of one that did not, as far as ``trials`` went; None when none did.
    """
    bracket = _Bracket(passes, trials)
    bracket.attempt(start)
    stride = 2.0
    while bracket.best is None or bracket.worst is None:
        if bracket.best is not None:
            step = Step.nearest(min(bracket.best.value * stride, coarsest))
        else:
            assert bracket.worst is not None
            step = Step.nearest(max(bracket.worst.value / stride, finest))
            stride = 4.0
        if not bracket.attempt(step):
            return bracket.best
    while bracket.worst.value / bracket.best.value > _NEAR:
        if not bracket.attempt(Step.nearest(math.sqrt(bracket.best.value * bracket.worst.value))):
            break
    return bracket.best


class _Bracket:
    """What was tried: the largest step that passed, and the smallest above it that did not."""

    def __init__(self, passes: Callable[[Step], bool], trials: int) -> None:
        self.best: Step | None = None
        self.worst: Step | None = None
        self._passes = passes
        self._left = trials

    def attempt(self, step: Step) -> bool:
        """Try a step that lies within the bracket; False when it is one of its ends or no trial is left."""
        if not self._left or step in (self.best, self.worst):
            return False
        self._left -= 1
        if self._passes(step):
            self.best = step
        else:
            self.worst = step
        return True
