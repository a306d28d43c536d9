"""Building a basis: survey, plan, fit, search the step, assemble.

Owns the order of the phases. Writes nothing: the result is a document and objects, held in memory.
"""

from __future__ import annotations

import math

import torch

from uws_store.builder.fit import TensorFit
from uws_store.builder.members import Members, sample_tasks, sampled_share
from uws_store.builder.planning import decisions, plan_document
from uws_store.builder.progress import Progress, silent
from uws_store.builder.search import Fidelity, find_step, first_step, step_beyond
from uws_store.builder.surveyed import BuiltBasis, SurveyedZoo, form_option, step_shifts, tensors_to_null
from uws_store.canonical import Step
from uws_store.device import CPU, each_device
from uws_store.executors import Workers, one_thread
from uws_store.metadata.plan import PlanDocument
from uws_store.nulls import Sharing, pooled
from uws_store.plan import decode_budget

__all__ = ["BasisBuilder", "build_basis"]

_PLANS = 4
_PLAN_REACH = 4.0
_NEAR = (0.7, 1.4)
"""Factors planned for a step serve steps within these ratios of it."""

_SEARCH_START = Fidelity("change-error", 0.25)
"""Where the search for a step that keeps a score begins: most networks bear this, and few bear four times as much."""


class BasisBuilder:
    """Makes the basis of a zoo at a fidelity, and again at other steps: the zoo is surveyed once.

    Parameters
    ----------
    members : Members
        The opened zoo.
    fidelity : Fidelity
        What was asked for; it stands in the basis, for models that are added later.
    expect_models : int, optional
        Models the family is planned for, when more than the zoo has.
    options : tuple of (str, str)
        More of what was asked for, to stand beside it.
    max_decode_flops_per_weight : float, optional
        The most that decoding a tensor may take; by default :func:`uws_store.plan.decode_budget`.
    plan : PlanDocument, optional
        Decisions made before, instead of planning; the step is searched for all the same.
    progress : callable, optional
        See :class:`uws_store.builder.progress.Progress`.
    workers : Workers, optional
        Who surveys, fits and digests, tensor by tensor; this thread when absent. The basis is the same.
    kept_bytes : int
        Slices that may stay in memory so that they are read once and not twice. The basis is the same.
    device : torch.device
        Where tensors are fitted; a bare ``cuda`` is every GPU, each with tensors of its own. The basis is the same for
        devices of one kind, and another kind's may differ: the record names the kind.
    """

    def __init__(
        self,
        members: Members,
        *,
        fidelity: Fidelity,
        expect_models: int | None = None,
        options: tuple[tuple[str, str], ...] = (),
        max_decode_flops_per_weight: float | None = None,
        plan: PlanDocument | None = None,
        progress: Progress | None = None,
        workers: Workers | None = None,
        kept_bytes: int = 0,
        device: torch.device = CPU,
    ) -> None:
        self._report: Progress = progress or silent
        self._fidelity = fidelity
        workers = workers or Workers()
        pilot = members.pilot()
        members.checkpoints.keep(kept_bytes, always=pilot if members.is_small else ())
        surveys = members.survey(workers, report=self._report)
        coded = [survey for survey in surveys if survey.mode == "coded"]
        models = max(expect_models or 0, len(members.checkpoints))
        self._parameters = sum(math.prod(survey.shape) for survey in coded)
        self._energy = sum(survey.energy for survey in coded)
        self._change_energy = sum(survey.change_energy for survey in coded)
        self._zoo = SurveyedZoo(
            members,
            surveys,
            workers,
            models,
            tuple(sample_tasks(list(members.checkpoints), self._parameters)),
            (
                ("expect-models", str(models)),
                ("fidelity", str(fidelity)),
                *form_option(members, coded),
                *options,
            ),
            step_shifts(coded),
            max_decode_flops_per_weight or decode_budget(self._parameters),
            fidelity,
            decisions(plan, surveys, architecture=members.report.digest) if plan is not None else {},
            tensors_to_null(coded),
            pilot if fidelity.kind == "bits" else frozenset(),
            len(coded),
            each_device(device),
            sampled_share(self._parameters),
        )
        self._pilot = [survey for survey in coded if survey.name in pilot]
        self._rest = [survey for survey in coded if survey.name not in pilot]
        self._coded = coded
        self._fits: list[TensorFit] = []
        self._planned_step = 0.0

    @property
    def step_matters(self) -> bool:
        """Whether members differ in anything that is quantised."""
        return self._change_energy > 0.0

    def build(self) -> BuiltBasis:
        """Make the basis at the fidelity; for ``max-drop``, at the step where its search begins."""
        with one_thread():
            return self._build()

    def _build(self) -> BuiltBasis:
        if not self._parameters:
            return self._zoo.assemble([], Step(128, -7))
        if not self.step_matters:
            # Members differ in dtype or in the sign of zeros alone: nothing to plan for, only a grid for the mean.
            self._plan_for(1.0)
            grid = 2.0**-14 * math.sqrt(self._energy / self._parameters) or 1.0
            return self._zoo.assemble(self._fits, Step.nearest(grid))
        goal = _SEARCH_START if self._fidelity.kind == "max-drop" else self._fidelity
        overhead = _overhead_bytes(len(self._zoo.surveys))
        guess = first_step(
            goal, energy=self._energy, change_energy=self._change_energy, parameters=self._parameters
        )
        found = find_step(
            self._fit_all(guess, goal, overhead_bytes=overhead), goal, start=guess, overhead_bytes=overhead
        )
        # A zoo that is all pilot is in memory: planning it anew reads nothing. A plan says little about steps far from
        # its own, so that the search goes there by and by.
        for _ in range(0 if self._rest else _PLANS):
            near = min(_PLAN_REACH * self._planned_step, max(self._planned_step / _PLAN_REACH, found))
            if not self._plan_for(near):
                break
            found = find_step(self._fits, goal, start=near, overhead_bytes=overhead)
        if goal.kind != "bits":
            return self._zoo.assemble(self._fits, Step.nearest(found))
        beyond = step_beyond(self._fits, found)
        built = self._zoo.assemble(self._fits, Step.nearest(found), beyond=beyond)
        return self._zoo.trim_bits(built, goal, beyond=beyond)

    def at_step(self, step: Step) -> tuple[BuiltBasis, bool]:
        """Make the basis for a step that was found otherwise.

        Parameters
        ----------
        step : Step
            The family's step.

        Returns
        -------
        built : BuiltBasis
            With this step; tensors are fitted anew only when the last plan was for a step far from it.
        refitted : bool
            Whether they were: models then reconstruct otherwise at every step.
        """
        with one_thread():
            refitted = self.step_matters and self._plan_for(step.value)
            return self._zoo.assemble(self._fits, step), refitted

    def _fit_all(self, guess: float, goal: Fidelity, *, overhead_bytes: float) -> list[TensorFit]:
        """Fit every tensor once: the pilot for the guess, the rest for the step that the pilot tells."""
        if not self._rest:
            self._plan_for(guess)
            return self._fits
        pilot: list[TensorFit] = []
        step = guess
        if sum(survey.change_energy for survey in self._pilot) > 0.0:
            pilot = self._zoo.fit(self._pilot, guess, self._report)
            share = sum(math.prod(survey.shape) for survey in self._pilot) / self._parameters
            found = find_step(pilot, goal, start=guess, overhead_bytes=overhead_bytes * share)
            step = guess if _NEAR[0] < found / guess < _NEAR[1] else found
        fits = {fit.survey.name: fit for fit in pilot}
        missing = [survey for survey in self._coded if survey.name not in fits]
        fits |= {fit.survey.name: fit for fit in self._zoo.fit(missing, step, self._report)}
        self._fits = self._zoo.guarded([fits[survey.name] for survey in self._coded], step, self._report)
        self._planned_step = step
        return self._fits

    @property
    def sharing(self) -> Sharing | None:
        """What the zoo shares beside its nulls, once it was fitted; None where that cannot be measured."""
        return pooled(list(self._zoo.sharing.values()))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What should be known about how the basis was made."""
        return self._zoo.remarks()

    def plan(self, built: BuiltBasis) -> PlanDocument:
        """Write down what was decided for a basis, and what it is predicted to take."""
        document = built.basis.document
        return plan_document(
            built.fits,
            sharing=self.sharing,
            document=document,
            step=built.step,
            models=self._zoo.models,
            fidelity=str(self._fidelity),
            max_flops_per_weight=self._zoo.max_flops_per_weight,
            basis_bytes=built.size_bytes,
            overhead_bytes=_overhead_bytes(len(self._zoo.surveys)),
        )

    def _plan_for(self, step: float) -> bool:
        """Fit for a step, unless the last fit was for one that is near enough."""
        if self._planned_step and _NEAR[0] < step / self._planned_step < _NEAR[1]:
            return False
        self._fits = self._zoo.fit(self._coded, step, self._report)
        self._planned_step = step
        return True


def build_basis(
    members: Members,
    *,
    fidelity: Fidelity,
    expect_models: int | None = None,
    progress: Progress | None = None,
    workers: Workers | None = None,
    kept_bytes: int = 0,
) -> BuiltBasis:
    """Derive a basis from a zoo: :class:`BasisBuilder` in one call.

    Returns
    -------
    BuiltBasis
        The same zoo and options give the same bytes on one kind of machine, whoever works.
    """
    return BasisBuilder(
        members,
        fidelity=fidelity,
        expect_models=expect_models,
        progress=progress,
        workers=workers,
        kept_bytes=kept_bytes,
    ).build()


def _overhead_bytes(tensors: int) -> float:
    """A model's metadata before one exists to be measured."""
    return 1800.0 + 14.0 * tensors
