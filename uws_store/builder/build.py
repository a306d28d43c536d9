"""Building a basis: survey, plan, fit, search the step, assemble.

Owns the order of the phases. Writes nothing: the result is a document and objects, held in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from uws_store import layout
from uws_store.basis import Basis, step_of
from uws_store.builder.assemble import assemble_basis
from uws_store.builder.encode import AnalysisCache, EncodedModel, encode_model
from uws_store.builder.fit import FitJob, TensorFit, fit_tensor
from uws_store.builder.guard import beaten_by_plain
from uws_store.builder.members import Members, sample_tasks
from uws_store.builder.planning import decisions, factors_in_vain, plan_document
from uws_store.builder.progress import Progress, silent
from uws_store.builder.search import Fidelity, find_step, first_step
from uws_store.builder.survey import TensorSurvey
from uws_store.builder.work import resumed
from uws_store.canonical import Step
from uws_store.executors import Workers, one_thread
from uws_store.metadata.plan import PlanDocument
from uws_store.nulls import Sharing, pooled
from uws_store.plan import Choice, decode_budget, step_shift
from uws_store.storage import MemoryStorage

__all__ = ["BasisBuilder", "BuiltBasis", "build_basis", "encode_within"]

_TRIMS = 4
_NULLED_TENSORS = 12
_NULL_SIDE = 4
_NULL_ELEMENTS = 1 << 20
_PLANS = 4
_PLAN_REACH = 4.0
_NEAR = (0.7, 1.4)
"""Factors planned for a step serve steps within these ratios of it."""

_SEARCH_START = Fidelity("change-error", 0.25)
"""Where the search for a step that keeps a score begins: most networks bear this, and few bear four times as much."""


@dataclass(frozen=True, slots=True)
class BuiltBasis:
    """A basis ready to be published.

    Attributes
    ----------
    basis : Basis
        Open, over objects in memory.
    objects : dict of str to bytes
        Path below the basis's folder to bytes; the group document comes last.
    surveys : tuple of TensorSurvey
        Every tensor of the architecture.
    fits : tuple of TensorFit
        The coded ones, in coding order.
    """

    basis: Basis
    objects: dict[str, bytes]
    surveys: tuple[TensorSurvey, ...]
    fits: tuple[TensorFit, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(len(data) for data in self.objects.values())


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
        self._zoo = _Zoo(
            members,
            surveys,
            workers,
            models,
            tuple(sample_tasks(list(members.checkpoints), self._parameters)),
            (
                ("expect-models", str(models)),
                ("fidelity", str(fidelity)),
                *_form_option(members, coded),
                *options,
            ),
            _shifts(coded),
            max_decode_flops_per_weight or decode_budget(self._parameters),
            fidelity,
            decisions(plan, surveys, architecture=members.report.digest) if plan is not None else {},
            _nulled(coded),
            len(coded),
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
        built = self._zoo.assemble(self._fits, Step.nearest(found))
        return self._zoo.trim_bits(built, goal) if goal.kind == "bits" else built

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

    def plan(self, built: BuiltBasis) -> PlanDocument:
        """Write down what was decided for a basis, and what it is predicted to take."""
        document = built.basis.document
        return plan_document(
            built.fits,
            sharing=self.sharing,
            document=document,
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


def encode_within(
    basis: Basis, encode: Callable[[Step], EncodedModel], *, step: Step, fidelity: Fidelity
) -> EncodedModel:
    """Encode a model, and again with finer steps until a promised relative error holds.

    Parameters
    ----------
    basis : Basis
        For its coded parameters.
    encode : callable
        Encodes the model at a step.
    step : Step
        Where to begin.
    fidelity : Fidelity
        Only ``rel-error`` is a promise per model; other kinds are encoded once.
    """
    model = encode(step)
    while (
        fidelity.kind == "rel-error" and model.document.rel_error > fidelity.value and basis.coded_parameters
    ):
        ratio = min(0.98, 0.995 * fidelity.value / model.document.rel_error)
        step = Step.nearest(step.value * ratio)
        model = encode(step)
    return model


def _form_option(members: Members, coded: Sequence[TensorSurvey]) -> tuple[tuple[str, str], ...]:
    """How products are coded, for models that are added later."""
    products = members.checkpoints.products
    return (("form", products.form),) if products and any(survey.place for survey in coded) else ()


def _nulled(coded: Sequence[TensorSurvey]) -> frozenset[str]:
    """Pick matrices on which to measure what a zoo shares: a few, spread over the table, none of them huge."""
    matrices = [
        survey
        for survey in coded
        if min(survey.matrix) >= _NULL_SIDE and math.prod(survey.shape) <= _NULL_ELEMENTS
    ]
    count = min(_NULLED_TENSORS, len(matrices))
    picked = [index * len(matrices) // count for index in range(count)]
    return frozenset(matrices[index].name for index in picked)


def _shifts(coded: Sequence[TensorSurvey]) -> dict[str, int]:
    """Give every tensor a step in proportion to its change (see :func:`uws_store.plan.step_shift`).

    The two factors of a product share one step in the product: each gets it by its own sensitivity.
    """
    parameters = sum(math.prod(survey.shape) for survey in coded)
    energy = sum(survey.change_energy for survey in coded)
    products: dict[object, list[TensorSurvey]] = {}
    for survey in coded:
        products.setdefault(survey.place.product if survey.place else survey.name, []).append(survey)
    return {
        survey.name: step_shift(
            own_energy=sum(each.change_energy for each in together),
            own_parameters=sum(math.prod(each.shape) for each in together),
            energy=energy,
            parameters=parameters,
        )
        + round(math.log2(survey.sensitivity))
        for together in products.values()
        for survey in together
    }


def _overhead_bytes(tensors: int) -> float:
    """A model's metadata before one exists to be measured."""
    return 1800.0 + 14.0 * tensors


