"""Fidelity as a score: a user's evaluation before and after, and the step that keeps a promised one.

:class:`Judge` joins the parts. Evaluations are named by the caller alone; records keep their names and hashes, never
run them.
"""

from __future__ import annotations

from uws_store.fidelity.evaluation import Evaluation, EvaluationFunction, Score
from uws_store.fidelity.judge import Judge
from uws_store.fidelity.naming import load_evaluation
from uws_store.fidelity.promise import OnMiss, Promise
from uws_store.fidelity.request import ScoringRequest, read_request
from uws_store.fidelity.results import FamilyScore, ModelScore, summarise

__all__ = [
    "Evaluation",
    "EvaluationFunction",
    "FamilyScore",
    "Judge",
    "ModelScore",
    "OnMiss",
    "Promise",
    "Score",
    "ScoringRequest",
    "load_evaluation",
    "read_request",
    "summarise",
]
