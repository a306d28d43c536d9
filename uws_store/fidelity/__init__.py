"""Fidelity as a score: a user's evaluation before and after, and the step that keeps a promised one.

:class:`Judge` joins the parts. Evaluations are named by the caller alone; records keep their names and hashes, never
run them.
"""

from __future__ import annotations

from uws_store.fidelity.builtin import BUILT_IN, Assembler, ModuleFactory, built_in, filled
from uws_store.fidelity.control import basis_free
from uws_store.fidelity.evaluation import Evaluation, EvaluationFunction, Score
from uws_store.fidelity.judge import Judge
from uws_store.fidelity.naming import load_evaluation, load_function
from uws_store.fidelity.promise import OnMiss, Promise
from uws_store.fidelity.request import ScoringRequest, read_request
from uws_store.fidelity.results import FamilyScore, ModelScore, summarise
from uws_store.fidelity.sides import (
    ORIGINAL,
    Examined,
    Examiner,
    FamilySide,
    SideScore,
    UserExaminer,
    examine,
    summarise_sides,
)

__all__ = [
    "BUILT_IN",
    "ORIGINAL",
    "Assembler",
    "Evaluation",
    "EvaluationFunction",
    "Examined",
    "Examiner",
    "FamilyScore",
    "FamilySide",
    "Judge",
    "ModelScore",
    "ModuleFactory",
    "OnMiss",
    "Promise",
    "Score",
    "ScoringRequest",
    "SideScore",
    "UserExaminer",
    "basis_free",
    "built_in",
    "examine",
    "filled",
    "load_evaluation",
    "load_function",
    "read_request",
    "summarise",
    "summarise_sides",
]
