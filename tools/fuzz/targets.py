"""What is fuzzed: every parser and decoder that meets bytes from elsewhere, each with the seeds it starts from.

A target takes bytes and either returns or raises a ``UwsError``; anything else is a finding. Seeds are the golden vectors
and small files made here.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from uws_store.adapter import parse_config
from uws_store.checkpoint import Renaming, open_checkpoint, scan_zoo
from uws_store.entropy import decode_integers, encode_integers
from uws_store.fidelity.examples import find_examples
from uws_store.loader.construct import CONFIG, read_config
from uws_store.metadata.basis import BasisDocument, SideRecord, StepRecord
from uws_store.metadata.document import Document
from uws_store.metadata.group import from_group_bytes
from uws_store.metadata.log import Commit, HeadHint, PackPlace, RegistryDocument
from uws_store.metadata.model import ModelDocument
from uws_store.metadata.pending import PendingNote
from uws_store.metadata.plan import PlanDocument, PlannedTensor
from uws_store.metadata.signature import SignatureDocument, Statement
from uws_store.metadata.snapshot import FamilySnapshot
from uws_store.metadata.verification import VerificationDocument
from uws_store.model import read_document
from uws_store.names import check_family_name, check_task_name
from uws_store.packs import PackedModel
from uws_store.storage import MemoryStorage, open_storage
from uws_store.store import ArrayReader, encode_array

__all__ = ["DOCUMENTS", "PACKED", "ROOT", "TARGETS", "VECTORS", "VERIFIED", "Target", "files_below"]

ROOT = Path(__file__).resolve().parent.parent.parent
VECTORS = ROOT / "spec" / "vectors" / "v1" / "registry"
OTHERS = ROOT / "spec" / "vectors" / "v1"
VERIFIED = OTHERS / "verified" / "registry"
PACKED = OTHERS / "packs" / "registry"
MORE = ("groups", "whole", "files", "adapters")

_PREFIX = "families/f/models/m"


@dataclass(frozen=True, slots=True)
class Target:
    """One parser or decoder.

    Attributes
    ----------
    name : str
        What it is called on the command line and in the table of findings.
    run : callable
        Feeds it bytes.
    seeds : tuple of bytes
        Valid inputs.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def _as_file(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


DOCUMENTS: dict[type[Document], str] = {
    RegistryDocument: "registry document",
    HeadHint: "head hint",
    Commit: "commit",
    FamilySnapshot: "family snapshot",
    BasisDocument: "basis document",
    ModelDocument: "model document",
    VerificationDocument: "verification record",
    SignatureDocument: "signature",
    PendingNote: "pending note",
    PlanDocument: "plan",
}
"""Every document of the format and the target that it is."""


def _document(kind: type[Document], seeds: tuple[bytes, ...]) -> Target:
    return Target(DOCUMENTS[kind], lambda data: kind.parse(data, where="fuzz"), seeds)


def _group(kind: type[BasisDocument | ModelDocument], seeds: tuple[bytes, ...]) -> Target:
    return Target(DOCUMENTS[kind], lambda data: from_group_bytes(kind, data, where="fuzz"), seeds)


def _checkpoint(name: str) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        with _as_file(data, name) as path, open_checkpoint(path) as checkpoint:
            for tensor in checkpoint.tensors:
                checkpoint.read(tensor)

    return run


def _index(data: bytes) -> None:
    with _as_file(data, "model.safetensors.index.json") as path:
        (path.parent / "model-00001-of-00001.safetensors").write_bytes(_safetensors())
        with open_checkpoint(path.parent) as checkpoint:
            for tensor in checkpoint.tensors:
                checkpoint.read(tensor)


def _manifest(data: bytes) -> None:
    with _as_file(data, "zoo.json") as path:
        (path.parent / "a.safetensors").write_bytes(_safetensors())
        scan_zoo(path)


def _examples(data: bytes) -> None:
    with _as_file(data, "data.npz") as path:
        find_examples(path, "task", labelled=True)


def _remote_checkpoint(data: bytes) -> None:
    """Read one over a storage: here the header is parsed in Python."""
    storage = open_storage("memory://fuzz", create=True)
    storage.delete("a.safetensors")
    storage.put("a.safetensors", data)
    with open_checkpoint("memory://fuzz/a.safetensors") as checkpoint:
        for tensor in checkpoint.tensors:
            checkpoint.read(tensor)


def _renaming(data: bytes) -> None:
    with _as_file(data, "rename.json") as path:
        Renaming.of(path)


def _name(check: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: check(data.decode("utf-8", "surrogateescape"))


def _stream(dtype: type[np.integer[Any]]) -> Callable[[bytes], object]:
    return lambda data: decode_integers(data, dtype=dtype, count=1000)


_ARRAY = encode_array(np.arange(-2000, 2000, dtype=np.int16) % 7, chunk=1024, page=256)


def _shard(data: bytes) -> None:
    """Read ranges: the index is trusted as far as its checksum, and every chunk as far as its own."""
    storage = MemoryStorage("fuzz")
    for path, held in _ARRAY.objects.items():
        storage.put(f"{_PREFIX}/core/{path}", data if path.startswith("c/") else held)
    reader = ArrayReader(storage, _PREFIX, name="core", record=_ARRAY.record)
    reader.read(1500, 2500)
    reader.read(0, 10)


def _pack(documents: int) -> Callable[[bytes], object]:
    """Read a model out of a pack: its log entry is honest, so what the record says is believed as far as it goes."""

    def run(data: bytes) -> None:
        document = data[:documents]
        digest = hashlib.sha256(document).hexdigest()
        place = PackPlace(digest="0" * 64, offset=0, document=len(document), length=max(1, len(data)))
        storage, prefix = MemoryStorage("fuzz"), f"families/f/models/{digest}"
        storage.put(f"families/f/packs/{place.digest}", data)
        packed = PackedModel(storage, prefix, place)
        record = read_document(packed, prefix, digest=digest)
        for name, array in record.arrays.items():
            ArrayReader(packed, prefix, name=name, record=array).read(0, min(array.length, 1 << 16))
        for path in packed.list(prefix):
            packed.read(path)

    return run


def _safetensors() -> bytes:
    weights = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3, dtype=torch.bfloat16)}
    return save_safetensors(weights, metadata={"format": "pt"})


