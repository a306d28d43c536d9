"""An encoded model, ready to be published: what it takes, and holding it to a promised error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from uws_store.basis import Basis
from uws_store.builder.object_folder import object_sizes
from uws_store.builder.search import Fidelity
from uws_store.canonical import Step
from uws_store.metadata.model import ModelDocument

__all__ = ["EncodedModel", "encode_within"]


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A model ready to be published.

    Attributes
    ----------
    document : ModelDocument
        Its record.
    digest : str
        SHA-256, hex, of its group document: its name.
    objects : Mapping of str to bytes
        Path below the model's folder to bytes; the group document comes last.
    notices : tuple of str
        What the user should know: tensors kept private and why.
    """

    document: ModelDocument
    digest: str
    objects: Mapping[str, bytes]
    notices: tuple[str, ...]

    @property
    def compact_bytes(self) -> int:
        """Bytes of everything that the weights of the compact tier need, metadata included."""
        beside = ("residual", "gauge/", "files/")
        sizes = object_sizes(self.objects)
        return sum(size for path, size in sizes.items() if not path.startswith(beside))

    @property
    def file_bytes(self) -> int:
        """Bytes of the side files that are the model's own, as stored, reported beside the weights."""
        return sum(size for path, size in object_sizes(self.objects).items() if path.startswith("files/"))

    @property
    def private_bytes(self) -> int:
        """Bytes of the private tensors as stored, reported beside the bits."""
        return self.document.private_size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(object_sizes(self.objects).values())

    def bits_per_parameter(self, basis: Basis) -> float:
        """Bits of the compact tier per basis-coded parameter: core, metadata and record, without private tensors."""
        return 8 * (self.compact_bytes - self.private_bytes) / max(1, basis.coded_parameters)


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
