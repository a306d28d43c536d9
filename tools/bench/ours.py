"""The store itself, through its public functions: build on the training models, add the held-out ones, load them.

Owns where the store's bytes are counted. Everything a model's compact tier needs is in them: its record, array
metadata, indexes, checksums, private tensors. The rest of the bench sees only numbers and weights.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coding import Weights

import uws_store
from uws_store.errors import FidelityError

__all__ = ["StoredFamily", "StoredModel", "stored"]

FAMILY = "bench"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One held-out model in the store.

    Attributes
    ----------
    task : str
        Its name.
    payload_bytes : int
        Its coefficients.
    private_bytes : int
        What it keeps byte for byte.
    container_bytes : int
        Record, metadata, indexes, checksums.
    """

    task: str
    payload_bytes: int
    private_bytes: int
    container_bytes: int


@dataclass(frozen=True, slots=True)
class StoredFamily:
    """A family at one rate, while its registry exists.

    Attributes
    ----------
    basis_bytes : int
        All objects of the basis.
    models : tuple of StoredModel
        The held-out models.
    registry : str
        Where it lies.
    """

    basis_bytes: int
    models: tuple[StoredModel, ...]
    registry: str

    def load(self, task: str) -> Weights:
        """Load a model's compact tier, every tensor checked against its digest."""
        return uws_store.load_model(FAMILY, task, registry=self.registry).materialize()


@contextmanager
def stored(
    training: Sequence[tuple[str, Path]],
    held: Sequence[tuple[str, Path]],
    *,
    bits: float | None = None,
    change_error: float | None = None,
    expect_models: int,
) -> Iterator[StoredFamily | None]:
    """Store a zoo at a rate, in a registry that is removed afterwards.

    Parameters
    ----------
    training, held : sequence of (str, Path)
        Checkpoints in the basis, and those added to it.
    bits, change_error : float, optional
        What is asked for: bits per parameter, or the error relative to the change.
    expect_models : int
        Models the basis is planned for.

    Yields
    ------
    StoredFamily or None
        None where so few bits would not even pay for the records.
    """
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as folder:
        zoo = Path(folder) / "zoo"
        zoo.mkdir()
        for _, path in training:
            _link(path, zoo / path.name)
        registry = str(Path(folder) / "registry")
        try:
            built = uws_store.build(
                zoo,
                family=FAMILY,
                registry=registry,
                bits=bits,
                change_error=change_error,
                expect_models=expect_models,
            )
        except FidelityError:
            yield None
            return
        models = [_added(task, path, registry) for task, path in held]
        yield StoredFamily(built.basis_bytes, tuple(models), registry)


def _added(task: str, path: Path, registry: str) -> StoredModel:
    result = uws_store.add(path, family=FAMILY, task=task, registry=registry).model
    family = uws_store.open_family(FAMILY, registry=registry)
    core = family.model(family.resolve(task)).document.core
    payload = core.size_bytes if core else 0
    private = result.private_bytes
    return StoredModel(task, payload, private, result.compact_bytes - payload - private)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:  # a file system without links
        shutil.copy(source, target)
