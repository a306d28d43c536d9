"""What building a family and adding a model tell their caller."""

from __future__ import annotations

from dataclasses import dataclass

from uws_store.fidelity import FamilyScore, ModelScore
from uws_store.nulls import Shares

__all__ = ["AddResult", "BuildResult", "ExtendResult", "ModelResult"]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model that was stored.

    Attributes
    ----------
    task : str
        Its name.
    version : int
        Its version.
    bits_per_parameter : float
        Bits of the compact tier per basis-coded parameter, metadata counted, private tensors not.
    compact_bytes, private_bytes, file_bytes, size_bytes, source_bytes : int
        Everything the weights of the compact tier need; the private tensors in it; side files that no other model has;
        all of it, with the residual; the weights of the source checkpoint.
    rel_error : float
        ``||W - W'|| / ||W||`` over basis-coded weights.
    notices : tuple of str
        What was left out or renamed when the checkpoint was read; then tensors that were kept byte for byte against
        expectation, and why.
    step : float
        The quantiser step it was encoded with; the family's is in :class:`BuildResult`.
    scores : tuple of ModelScore
        Measured scores, where an evaluation was given.
    remarks : tuple of str
        What else should be known about its scores and the family's promise.
    """

    task: str
    version: int
    bits_per_parameter: float
    compact_bytes: int
    private_bytes: int
    file_bytes: int
    size_bytes: int
    source_bytes: int
    rel_error: float
    notices: tuple[str, ...]
    step: float
    scores: tuple[ModelScore, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A family that was built.

    Attributes
    ----------
    family, registry : str
        Names.
    basis_bytes : int
        All objects of the basis, or of the bases.
    coded_parameters : int
        Parameters per model that go through the basis.
    models : tuple of ModelResult
        By task.
    odd_tensors : dict of str to tuple of str
        Per task, tensors that differ in shape from the others' and are private.
    skipped : tuple of str
        Members of another architecture that were left out.
    outliers : dict of str to tuple of str
        Per task, tensors kept out of the fit because their norm is far beyond the others'.
    shares : {"subspace", "mean", "nothing"} or None
        What the zoo shares beyond its nulls; None where it is too small to tell.
    sharing : str
        The same in a sentence, with the numbers.
    groups : tuple of tuple of str
        The tasks of each basis: one group, unless the models were tuned from several base models and a basis for each is
        smaller.
    commit : int
        The commit that published it.
    step : float
        The quantiser step of the first basis.
    scores : tuple of FamilyScore
        Scores averaged over the models, where an evaluation was given.
    remarks : tuple of str
        What should be known about them.
    projected_memory_bytes : int
        The peak of memory that was projected before anything was read.
    """

    family: str
    registry: str
    basis_bytes: int
    coded_parameters: int
    models: tuple[ModelResult, ...]
    odd_tensors: dict[str, tuple[str, ...]]
    skipped: tuple[str, ...]
    outliers: dict[str, tuple[str, ...]]
    shares: Shares | None
    sharing: str
    groups: tuple[tuple[str, ...], ...]
    commit: int
    step: float
    scores: tuple[FamilyScore, ...]
    remarks: tuple[str, ...]
    projected_memory_bytes: int


@dataclass(frozen=True, slots=True)
class AddResult:
    """A model that was added.

    Attributes
    ----------
    family, registry : str
        Names.
    model : ModelResult
        What was stored.
    commit : int
        The commit that published it.
    """

    family: str
    registry: str
    model: ModelResult
    commit: int


@dataclass(frozen=True, slots=True)
class ExtendResult:
    """A basis revision that was made.

    Attributes
    ----------
    family, registry : str
        Names.
    revision : int
        The new revision.
    basis_bytes : int
        All objects of the new basis.
    models : tuple of ModelResult
        The new models, by task.
    from_registry, from_compact : int
        Stored models that the basis covers; those among them that have no exact tier and came as their compact one.
    commit : int
        The commit that published it.
    remarks : tuple of str
        What should be known about how the basis was made.
    """

    family: str
    registry: str
    revision: int
    basis_bytes: int
    models: tuple[ModelResult, ...]
    from_registry: int
    from_compact: int
    commit: int
    remarks: tuple[str, ...] = ()
