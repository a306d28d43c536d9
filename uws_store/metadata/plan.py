"""The document of a plan: what a builder would store for each tensor of a zoo, what that takes, and why.

A plan is a program's own file, printed and read back; no registry holds one. Must not know how it was found.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from uws_store.metadata.arrays import MAX_ELEMENTS, Sha256Hex
from uws_store.metadata.basis import MAX_TENSORS, SideRecord, StepRecord, TensorName
from uws_store.metadata.document import Document, Part

__all__ = ["PlanDocument", "PlannedTensor", "SharingRecord"]

Amount = Annotated[float, Field(ge=0.0)]


class PlannedTensor(Part):
    """The decision for one tensor.

    Attributes
    ----------
    name : str
        The tensor.
    elements : int
        Its elements.
    left, right : SideRecord or None
        Factors.
    centred, ordered : bool
        Whether the zoo's mean is taken off, and whether coefficients are sorted by predicted variance.
    bits_per_model : float
        Predicted bits of its core in a model that the fit has not seen.
    distortion : float
        Predicted squared error per element, in squared steps of the tensor.
    basis_bits : float
        Bits of its mean, factors and profile.
    plain_bits_per_model, plain_basis_bits : float
        The same of the best plain coder, at equal cost for distortion.
    flops_per_weight : float
        What decoding takes.
    reason : str
        Why.
    """

    name: TensorName
    elements: Annotated[int, Field(ge=1, le=MAX_ELEMENTS)]
    left: SideRecord | None = None
    right: SideRecord | None = None
    centred: bool
    ordered: bool
    bits_per_model: Amount
    distortion: Amount
    basis_bits: Amount
    plain_bits_per_model: Amount
    plain_basis_bits: Amount
    flops_per_weight: Amount
    reason: Annotated[str, Field(max_length=1000)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.centred and (self.left or self.right):
            raise ValueError(f"{self.name}: factors stand for changes about the mean")
        if not self.ordered and (self.left or self.right):
            raise ValueError(f"{self.name}: coefficients in factors are ordered")
        return self


class SharingRecord(Part):
    """What the zoo shares, beside its nulls (see :mod:`uws_store.nulls`).

    Attributes
    ----------
    shares : {"subspace", "mean", "nothing"}
        The verdict.
    elements : int
        Elements of a model that it was measured on.
    mean_share : float
        Part of a held-out model's energy that the mean explains.
    gain_bits, gaussian_bits, shuffled_bits : float
        Bits per element that shared factors save: of the zoo, and of the nulls.
    """

    shares: Literal["subspace", "mean", "nothing"]
    elements: Annotated[int, Field(ge=1, le=MAX_ELEMENTS)]
    mean_share: float
    gain_bits: float
    gaussian_bits: float
    shuffled_bits: float


class PlanDocument(Document):
    """A plan for one zoo.

    Attributes
    ----------
    architecture : str
        Digest of the zoo's signature: a plan serves zoos of this one alone.
    sources : str
        SHA-256, hex, over the zoo's members, as in a basis.
    members, models : int
        Models in the zoo, and models that the basis is planned for.
    fidelity : str
        What was asked for.
    step : StepRecord
        The family's step.
    max_flops_per_weight : float
        The most that decoding a tensor may take.
    basis_bytes, model_bytes, source_bytes : float
        Predicted bytes of the basis and of a model (records counted, private tensors not), and of a checkpoint's coded
        tensors.
    plain_basis_bytes, plain_model_bytes : float
        The same of the best plain coder.
    tensors : tuple of PlannedTensor
        Those that are coded, in the table's order.
    sharing : SharingRecord or None
        None where it could not be measured.
    bases : int
        Base models that the zoo was tuned from, where a basis for each is smaller: what a build makes that follows no plan.
        The plan is for one basis all the same.
    tool : str
        Version of the package that planned.
    """

    max_bytes: ClassVar[int] = 64 << 20

    kind: Literal["plan"] = "plan"
    architecture: Sha256Hex
    sources: Sha256Hex
    members: Annotated[int, Field(ge=1, le=1 << 32)]
    models: Annotated[int, Field(ge=1, le=1 << 32)]
    fidelity: Annotated[str, Field(max_length=200)]
    step: StepRecord
    max_flops_per_weight: Amount
    basis_bytes: Amount
    model_bytes: Amount
    source_bytes: Amount
    plain_basis_bytes: Amount
    plain_model_bytes: Amount
    tensors: Annotated[tuple[PlannedTensor, ...], Field(max_length=MAX_TENSORS)]
    sharing: SharingRecord | None = None
    bases: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    tool: Annotated[str, Field(max_length=64)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError("a tensor stands twice in the plan")
        return self

    def break_even(self, basis_bytes: float, model_bytes: float) -> float | None:
        """Models from which on this plan is smaller than something else; None where it never is.

        Parameters
        ----------
        basis_bytes, model_bytes : float
            Bytes of the other that are shared, and per model.
        """
        saved = model_bytes - self.model_bytes
        added = self.basis_bytes - basis_bytes
        if added <= 0.0:
            return 0.0 if saved >= 0.0 else None
        return added / saved if saved > 0.0 else None
