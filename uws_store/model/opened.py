"""One stored model, open: its document checked against its basis, its tensors decoded on request.

Owns the rules by which a tensor's bytes come from the core, the private array, the basis or the residual. Holds no
tensor but what was made together with one that was asked for. Knows nothing about names of families and tasks.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from uws_store.basis import Basis, Decode, Decoder, read_files, shared_decoder, step_of
from uws_store.dtypes import DTYPES, DType
from uws_store.errors import FidelityError, FormatError
from uws_store.metadata.model import LEAF_BYTES, ModelDocument
from uws_store.model.fetching import Fetch
from uws_store.model.record import read_document
from uws_store.model.slices import Slices
from uws_store.model.sources import Source, residual_starts, sources_of
from uws_store.residual import StoredResidual, residual_classes, residual_dtype
from uws_store.storage import Storage
from uws_store.store import ArrayReader
from uws_store.tensor_bytes import from_rotated, tensor_from_bytes

__all__ = ["Model", "Tier"]

Tier = Literal["compact", "exact", "mean"]


class Model:
    """A stored model.

    Parameters
    ----------
    document : ModelDocument
        Its record.
    basis : Basis
        The basis it names.
    storage : Storage
        Where its objects lie.
    prefix : str
        Its folder.

    Raises
    ------
    FormatError
        When the document and the basis do not fit (kind ``format/model``).
    """

    def __init__(self, document: ModelDocument, *, basis: Basis, storage: Storage, prefix: str) -> None:
        self.document = document
        self.basis = basis
        self.where = f"{storage.url}/{prefix}"
        self.step = step_of(document.step)
        self.sources = sources_of(document, basis, where=self.where)
        self._compact = document.compact.leaf_list()
        self._exact = document.exact_digests.leaf_list() if document.exact_digests else None
        self._check()
        self._readers = {
            name: ArrayReader(storage, prefix, name=name, record=record)
            for name, record in document.arrays.items()
        }
        self._words: dict[str, npt.NDArray[np.unsignedinteger]] = {}
        self._whole = False
        self._slices = Slices(document, self._readers.get("gauge"), where=self.where)
        self._decoders: dict[tuple[str, str], Decoder] = {}
        self._ready: dict[tuple[str, str, str, str], torch.Tensor] = {}
        self._lock = threading.RLock()

    @classmethod
    def open(cls, storage: Storage, prefix: str, *, digest: str, basis: Basis) -> Model:
        """Open a stored model: one request, for its document.

        Raises
        ------
        FormatError
            When the document is missing, damaged, not the one that ``digest`` names, or of another basis.
        """
        return cls(read_document(storage, prefix, digest=digest), basis=basis, storage=storage, prefix=prefix)

    @property
    def has_exact(self) -> bool:
        """Whether the model can be loaded bit-identical to its source."""
        return self._exact is not None

    def require_tier(self, tier: Tier) -> None:
        """Refuse a tier the model has not.

        Raises
        ------
        FidelityError
            Kind ``fidelity/no-exact-tier``.
        """
        if tier == "exact" and not self.has_exact:
            raise FidelityError(
                f"{self.where}: the model was stored without an exact tier; load tier='compact', or add the "
                "checkpoint again with --exact",
                kind="fidelity/no-exact-tier",
            )

    def tensor(
        self,
        name: str,
        *,
        tier: Tier,
        device: torch.device,
        decode: Decode = "canonical",
        decoder: Decoder | None = None,
    ) -> torch.Tensor:
        """Decode one tensor.

        What is made together with it is kept for the next calls, until :meth:`forget`.

        Parameters
        ----------
        name : str
            One of ``sources``.
        tier : {"compact", "exact", "mean"}
            The fidelity.
        device : torch.device
            Where to reconstruct; the bits do not depend on it.
        decode : {"canonical", "fast"}
            The arithmetic; ``exact`` needs the canonical one.
        decoder : Decoder, optional
            The basis, ready on the device; :meth:`decoder` when absent.

        Raises
        ------
        FormatError
            When stored bytes are damaged (kinds ``format/...``).
        """
        source = self.sources[name]
        if source.kind == "tied":
            assert source.tied_to is not None
            return self.tensor(source.tied_to, tier=tier, device=device, decode=decode, decoder=decoder)
        if not self.is_decoded(name, tier=tier):
            return self.stored_tensor(name).to(device)
        with self._lock:
            key = (tier, str(device), decode)
            found = self._ready.pop((name, *key), None)
            if found is None:
                decoder = decoder or self.decoder(device, decode)
                made = self.decode_job(decoder, decoder.job_of[name], tier=tier)
                found = made.pop(name)
                self._ready |= {(other, *key): tensor for other, tensor in made.items()}
            return found

    def is_decoded(self, name: str, *, tier: Tier) -> bool:
        """Whether a tensor is made of the basis's numbers at a tier, or of its own bytes.

        One that is stored alone with its read group is the family's mean at ``mean``, which is a control: its own bytes
        would say that the mean keeps all of a model that shares nothing.
        """
        source = self.sources[name]
        return source.kind == "coded" or (tier == "mean" and source.grouped)

    def stored_tensor(self, name: str) -> torch.Tensor:
        """Make a private or shared tensor from its bytes, on the CPU."""
        source = self.sources[name]
        data = self.basis.shared_bytes(name) if source.kind == "shared" else self._private(source)
        return tensor_from_bytes(data, dtype=source.dtype, shape=source.shape)

    def decoder(self, device: torch.device, decode: Decode) -> Decoder:
        """The basis made ready for a device: one for all models on the CPU, this model's own elsewhere."""
        if device.type == "cpu":
            return shared_decoder(self.basis, decode)
        with self._lock:
            key = (str(device), decode)
            if key not in self._decoders:
                self._decoders[key] = Decoder(self.basis, device=device, decode=decode)
            return self._decoders[key]

    def decode_job(
        self, decoder: Decoder, index: int, *, tier: Tier, core: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Decode the tensors of one job of a decoder, those that :meth:`is_decoded` tells.

        Parameters
        ----------
        decoder : Decoder
            Of this model's basis.
        index : int
            The job.
        tier : {"compact", "exact", "mean"}
            The fidelity.
        core : torch.Tensor, optional
            The job's integers, already on the decoder's device; read from the model when absent.
        """
        job = decoder.jobs[index]
        if tier == "mean":
            core = None
        elif core is None:
            core = decoder.gather(index, self.stored_core).to(decoder.device)
        made: dict[str, torch.Tensor] = {}
        for place, batch in enumerate(job.batches):
            dtypes = [self._decoded_dtype(name, tier) for name in batch.names]
            if not any(dtypes):
                continue
            parts = decoder.predict(index, place, core, step=self.step, dtypes=dtypes)
            made |= {
                name: self._slices.cut(part, self.sources[name]) if self.sources[name].slices else part
                for name, part in zip(batch.names, parts, strict=True)
                if part is not None
            }
        del core
        if tier == "exact":
            for group in job.groups:
                self._correct(group, made)
        return made

    def stored_core(self, index: int) -> npt.NDArray[np.integer]:
        """Integers of a read group as they are stored, without padding."""
        group = self.basis.groups[index]
        if "core" not in self._readers:  # every read group is private
            return np.zeros(group.coefficients, np.int16)
        return self._readers["core"].read(group.start, group.stop)[: group.coefficients]

    def side_files(self) -> dict[str, bytes]:
        """Read the files that lay beside the model's weights, by name, sorted; each has the digest on record.

        Raises
        ------
        FormatError
            When stored bytes are damaged (kinds ``format/...``).
        """
        document = self.document
        own = [record.name for record in document.files]
        found = read_files(self._readers.get("files"), document.files, names=own, where=self.where)
        return dict(sorted((found | self.basis.side_files(document.shared_files)).items()))

    def fetch(self, tier: Tier, *, stopped: threading.Event | None = None) -> Fetch:
        """Fetch what is needed for every tensor of a tier, whole, while tensors are made; see :class:`Fetch`."""
        self._whole = tier != "mean"
        wanted = {"exact": ("core", "private", "residual"), "compact": ("core", "private"), "mean": ()}[tier]
        return Fetch(
            {name: reader for name, reader in self._readers.items() if name.startswith(wanted)},
            basis=self.basis,
            residual_starts=self._residual_starts if tier == "exact" else {},
            stopped=stopped,
        )

    def read_all(self) -> None:
        """Fetch what is needed for every compact tensor."""
        with self.fetch("compact") as fetch:
            fetch.finish()

    def forget(self) -> None:
        """Drop what was fetched or made ahead; it is read again when needed."""
        with self._lock:
            self._ready.clear()
            self._whole = False
            self._words.clear()
            for reader in self._readers.values():
                reader.release()

    @functools.cached_property
    def _residual_starts(self) -> dict[tuple[int, str], int]:
        return residual_starts(self.sources, self.basis)

    def _coded_dtype(self, name: str) -> DType | None:
        source = self.sources.get(name)
        return source.dtype if source is not None and source.kind == "coded" else None

    def _decoded_dtype(self, name: str, tier: Tier) -> DType | None:
        """In which dtype a decoder shall give a tensor: a factor's slices are scaled before they are rounded."""
        if name not in self.sources or not self.is_decoded(name, tier=tier):
            return None
        source = self.sources[name]
        return DTYPES["F64"] if source.slices else source.dtype

    def _correct(self, group: int, made: dict[str, torch.Tensor]) -> None:
        """Undo the residuals of a read group, in place: they are ordered by all its predictions of one width."""
        widths: dict[str, list[str]] = {}
        for name in self.basis.groups[group].names:
            dtype = self._coded_dtype(name)
            if dtype is not None:
                widths.setdefault(residual_dtype(dtype), []).append(name)
        for width, names in widths.items():
            for name in names:
                made[name] = self._slices.undo_gauge(made[name], self.sources[name])
            start = self._residual_starts[group, width]
            stop = start + sum(made[name].numel() for name in names)
            stored = self._readers["residual" + width.removeprefix("uint")].read(start, stop)
            classes = [residual_classes(made[name], self.basis.table[name].shift or 0) for name in names]
            residual = StoredResidual(stored, classes[0] if len(classes) == 1 else np.concatenate(classes))
            for name in names:
                made[name] = residual.apply(made[name], self.sources[name].dtype)

    def _private(self, source: Source) -> bytes:
        size = math.prod(source.shape) * source.dtype.size_bytes
        if size == 0:
            return b""
        reader = self._readers[source.array]
        if source.array == "private":
            return reader.read(source.start, source.start + size).tobytes()
        stop = source.start + math.prod(source.shape)
        if not self._whole:
            return from_rotated(reader.read(source.start, stop)).tobytes()
        # Many small tensors share a chunk: it is decoded once.
        with self._lock:
            if source.array not in self._words:
                self._words[source.array] = reader.read()
            return from_rotated(self._words[source.array][source.start : stop]).tobytes()

    def require_digest(self, name: str, digest: bytes, *, tier: Tier) -> None:
        """Compare the SHA-256 digest of one decoded tensor with what stands on record for a tier.

        Raises
        ------
        FormatError
            Kind ``format/tensor-digest``.
        """
        leaves = self._exact if tier == "exact" else self._compact
        position = self.sources[name].digest
        assert leaves is not None
        assert position is not None
        if digest[:LEAF_BYTES] != leaves[position]:
            raise FormatError(
                f"{self.where}: {name} does not have the digest on record at tier {tier!r}; the basis or the model is "
                "damaged, or this machine's float64 arithmetic is not IEEE 754",
                kind="format/tensor-digest",
            )

    def require_root(self, digests: Mapping[str, bytes], *, tier: Tier) -> None:
        """Compare the SHA-256 digests of all tensors at a tier with the root on record.

        Raises
        ------
        FormatError
            Kind ``format/tensor-digest``.
        """
        record = self.document.exact_digests if tier == "exact" else self.document.compact
        assert record is not None
        order = [name for name, source in self.sources.items() if source.digest is not None]
        found = hashlib.sha256(b"".join(digests[name] for name in order)).hexdigest()
        if found != record.root:
            raise FormatError(
                f"{self.where}: the tensors together do not have the digest on record at tier {tier!r}",
                kind="format/tensor-digest",
            )

    def _check(self) -> None:
        """Compare the record with what the basis demands, before anything is read or allocated."""
        document, basis = self.document, self.basis
        if document.basis != basis.digest:
            raise FormatError(
                f"{self.where}: made for basis {document.basis[:12]}, opened with {basis.digest[:12]}",
                kind="format/model",
            )
        core = document.core
        coded = [name for name, source in self.sources.items() if source.kind == "coded"]
        expected = (basis.document.core_length, basis.document.core_chunk, basis.document.core_page)
        found = (core.length, core.chunk_length, core.page) if core else None
        needs_core = len(document.private_groups) < len(basis.groups)
        if (needs_core and found != expected) or (not needs_core and core):
            raise FormatError(
                f"{self.where}: the core is {found}, the basis needs {expected}", kind="format/model"
            )
        digests = sum(source.digest is not None for source in self.sources.values())
        for leaves in (self._compact, self._exact):
            if leaves is not None and len(leaves) != digests:
                raise FormatError(
                    f"{self.where}: {len(leaves)} digests of {digests} tensors", kind="format/model"
                )
        if len(document.error_list()) != len(coded):
            raise FormatError(
                f"{self.where}: errors of {len(coded)} tensors are missing", kind="format/model"
            )
        if document.lossless and coded:
            raise FormatError(
                f"{self.where}: {coded[0]} is coded and the model is called lossless", kind="format/model"
            )
        needed = dict.fromkeys((16, 32, 64), 0)
        if self._exact is not None:
            for name in coded:
                source = self.sources[name]
                needed[int(residual_dtype(source.dtype).removeprefix("uint"))] += math.prod(source.shape)
        for width, length in needed.items():
            array = document.residual(width)
            if (array.length if array else 0) != length:
                raise FormatError(
                    f"{self.where}: the residual of {width} bits has {array.length if array else 0} of {length} elements",
                    kind="format/model",
                )