def _torch_file(*, zipped: bool) -> bytes:
    stream = io.BytesIO()
    held = {"state_dict": {"a": torch.arange(6.0), "n": torch.tensor(3)}}
    torch.save(held, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, inputs=np.zeros((3, 2), np.float32), labels=np.arange(3))
    return stream.getvalue()


_SIGNATURE = SignatureDocument(
    statement=Statement(registry="0" * 32, number=7, sha256="a" * 64, family="nets"),
    key="b" * 64,
    signature="c" * 128,
).to_bytes()
_NOTE = PendingNote(kind="lease", prefixes=(f"families/f/models/{'0' * 64}",)).to_bytes()
_PLAN = PlanDocument(
    architecture="0" * 64,
    sources="1" * 64,
    members=2,
    models=500,
    fidelity="bits 1.0",
    step=StepRecord(mantissa=128, exponent=-8),
    max_flops_per_weight=100.0,
    basis_bytes=100.0,
    model_bytes=10.0,
    source_bytes=400.0,
    plain_basis_bytes=100.0,
    plain_model_bytes=20.0,
    tensors=(
        PlannedTensor(
            name="a.weight",
            elements=12,
            left=SideRecord(block=3, rank=2),
            centred=True,
            ordered=True,
            bits_per_model=1.0,
            distortion=1.0,
            basis_bits=1.0,
            plain_bits_per_model=2.0,
            plain_basis_bits=1.0,
            flops_per_weight=2.0,
            reason="left pays for itself",
        ),
    ),
    tool="0",
).to_bytes()


