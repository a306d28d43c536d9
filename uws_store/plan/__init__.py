"""The planner: per tensor what is stored, by measured bits and distortion on models kept out of the fit."""

from __future__ import annotations

from uws_store.plan.candidates import Candidate, SideChoice, decode_budget
from uws_store.plan.choose import Choice, choose_sides, mean_cost
from uws_store.plan.measure import fit_side
from uws_store.plan.steps import is_table, mean_grid, step_shift

__all__ = [
    "Candidate",
    "Choice",
    "SideChoice",
    "choose_sides",
    "decode_budget",
    "fit_side",
    "is_table",
    "mean_cost",
    "mean_grid",
    "step_shift",
]
