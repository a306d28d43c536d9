"""What a verification found, as values."""

from __future__ import annotations

from dataclasses import dataclass

from uws_store.errors import Problem
from uws_store.fidelity import Examined, FamilySide
from uws_store.verifier import ModelReport

__all__ = ["ModelVerdict", "VerifyResult"]


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """What verification found of one model.

    Attributes
    ----------
    task : str
        Its name.
    version : int
        Its version.
    digest : str
        Its content: SHA-256 of its document.
    report : ModelReport
        The findings.
    safe_to_delete : bool
        Whether the original was given and the exact tier was found bit-identical to all of it.
    scores : tuple of Examined
        With an evaluation: each metric, side by side; empty when it cannot score the task.
    """

    task: str
    version: int
    digest: str
    report: ModelReport
    safe_to_delete: bool
    scores: tuple[Examined, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What verification found of a family.

    Attributes
    ----------
    family : str
        Its name.
    basis_objects : int
        Objects of its bases that were digested.
    models : tuple of ModelVerdict
        By task.
    problems : tuple of Problem
        What is wrong outside any one model.
    not_compared : tuple of str
        With originals given: tasks that have none there, such as models that were added later.
    evaluation : str or None
        What scored the models: name and hash.
    scores : tuple of FamilySide
        Means over the models, per metric and side.
    record : str or None
        SHA-256 of the record that was published of it; None when none was asked for.
    commits : int or None
        How many commits of the log were read again; None when that was not asked for.
    """

    family: str
    basis_objects: int
    models: tuple[ModelVerdict, ...]
    problems: tuple[Problem, ...]
    not_compared: tuple[str, ...] = ()
    evaluation: str | None = None
    scores: tuple[FamilySide, ...] = ()
    record: str | None = None
    commits: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems and all(model.report.ok for model in self.models)