@dataclass(frozen=True, slots=True)
class _Zoo:
    """What every phase after the survey needs."""

    members: Members
    surveys: tuple[TensorSurvey, ...]
    workers: Workers
    models: int
    sampled: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    shifts: Mapping[str, int]
    max_flops_per_weight: float
    fidelity: Fidelity
    decided: Mapping[str, Choice]
    nulled: frozenset[str]
    coded_tensors: int
    sharing: dict[str, Sharing] = field(default_factory=dict)
    """What was measured so far: it does not depend on the step, so that it is measured once."""

    def fit(self, coded: Sequence[TensorSurvey], step: float, report: Progress) -> list[TensorFit]:
        """Fit tensors for a step."""
        jobs = [
            FitJob(
                self.members.checkpoints,
                survey,
                step=step,
                shift=self.shifts[survey.name],
                models=self.models,
                sampled=self.sampled,
                max_flops_per_weight=self.max_flops_per_weight,
                rounding=self.fidelity.rounding,
                decided=self.decided.get(survey.name),
                with_nulls=survey.name in self.nulled and survey.name not in self.sharing,
            )
            for survey in coded
        ]
        number = {survey.name: index for index, survey in enumerate(self.surveys)}
        names = [
            f"fit/{step.hex()}/{number[survey.name]}" + ("/decided" if survey.name in self.decided else "")
            for survey in coded
        ]
        fits: dict[int, TensorFit] = {}
        size_bytes = 0
        for index, fit in resumed(
            self.members.work, self.workers, fit_tensor, jobs, names=names, kind=TensorFit
        ):
            fits[index] = fit
            if fit.sharing is not None:
                self.sharing[fit.survey.name] = fit.sharing
            size_bytes += self.members.size_bytes(fit.survey.name, fit.survey.usable)
            report("fitting", len(fits), len(coded), size_bytes)
        made = [fits[index] for index in range(len(coded))]
        if len(made) == self.coded_tensors:
            made = self.guarded(made, step, report)
        return made

    def guarded(self, fits: list[TensorFit], step: float, report: Progress) -> list[TensorFit]:
        """Fit anew what a plain coder stores in less on encoded models, and what does not pay for its arrays.

        A plan that was given is followed. The weights are looked at again only where they are still in memory: a zoo
        whose slices do not fit is read twice, and not a third time.
        """
        for everything in (False, True) if not self.decided and self.members.is_small else ():
            plain = beaten_by_plain(
                fits,
                self.members.checkpoints,
                step=step,
                models=self.models,
                rounding=self.fidelity.rounding,
                everything=everything,
            )
            if not plain:
                break
            fits = self._refitted(fits, plain, step, report)
        return self._refitted(fits, factors_in_vain(fits, models=self.models), step, report)

    def _refitted(
        self, fits: list[TensorFit], choices: Mapping[str, Choice], step: float, report: Progress
    ) -> list[TensorFit]:
        """Fit some tensors anew by other choices."""
        if not choices:
            return fits
        again = replace(self, decided={**self.decided, **choices}, coded_tensors=-1)
        anew = again.fit([fit.survey for fit in fits if fit.survey.name in choices], step, report)
        by_name = {fit.survey.name: fit for fit in anew}
        return [by_name.get(fit.survey.name, fit) for fit in fits]

    def recorded(self) -> tuple[tuple[str, str], ...]:
        """The options, and what the zoo shares, for the basis's record."""
        found = pooled(list(self.sharing.values()))
        return (*self.options, *((("shares", found.shares),) if found is not None else ()))

    def assemble(self, fits: Sequence[TensorFit], step: Step) -> BuiltBasis:
        """Put the basis together and open it from its own bytes."""
        document, group, objects = assemble_basis(
            self.members, self.surveys, fits, step=step, options=self.recorded(), workers=self.workers
        )
        digest = hashlib.sha256(group).hexdigest()
        storage = MemoryStorage("build")
        prefix = layout.basis_prefix("build", digest)
        for path, data in objects.items():
            storage.put_if_absent(f"{prefix}/{path}", data)
        basis = Basis.open(storage, prefix, digest=digest)
        basis.prefetch()
        assert basis.document == document
        return BuiltBasis(basis, objects, self.surveys, tuple(fits))

    def trim_bits(self, built: BuiltBasis, fidelity: Fidelity) -> BuiltBasis:
        """Correct the step by what models really take, metadata and all."""
        for _ in range(_TRIMS):
            step = step_of(built.basis.document.step)
            analyses = AnalysisCache(built.basis)
            encoded = [
                encode_model(built.basis, self.members.checkpoints[task], step=step, analyses=analyses)
                for task in self.sampled
            ]
            bits = sum(model.bits_per_parameter(built.basis) for model in encoded) / len(encoded)
            if 0.985 * fidelity.value <= bits <= fidelity.value:
                break
            # Around one bit, a step that is r times larger takes about r**0.9 times fewer bits.
            found = Step.nearest(step.value * (bits / (0.995 * fidelity.value)) ** (1 / 0.9))
            if found == step:
                break
            built = self.assemble(built.fits, found)
        return built
