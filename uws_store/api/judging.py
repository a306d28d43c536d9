"""The verdict on each model: checked, compared with its original, and scored on each of its sides.

Owns which sides a model has and how their weights are made. Must not know where originals and evaluations come from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from uws_store.api.family import Family
from uws_store.api.verdicts import ModelVerdict
from uws_store.checkpoint import Checkpoint
from uws_store.errors import Problem, UwsError
from uws_store.fidelity import ORIGINAL, Examined, Examiner, basis_free, examine
from uws_store.loader import LazyStateDict
from uws_store.model import Model, Tier
from uws_store.registry import ModelEntry
from uws_store.verifier import ModelReport, verify_model

__all__ = ["Judging", "all_verdicts"]

_CPU = torch.device("cpu")


def all_verdicts(
    work: Judging,
    entries: list[ModelEntry],
    *,
    workers: int,
    progress: Callable[[str, int, int], None] | None,
) -> list[ModelVerdict]:
    """Judge models, several at a time; the verdicts come in the order of the entries.

    Parameters
    ----------
    work : Judging
        What judges each.
    entries : list of ModelEntry
        The models.
    workers : int
        Models at a time, in threads.
    progress : callable or None
        See :func:`uws_store.build`.
    """
    verdicts: dict[int, ModelVerdict] = {}
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="uws-verify") as pool:
        futures = {pool.submit(work.verdict, entry): index for index, entry in enumerate(entries)}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                verdicts[futures[future]] = future.result()
                if progress is not None:
                    progress("verifying", done, len(entries))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [verdicts[index] for index in range(len(entries))]


class Judging:
    """Verification of one model after another, from any thread.

    Parameters
    ----------
    family : Family
        The open family.
    originals : Mapping of str to Checkpoint
        By task; models of other tasks are not compared.
    examiner : Examiner or None
        What scores the models.
    damaged : frozenset of str
        Digests of bases that are damaged: models on them fail unread.
    """

    def __init__(
        self,
        family: Family,
        originals: Mapping[str, Checkpoint],
        examiner: Examiner | None,
        damaged: frozenset[str],
    ) -> None:
        self._family = family
        self._originals = originals
        self._examiner = examiner
        self._damaged = damaged
        self._one_at_a_time = threading.Lock()

    def verdict(self, entry: ModelEntry) -> ModelVerdict:
        """Check, compare and score one model."""
        prefix = entry.prefix
        if entry.basis_digest in self._damaged:
            return _failed(entry, Problem(prefix, "format/basis", "its basis is damaged"))
        try:
            model = self._family.model(entry)
            report = verify_model(
                model,
                storage=self._family.registry.storage_of(entry),
                prefix=prefix,
                against=self._originals.get(entry.task),
            )
        except UwsError as error:
            return _failed(entry, Problem(prefix, error.kind, error.message))
        scores: tuple[Examined, ...] = ()
        if self._examiner is not None and report.ok:
            # A user's function is not expected to be safe for threads.
            with self._one_at_a_time:
                scores, broken = examine(
                    self._examiner,
                    entry.task,
                    sides=self._sides(entry, model),
                    recorded=model.document.scores,
                )
            report = report.with_problems(broken)
        comparison = report.comparison
        safe = report.ok and comparison is not None and comparison.identical is not None
        return ModelVerdict(entry.task, entry.version, entry.digest, report, safe, scores)

    def _sides(self, entry: ModelEntry, model: Model) -> dict[str, Callable[[], dict[str, torch.Tensor]]]:
        """Name the sides of a model; weights are made when they are asked for."""

        def tier(name: Tier) -> Callable[[], dict[str, torch.Tensor]]:
            return lambda: self._weights(entry, name)

        checkpoint = self._originals.get(entry.task)
        original: Callable[[], dict[str, torch.Tensor]] | None = None
        if checkpoint is not None:
            original = lambda: {name: checkpoint.read(name) for name in checkpoint.tensors}  # noqa: E731
        elif model.has_exact:
            original = tier("exact")
        sides: dict[str, Callable[[], dict[str, torch.Tensor]]] = {}
        if original is not None:
            sides[ORIGINAL] = original
        sides["compact"] = tier("compact")
        if model.has_exact and any(score.max_drop is not None for score in model.document.scores):
            sides["exact"] = tier("exact")
        sides["mean"] = tier("mean")
        core = model.document.core
        if original is not None and core is not None:
            coded = [name for name, source in model.sources.items() if source.kind == "coded"]
            sides["basis-free"] = lambda: _without_basis(original(), coded, size_bytes=core.size_bytes)
        return sides

    def _weights(self, entry: ModelEntry, tier: Tier) -> dict[str, torch.Tensor]:
        return LazyStateDict(
            self._family.model(entry),
            family=self._family.name,
            task=entry.task,
            version=entry.version,
            tier=tier,
            device=_CPU,
            dtype=None,
            verify=True,
        ).materialize()


def _without_basis(
    weights: dict[str, torch.Tensor], coded: list[str], *, size_bytes: int
) -> dict[str, torch.Tensor]:
    """Spend the bits of a model's core on its weights as they are."""
    tensors = {name: weights[name] for name in coded if name in weights}
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return weights | basis_free(tensors, bits=8 * size_bytes / max(1, parameters))


def _failed(entry: ModelEntry, problem: Problem) -> ModelVerdict:
    report = ModelReport(0, 0, (), 0.0, None, (problem,))
    return ModelVerdict(entry.task, entry.version, entry.digest, report, safe_to_delete=False)
