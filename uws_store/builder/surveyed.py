"""A surveyed zoo: fitting its tensors for a step, guarding the fits, assembling a basis from them.

Owns what does not change from step to step. Must not know how a step is searched for. Writes nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from uws_store import layout
from uws_store.basis import Basis
from uws_store.builder.assemble import assemble_basis
from uws_store.builder.coded import AnalysisCache
from uws_store.builder.encode import encode_model
from uws_store.builder.fit import FitJob, TensorFit
from uws_store.builder.fit_tiles import fit_any
from uws_store.builder.guard import beaten_by_plain
from uws_store.builder.member_step import member_step_option
from uws_store.builder.members import Members
from uws_store.builder.memory import give_back
from uws_store.builder.object_folder import ObjectFolder, object_sizes
from uws_store.builder.planning import factors_in_vain
from uws_store.builder.progress import Progress
from uws_store.builder.search import Fidelity
from uws_store.builder.survey import TensorSurvey
from uws_store.builder.work import resumed
from uws_store.canonical import Step
from uws_store.device import CPU, told_of_retreat
from uws_store.executors import Workers
from uws_store.nulls import Sharing, pooled
from uws_store.plan import Choice, is_table, step_shift
from uws_store.storage import MemoryStorage

__all__ = ["BuiltBasis", "SurveyedZoo", "form_option", "step_shifts", "tensors_to_null"]

_TRIMS = 4
_FALLS = (0.5, 4.0)
_NULLED_TENSORS = 12
_NULL_SIDE = 4
_NULL_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class BuiltBasis:
    """A basis ready to be published.

    Attributes
    ----------
    basis : Basis
        Open, over objects in memory.
    objects : Mapping of str to bytes
        Path below the basis's folder to bytes; the group document comes last.
    surveys : tuple of TensorSurvey
        Every tensor of the architecture.
    fits : tuple of TensorFit
        The coded ones, in coding order.
    step : Step
        The step of the models that it was made from; the basis's own, for models that are added later, may be coarser.
    """

    basis: Basis
    objects: Mapping[str, bytes]
    surveys: tuple[TensorSurvey, ...]
    fits: tuple[TensorFit, ...]
    step: Step

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(object_sizes(self.objects).values())


@dataclass(frozen=True, slots=True)
class SurveyedZoo:
    """A surveyed zoo and what was asked for it: what every phase after the survey needs.

    Attributes
    ----------
    members : Members
        The opened zoo.
    surveys : tuple of TensorSurvey
        Every tensor of the architecture.
    workers : Workers
        Who fits and digests, tensor by tensor.
    models : int
        Models the family is planned for.
    sampled : tuple of str
        Tasks that stand for all where measuring takes encoding.
    options : tuple of (str, str)
        What was asked for, for the basis's record.
    shifts : Mapping of str to int
        Each coded tensor's step as a power of two below the family's.
    max_flops_per_weight : float
        The most that decoding a tensor may take.
    fidelity : Fidelity
        What was asked for.
    decided : Mapping of str to Choice
        Tensors whose decision is not to be searched for.
    nulled : frozenset of str
        Tensors on which to measure what the zoo shares.
    crossed : frozenset of str
        Tensors on which to measure what models outside the zoo take.
    coded_tensors : int
        How many tensors are coded: a fit of all of them is guarded.
    devices : tuple of torch.device
        Where they are fitted, in turn.
    sampled_share : float
        Part of the sampled tasks' coefficients that is looked at.
    """

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
    crossed: frozenset[str]
    coded_tensors: int
    devices: tuple[torch.device, ...] = (CPU,)
    sampled_share: float = 1.0
    retreats: dict[str, str] = field(default_factory=dict)
    """Tensors for which a device had no room, as of :attr:`TensorFit.retreat`."""
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
                with_outside=survey.name in self.crossed,
                device=self.devices[index % len(self.devices)],
                sampled_share=self.sampled_share,
                scratch=self.members.scratch,
            )
            for index, survey in enumerate(coded)
        ]
        number = {survey.name: index for index, survey in enumerate(self.surveys)}
        names = [
            f"fit/{step.hex()}/{number[survey.name]}" + ("/decided" if survey.name in self.decided else "")
            for survey in coded
        ]
        fits: dict[int, TensorFit] = {}
        size_bytes = 0
        for index, fit in resumed(
            self.members.work, self.workers, fit_any, jobs, names=names, kind=TensorFit
        ):
            fits[index] = fit
            if self.members.is_large:
                fits[index] = replace(fit, mean=self.members.scratch.keep(fit.mean))
                self.members.scratch.forget()
            if fit.retreat:
                self.retreats[fit.survey.name] = fit.retreat
            if fit.sharing is not None:
                self.sharing[fit.survey.name] = fit.sharing
            size_bytes += self.members.size_bytes(fit.survey.name, fit.survey.usable)
            report("fitting", len(fits), len(coded), size_bytes)
        made = [fits[index] for index in range(len(coded))]
        give_back()
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
        """The options, the kind of device, and what the zoo shares, for the basis's record."""
        found = pooled(list(self.sharing.values()))
        device = self.devices[0].type
        more = [("device", device)] if device != CPU.type else []
        if self.retreats:
            more.append(("device-retreats", str(len(self.retreats))))
        if found is not None:
            more.append(("shares", found.shares))
        return (*self.options, *more)

    def remarks(self) -> tuple[str, ...]:
        """Tell which tensors were not fitted as asked, for want of room on the device."""
        device = self.devices[0]
        return tuple(
            f"the basis of {name} {told_of_retreat(way, device)}"
            for name, way in sorted(self.retreats.items())
        )

    def assemble(self, fits: Sequence[TensorFit], step: Step, *, beyond: float = 1.0) -> BuiltBasis:
        """Put the basis together and open it from its own bytes.

        Parameters
        ----------
        fits : sequence of TensorFit
            The coded tensors.
        step : Step
            The members' step.
        beyond : float
            How much coarser that of models outside the zoo is.
        """
        others = Step.nearest(step.value * beyond)
        document, group, objects = assemble_basis(
            self.members,
            self.surveys,
            fits,
            step=others,
            finest=step,
            options=(*self.recorded(), *member_step_option(step, others)),
            workers=self.workers,
        )
        digest = hashlib.sha256(group).hexdigest()
        if isinstance(objects, ObjectFolder):
            basis = Basis.open(objects.storage, objects.prefix, digest=digest)
            return BuiltBasis(basis, objects, self.surveys, tuple(fits), step)
        storage = MemoryStorage("build")
        prefix = layout.basis_prefix("build", digest)
        for path, data in objects.items():
            storage.put_if_absent(f"{prefix}/{path}", data)
        basis = Basis.open(storage, prefix, digest=digest)
        basis.prefetch()
        assert basis.document == document
        return BuiltBasis(basis, objects, self.surveys, tuple(fits), step)

    def trim_bits(self, built: BuiltBasis, fidelity: Fidelity, *, beyond: float) -> BuiltBasis:
        """Correct the step by what members really take, metadata and all; that of other models goes with it."""
        # Around one bit, a step that is r times larger takes about r**0.9 times fewer bits; at a tenth, r**2.
        fall = 0.9
        before: tuple[float, float] | None = None
        for _ in range(_TRIMS):
            step = built.step
            analyses = AnalysisCache.shared(built.basis, device=self.devices[0], scratch=self.members.scratch)
            encoded = [
                encode_model(built.basis, self.members.checkpoints[task], step=step, analyses=analyses)
                for task in self.sampled
            ]
            bits = sum(model.bits_per_parameter(built.basis) for model in encoded) / len(encoded)
            if 0.985 * fidelity.value <= bits <= fidelity.value:
                break
            if before is not None and bits != before[1]:
                measured = -math.log(bits / before[1]) / math.log(step.value / before[0])
                fall = min(_FALLS[1], max(_FALLS[0], measured))
            before = step.value, bits
            found = Step.nearest(step.value * (bits / (0.995 * fidelity.value)) ** (1 / fall))
            if found == step:
                break
            built = self.assemble(built.fits, found, beyond=beyond)
        return built


def form_option(members: Members, coded: Sequence[TensorSurvey]) -> tuple[tuple[str, str], ...]:
    """How products are coded, for models that are added later."""
    products = members.checkpoints.products
    return (("form", products.form),) if products and any(survey.place for survey in coded) else ()


def tensors_to_null(coded: Sequence[TensorSurvey]) -> frozenset[str]:
    """Pick matrices on which to measure what a zoo shares: a few, spread over the table, none of them huge."""
    matrices = [
        survey
        for survey in coded
        if min(survey.matrix) >= _NULL_SIDE and math.prod(survey.shape) <= _NULL_ELEMENTS
    ]
    count = min(_NULLED_TENSORS, len(matrices))
    picked = [index * len(matrices) // count for index in range(count)]
    return frozenset(matrices[index].name for index in picked)


def step_shifts(coded: Sequence[TensorSurvey]) -> dict[str, int]:
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
            table=len(together) == 1 and is_table(*survey.matrix),
        )
        + round(math.log2(survey.sensitivity))
        for together in products.values()
        for survey in together
    }
