#!/usr/bin/env python3
"""Make the golden vectors: a small registry whose every byte is frozen, and the digests of what it holds.

``tools/make_vectors.py FOLDER`` writes ``registry/`` and ``expected.json`` into a folder that does not exist, and the
same of a registry with side files into ``files/`` in it. The
vectors under ``spec/vectors/`` were made once and are never made again: a version of the format keeps the registries
that were written in it. Run it to see what another version of the tools would write, or to begin a new version.

The basis is forged, not fitted: every feature of the format is in it because the table below says so, whatever a
planner would choose. The same seeds give the same bytes on one kind of machine with one version of PCodec.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from uws_store import layout
from uws_store.architecture import TensorSignature, signature_digest
from uws_store.basis import Basis
from uws_store.builder.encode import encode_model
from uws_store.builder.encoded import EncodedModel
from uws_store.builder.files import pack_files
from uws_store.canonical import Step
from uws_store.checkpoint import open_checkpoint, write_safetensors
from uws_store.dtypes import DTYPES
from uws_store.metadata.basis import BasisDocument, BuildRecord, SideRecord, StepRecord, TensorRecord
from uws_store.metadata.group import PLAIN_GROUP, to_group_bytes
from uws_store.metadata.log import (
    Action,
    AliasAction,
    BasisAction,
    Commit,
    DeleteAction,
    FamilyAction,
    HeadHint,
    IndexEntry,
    ModelAction,
    RegistryDocument,
)
from uws_store.model import Model, Tier
from uws_store.registry import Registry
from uws_store.storage import LocalStorage, Storage, open_storage
from uws_store.store import encode_array
from uws_store.tensor_bytes import bytes_of, digest_of

FAMILY = "vectors"
TOOL = "uws-store vectors"
STEP = Step(160, -14)
MEAN_GRID = 12
CORE_CHUNK = 512
# Right factors finer than FRACTION_BITS, so that the first product is rounded.
_EXPONENTS = {"left": (6, 8), "right": (9, 13)}


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of the forged table.

    Attributes
    ----------
    name, shape, dtype, mode
        As in the table.
    left, right : tuple of int or None
        Block and rank of a factor.
    group, shift : int
        Read group, and the power of two that divides the step.
    tied_to : str or None
        For ``tied``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    mode: str = "coded"
    left: tuple[int, int] | None = None
    right: tuple[int, int] | None = None
    group: int = 0
    shift: int = 0
    tied_to: str | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """First axis x the rest."""
        numel = math.prod(self.shape)
        return (self.shape[0], numel // self.shape[0]) if len(self.shape) > 1 else (1, numel)


ROWS = (
    Row("embed.weight", (40, 24), left=(40, 40), right=(24, 24), group=1),
    Row("conv.weight", (8, 3, 3, 3), left=(8, 5), right=(27, 27)),
    Row("conv.bias", (8,), "F64"),
    # Diagonal blocks on both sides, the last ones smaller, and a rank below the block.
    Row("mlp.weight", (21, 100), left=(8, 8), right=(32, 20), group=2, shift=-1),
    Row("mlp.bias", (21,), "F16", right=(8, 3)),
    Row("norm.weight", (33,), "BF16", right=(33, 12), shift=2),
    Row("scale", (), "F32"),
    Row("half.weight", (5, 11), "F16", right=(11, 11)),
    Row("brain.weight", (16, 9), "BF16", left=(16, 16)),
    Row("e4m3.weight", (12, 10), "F8_E4M3", left=(5, 5), right=(10, 10), group=1),
    Row("e5m2.weight", (10, 6), "F8_E5M2"),
    Row("wide.weight", (6, 7), "F64", left=(6, 4)),
    Row("gr\u00f6\u00dfe \U0001f642 \"'/\\", (2, 3), "F32"),
    Row("running_var", (33,), "F32", "private"),
    Row("num_batches_tracked", (), "I64", "private"),
    Row("positions", (1, 12), "I64", "shared"),
    Row("mask", (3,), "BOOL", "shared"),
    Row("nothing", (0, 4), "F32", "shared"),
    Row("head.weight", (40, 24), mode="tied", tied_to="embed.weight"),
)


@dataclass(frozen=True, slots=True)
class ForgedBasis:
    """A basis in objects, ready to be stored.

    Attributes
    ----------
    digest : str
        Its name.
    objects : dict of str to bytes
        Path below its folder to bytes.
    means : dict of str to numpy.ndarray
        The real mean of each coded tensor, in its own shape.
    shared : dict of str to torch.Tensor
        The shared tensors.
    """

    digest: str
    objects: dict[str, bytes]
    means: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)


def forge_basis(
    rows: Sequence[Row],
    *,
    seed: int,
    core_chunk: int = CORE_CHUNK,
    array_chunk: int = 1 << 17,
    files: Mapping[str, bytes] | None = None,
) -> ForgedBasis:
    """Make a basis of random numbers with the features that a table asks for.

    Parameters
    ----------
    rows : sequence of Row
        The table.
    seed : int
        Of all its numbers.
    core_chunk, array_chunk : int
        Inner chunks of the models' core and of the basis's own arrays.
    files : mapping of str to bytes, optional
        Side files.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]] = {}
    means: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    shared: dict[str, torch.Tensor] = {}
    counts: dict[int, int] = {}
    for row in sorted((row for row in rows if row.mode == "coded"), key=lambda row: row.group):
        m, n = row.matrix
        mean = rng.integers(-300, 301, m * n, dtype=np.int32)
        means[row.name] = np.ldexp(mean.astype(np.float64), -MEAN_GRID).reshape(row.shape)
        parts.setdefault("mean", []).append(mean)
        columns = {"left": m, "right": n}
        for name, side, extent in (("left", row.left, m), ("right", row.right, n)):
            if side is not None:
                columns[name] = 0
                for start in range(0, extent, side[0]):
                    height = min(side[0], extent - start)
                    width = min(side[1], height)
                    columns[name] += width
                    parts.setdefault(name, []).append(_factor(rng, height, width))
                low, high = _EXPONENTS[name]
                exponents = rng.integers(low, high + 1, columns[name]).astype(np.int16)
                parts.setdefault("exponents", []).append(exponents)
        for extent in (columns["left"], columns["right"]):
            parts.setdefault("profile", []).append(rng.integers(-30, 5, extent).astype(np.int16))
        counts[row.group] = counts.get(row.group, 0) + columns["left"] * columns["right"]
    for row in rows:
        if row.mode == "shared":
            values = torch.from_numpy(rng.integers(0, 2, row.shape)).to(DTYPES[row.dtype].torch)
            shared[row.name] = values
            parts.setdefault("shared", []).append(np.frombuffer(bytes_of(values), np.uint8))
    arrays = {
        name: encode_array(
            np.concatenate(values), chunk=array_chunk, page=None if name == "shared" else 1 << 12
        )
        for name, values in parts.items()
    }
    records, file_array = pack_files(files or {})
    if file_array is not None:
        arrays["files"] = file_array
    document = BasisDocument(
        architecture=signature_digest(TensorSignature(row.name, row.shape) for row in rows),
        step=StepRecord(mantissa=STEP.mantissa, exponent=STEP.exponent),
        core_length=sum(-(-count // core_chunk) * core_chunk for count in counts.values()),
        core_chunk=core_chunk,
        core_page=1 << 12,
        residual_chunk=1 << 17,
        tensors=tuple(_record(row) for row in rows),
        files=records,
        **{("file_bytes" if name == "files" else name): array.record for name, array in arrays.items()},  # type: ignore[arg-type]
        build=BuildRecord(models=2, sources="0" * 64, tool=TOOL, pcodec="0.3", options=(("forged", "yes"),)),
    )
    group = to_group_bytes(document)
    objects = {
        f"{name}/{path}": data for name, array in arrays.items() for path, data in array.objects.items()
    }
    objects[layout.GROUP_PATH] = group
    return ForgedBasis(hashlib.sha256(group).hexdigest(), objects, means, shared)


def _factor(
    rng: np.random.Generator, height: int, width: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Draw a block whose columns are independent: a strong diagonal over noise."""
    noise = rng.integers(-12, 13, (height, width))
    return (noise + 50 * np.eye(height, width, dtype=np.int64)).astype(np.int16).reshape(-1)


def _record(row: Row) -> TensorRecord:
    coded = row.mode == "coded"
    left, right = (
        SideRecord(block=side[0], rank=side[1]) if side else None for side in (row.left, row.right)
    )
    return TensorRecord(
        name=row.name,
        shape=row.shape,
        dtype=row.dtype,
        mode=row.mode,  # type: ignore[arg-type]
        tied_to=row.tied_to,
        left=left,
        right=right,
        mean_grid=MEAN_GRID if coded else None,
        shift=row.shift if coded else None,
        group=row.group if coded else None,
    )


def forge_checkpoint(
    rows: Sequence[Row], basis: ForgedBasis, *, seed: int, noise: float = 0.02, dtype: str | None = None
) -> dict[str, torch.Tensor]:
    """Make a member of the family: the mean and some noise.

    Parameters
    ----------
    rows : sequence of Row
        The table.
    basis : ForgedBasis
        For the means and the shared tensors.
    seed : int
        Of the noise.
    noise : float
        Its standard deviation.
    dtype : str, optional
        Of every coded tensor; the table's when absent.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    for row in rows:
        if row.mode == "coded":
            values = basis.means[row.name] + noise * rng.standard_normal(row.shape)
            tensors[row.name] = torch.from_numpy(np.asarray(values)).to(DTYPES[dtype or row.dtype].torch)
        elif row.mode == "shared":
            tensors[row.name] = basis.shared[row.name].clone()
        elif row.mode == "tied":
            assert row.tied_to is not None
            tensors[row.name] = tensors[row.tied_to].clone()
        else:
            counts = rng.integers(1, 100, row.shape)
            tensors[row.name] = torch.from_numpy(np.asarray(counts)).to(DTYPES[row.dtype].torch)
    return tensors


def odd_checkpoint(rows: Sequence[Row], basis: ForgedBasis) -> dict[str, torch.Tensor]:
    """Make a member that departs from the table in every way a member may."""
    tensors = forge_checkpoint(rows, basis, seed=23)
    del tensors["e5m2.weight"], tensors["nothing"]
    tensors["half.weight"] = torch.from_numpy(np.linspace(-1, 1, 18).reshape(6, 3))  # another shape and dtype
    tensors["brain.weight"][3, 4] = math.nan
    tensors["wide.weight"][0, 0] = -math.inf
    tensors["conv.bias"] = tensors["conv.bias"].to(torch.float16)
    tensors["conv.bias"][0] = -0.0
    tensors["mlp.bias"] = tensors["mlp.bias"].to(torch.float32)
    tensors["mlp.bias"][0] = 1e-40  # subnormal, and far below a step
    tensors["mask"] = torch.logical_not(tensors["mask"])
    tensors["head.weight"][0, 0] += 1  # no longer tied
    tensors["extra.weight"] = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    tensors["extra.empty"] = torch.zeros(3, 0, dtype=torch.float16)
    return tensors


def encode(
    basis: Basis,
    tensors: Mapping[str, torch.Tensor],
    *,
    exact: bool,
    step: Step = STEP,
    files: Mapping[str, bytes] | None = None,
    exact_overhead: float | None = None,
) -> EncodedModel:
    """Encode a state dict as if it came from a file, or with side files from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_safetensors(path, tensors, {"licence": "CC0-1.0"})
        for name, data in (files or {}).items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(data)
        with open_checkpoint(path if files is None else folder) as checkpoint:
            return encode_model(basis, checkpoint, exact=exact, step=step, exact_overhead=exact_overhead)


def put_objects(storage: Storage, prefix: str, objects: Mapping[str, bytes]) -> int:
    """Store objects below a folder and count their bytes."""
    for path, data in objects.items():
        storage.put_if_absent(f"{prefix}/{path}", data)
    return sum(len(data) for data in objects.values())


class Forge:
    """A registry whose nonces and times are fixed, so that its bytes are too.

    Parameters
    ----------
    storage : Storage
        An empty place.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._number = 0
        self._parent: str | None = None
        self._bases: list[tuple[str, int]] = []
        document = RegistryDocument(id="0123456789abcdef" * 2, created="2025-01-01T00:00:00Z", tool=TOOL)
        storage.put_if_absent(layout.REGISTRY_DOCUMENT, document.to_bytes())
        for path in layout.family_groups(FAMILY):
            storage.put_if_absent(path, PLAIN_GROUP)

    def basis(self, forged: ForgedBasis, *, revision: int) -> tuple[BasisAction, Basis]:
        """Store a basis and open it."""
        prefix = layout.basis_prefix(FAMILY, forged.digest)
        size = put_objects(self.storage, prefix, forged.objects)
        action = BasisAction(family=FAMILY, revision=revision, digest=forged.digest, size_bytes=size)
        return action, Basis.open(self.storage, prefix, digest=forged.digest)

    def model(self, task: str, model: EncodedModel, *, version: int = 1, revision: int = 1) -> ModelAction:
        """Store a model."""
        size = put_objects(self.storage, layout.model_prefix(FAMILY, model.digest), model.objects)
        return ModelAction(
            family=FAMILY,
            task=task,
            version=version,
            basis_revision=revision,
            digest=model.digest,
            size_bytes=size,
            exact=model.document.exact_digests is not None,
        )

    def commit(self, actions: Iterable[Action], *, index: tuple[IndexEntry, ...] | None = None) -> None:
        """Append a commit."""
        self._number += 1
        commit = Commit(
            number=self._number,
            parent=self._parent,
            nonce=f"{self._number:032x}",
            time=f"2025-01-01T00:00:{self._number:02d}Z",
            tool=TOOL,
            index=index,
            actions=tuple(actions),
        )
        data = commit.to_bytes()
        self.storage.put_if_absent(layout.commit_path(self._number), data)
        self.storage.put(layout.HEAD_PATH, HeadHint(number=self._number).to_bytes())
        self._parent = hashlib.sha256(data).hexdigest()


def forge_registry(storage: Storage) -> None:
    """Write the registry of the vectors."""
    forge = Forge(storage)
    plain_rows = [replace(row, left=None, right=None, group=0) for row in ROWS]
    first, second = forge_basis(ROWS, seed=1), forge_basis(plain_rows, seed=2)
    basis_action, basis = forge.basis(first, revision=1)
    plain = encode(basis, forge_checkpoint(ROWS, first, seed=11), exact=False)
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            basis_action,
            forge.model("plain", plain),
            forge.model("exact", encode(basis, forge_checkpoint(ROWS, first, seed=12), exact=True)),
        ]
    )
    forge.commit([forge.model("odd", encode(basis, odd_checkpoint(ROWS, first), exact=True))])
    forge.commit([AliasAction(family=FAMILY, task="plain", alias="prod", version=1)])
    # One dtype for all, and a name that no path could hold.
    uniform = forge_checkpoint(ROWS, first, seed=13, dtype="BF16")
    forge.commit([forge.model("org/größe 🙂", encode(basis, uniform, exact=True))])
    # Coefficients beyond 16 bits.
    fine = forge_checkpoint(ROWS, first, seed=14)
    forge.commit([forge.model("fine", encode(basis, fine, exact=False, step=Step(129, -24)))])
    revision, other = forge.basis(second, revision=2)
    tensors = forge_checkpoint(plain_rows, second, seed=15)
    forge.commit([revision, forge.model("plain", encode(other, tensors, exact=False), version=2, revision=2)])
    # A version that shares its objects with another, and is withdrawn.
    forge.commit(
        [forge.model("gone", plain), AliasAction(family=FAMILY, task="gone", alias="old", version=1)]
    )
    forge.commit(
        [
            AliasAction(family=FAMILY, task="gone", alias="old"),
            DeleteAction(family=FAMILY, task="gone", version=1),
            AliasAction(family=FAMILY, task="plain", alias="next", version=2),
        ]
    )


def forge_files_registry(storage: Storage) -> None:
    """Write a registry of models with side files: shared, own, of another name, empty, and none."""
    forge = Forge(storage)
    rows = (ROWS[2], ROWS[4], ROWS[6])
    tokenizer = json.dumps({"größe": list(range(300))}, ensure_ascii=False).encode()
    common = {"config.json": b'{"labels": 2}', "tokenizer.json": tokenizer, "merges.txt": b""}
    forged = forge_basis([replace(row, group=0) for row in rows], seed=31, files=common)
    action, basis = forge.basis(forged, revision=1)
    tensors = forge_checkpoint(rows, forged, seed=32)
    own = {"config.json": b'{"labels": 3}', "1_Pooling/config.json": b"{}", "spiece.model": b"\x0a\x00\xff"}
    kinds: dict[str, dict[str, bytes] | None] = {
        "same": common,
        "other": own | {"tokenizer.json": tokenizer},
        "alone": own,
        "empty": {"merges.txt": b""},
        "bare": None,
    }
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            action,
            *(
                forge.model(task, encode(basis, tensors, exact=True, files=files))
                for task, files in kinds.items()
            ),
        ]
    )