def _targets() -> tuple[Target, ...]:
    files = files_below(VECTORS)
    every = [
        (path, data)
        for folder in (VECTORS, VERIFIED, PACKED, *(OTHERS / name / "registry" for name in MORE))
        for path, data in files_below(folder).items()
    ]
    commits = tuple(data for path, data in every if path.startswith("_log/0"))
    snapshots = tuple(data for path, data in every if "/snapshots/" in path)
    records = tuple(data for path, data in every if "/verifications/" in path)
    bases = tuple(data for path, data in every if "/basis/" in path and path.count("/") == 4)
    models = tuple(data for path, data in every if "/models/" in path and path.count("/") == 4)
    integers = np.random.default_rng(0).laplace(0, 2, 1000)
    streams = {
        dtype: encode_integers(np.round(np.abs(integers)).astype(dtype), page=256)
        for dtype in (np.int16, np.int32, np.uint64)
    }
    place = next(
        action["pack"]
        for commit in (PACKED / "_log").glob("0*1.json")
        for action in json.loads(commit.read_bytes())["actions"]
        if action.get("task") == "exact"
    )
    start = place["offset"]
    pack = (PACKED / "families" / "vectors" / "packs" / place["digest"]).read_bytes()[
        start : start + place["length"]
    ]
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(("a.weight", "b"), "model-00001-of-00001.safetensors"),
    }
    adapter = {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.0.q_proj": 4},
        "use_rslora": False,
    }
    config = {"architectures": ["BertModel"], "hidden_size": 8, "auto_map": {"AutoModel": "m.Model"}}
    renamings = ({"a.weight": "b.weight", "c": "d"}, {"task": {"a": "b"}})
    manifest = [{"task": "t", "path": "a.safetensors", "metadata": {"lr": "1"}}]
    shards = tuple(data for path, data in _ARRAY.objects.items() if path.startswith("c/"))
    return (
        _document(RegistryDocument, (files["uws.json"],)),
        _document(HeadHint, (files["_log/head"],)),
        _document(Commit, commits),
        _document(FamilySnapshot, snapshots),
        _group(BasisDocument, bases),
        _group(ModelDocument, models),
        _document(VerificationDocument, records),
        _document(SignatureDocument, (_SIGNATURE,)),
        _document(PendingNote, (_NOTE,)),
        _document(PlanDocument, (_PLAN,)),
        Target("shard", _shard, shards),
        Target("packed model", _pack(place["document"]), (pack,)),
        *(
            Target(f"pcodec stream of {dtype.__name__}", _stream(dtype), (stream,))
            for dtype, stream in streams.items()
        ),
        Target("safetensors file", _checkpoint("a.safetensors"), (_safetensors(),)),
        Target("remote safetensors header", _remote_checkpoint, (_safetensors(),)),
        Target("torch zip file", _checkpoint("a.pt"), (_torch_file(zipped=True),)),
        Target("torch old file", _checkpoint("a.pth"), (_torch_file(zipped=False),)),
        Target("safetensors index", _index, (json.dumps(index).encode(),)),
        Target(
            "adapter config", lambda data: parse_config(data, where="fuzz"), (json.dumps(adapter).encode(),)
        ),
        Target("manifest", _manifest, (json.dumps(manifest).encode(),)),
        Target("map of names", _renaming, tuple(json.dumps(one).encode() for one in renamings)),
        Target(
            "model configuration",
            lambda data: read_config({CONFIG: data}, name="fuzz"),
            (json.dumps(config).encode(),),
        ),
        Target("examples", _examples, (_npz(),)),
        Target("family name", _name(check_family_name), (b"vit-digits", b"a" * 100)),
        Target("task name", _name(check_task_name), (b"task-01", "modèle/täsk 01".encode())),
    )


TARGETS: tuple[Target, ...] = _targets()
"""Every target."""
