"""Looking at a zoo before building from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from uws_store.analysis import ZooAnalysis, analyze_members
from uws_store.checkpoint import open_checkpoint, scan_zoo

__all__ = ["analyze"]


def analyze(
    zoo: str | Path, *, seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> ZooAnalysis:
    """Tell what a zoo is: its architectures, which models are akin, and what they share beyond chance.

    Parameters
    ----------
    zoo : str or Path
        A folder with one checkpoint per task, a manifest, or a URL (:class:`uws_store.storage.StorageUrl` carries its
        options).
    seed : int
        Of the nulls, the sampled coordinates and the models kept out.
    progress : callable, optional
        See :func:`uws_store.build`.

    Returns
    -------
    ZooAnalysis
        Reads every checkpoint once, whole, for its digest, and its larger tensors a second time; writes nothing.

    Raises
    ------
    NotFoundError
        When there is no such zoo.
    InvalidInputError
        When no two checkpoints are of one architecture (``invalid-input/one-model-zoo``).
    FormatError
        When a checkpoint is damaged.
    """
    with ExitStack() as stack:
        members = {
            member.task: stack.enter_context(open_checkpoint(member.place)) for member in scan_zoo(zoo)
        }
        return analyze_members(members, seed=seed, progress=progress)