def forge_groups(storage: Storage) -> None:
    """Write the registry of the vectors whose models keep read groups whole."""
    forge = Forge(storage)
    first = forge_basis(ROWS, seed=1)
    basis_action, basis = forge.basis(first, revision=1)
    # One group of few values beside two that follow the basis.
    mixed = forge_checkpoint(ROWS, first, seed=31)
    mixed["embed.weight"] = torch.sign(mixed["embed.weight"]) * 0.37
    mixed["head.weight"] = mixed["embed.weight"].clone()
    mixed["e4m3.weight"] = torch.zeros_like(mixed["e4m3.weight"])
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            basis_action,
            forge.model("mixed", encode(basis, mixed, exact=True, exact_overhead=0.3)),
            # Every group, with tensors missing, of other shapes and dtypes, and not finite.
            forge.model("odd", encode(basis, odd_checkpoint(ROWS, first), exact=True, exact_overhead=-0.99)),
        ]
    )
    uniform = forge_checkpoint(ROWS, first, seed=33, dtype="BF16")
    forge.commit([forge.model("all", encode(basis, uniform, exact=True, exact_overhead=-0.99))])


def forge_whole(storage: Storage) -> None:
    """Write the registry of the vectors whose arrays are single chunks, with a model that codes nothing."""
    forge = Forge(storage)
    rows = [replace(row, group=0) for row in (ROWS[1], ROWS[2], ROWS[4], ROWS[8], ROWS[13], ROWS[15])]
    # The one read group fills the one chunk of the core.
    counts = (row.matrix[0] * row.matrix[1] for row in rows if row.mode == "coded")
    forged = forge_basis(rows, seed=41, core_chunk=sum(counts), array_chunk=1 << 17)
    action, basis = forge.basis(forged, revision=1)
    tensors = forge_checkpoint(rows, forged, seed=42)
    forge.commit(
        [
            FamilyAction(family=FAMILY, architecture=basis.document.architecture),
            action,
            forge.model("coded", encode(basis, tensors, exact=True)),
            forge.model("lossless", encode(basis, tensors, exact=True, exact_overhead=-0.99)),
        ]
    )


def expectations(storage: Storage) -> dict[str, object]:
    """Tell what every model of a registry is at every tier."""
    registry = Registry.over(storage)
    state = registry.state()
    models: list[dict[str, object]] = []
    for entry in state.models():
        prefix = layout.basis_prefix(entry.family, entry.basis_digest)
        basis = Basis.open(storage, prefix, digest=entry.basis_digest)
        model = Model.open(registry.storage_of(entry), entry.prefix, digest=entry.digest, basis=basis)
        tiers: tuple[Tier, ...] = ("mean", "compact", "exact") if model.has_exact else ("mean", "compact")
        models.append(
            {
                "family": entry.family,
                "task": entry.task,
                "version": entry.version,
                **_expected_files(model.side_files()),
                "tensors": {
                    name: {
                        "dtype": source.dtype.name,
                        "shape": list(source.shape),
                        "stored": source.kind,
                        **{
                            tier: digest_of(model.tensor(name, tier=tier, device=torch.device("cpu"))).hex()
                            for tier in tiers
                        },
                    }
                    for name, source in model.sources.items()
                },
            }
        )
    aliases = [
        {"family": family.name, "task": task.name, "alias": alias, "version": version}
        for family in state.families.values()
        for task in family.tasks.values()
        for alias, version in task.aliases.items()
    ]
    return {"commit": state.number, "aliases": aliases, "models": models}


def _expected_files(files: Mapping[str, bytes]) -> dict[str, object]:
    """Tell what side files are; nothing where there are none."""
    return (
        {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}} if files else {}
    )


def make(folder: Path) -> None:
    """Write the vectors into a folder."""
    _make_one(folder, forge_registry)
    _make_one(folder / "files", forge_files_registry)
    _make_one(folder / "groups", forge_groups)
    _make_one(folder / "whole", forge_whole)


def _make_one(folder: Path, forge: Callable[[Storage], None]) -> None:
    storage = LocalStorage(folder / "registry", create=True)
    forge(storage)
    expected = expectations(open_storage(str(folder / "registry")))
    (folder / "expected.json").write_text(to_text(expected) + "\n", encoding="utf-8")


def to_text(value: object, depth: int = 0) -> str:
    """Write JSON with a line for each tensor: small, and a difference can be read."""
    if depth == 4 or not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        lines = [
            f"{json.dumps(key, ensure_ascii=False)}: {to_text(part, depth + 1)}"
            for key, part in value.items()
        ]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(to_text(part, depth + 1) for part in value) + "\n]"


def main(arguments: list[str] | None = None) -> int:
    """Make the vectors and tell their size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists():
        print(f"make_vectors: {folder} exists; vectors are never overwritten", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    make(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    print(f"make_vectors: {len(sizes)} files, {sum(sizes)} bytes in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
