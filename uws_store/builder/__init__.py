"""Making: a basis from a zoo, and a model's objects from a checkpoint and a basis."""

from __future__ import annotations

from uws_store.builder.build import BasisBuilder, build_basis
from uws_store.builder.coded import AnalysisCache
from uws_store.builder.encode import EXACT_OVERHEAD, encode_model
from uws_store.builder.encoded import EncodedModel, encode_within
from uws_store.builder.member_step import member_step
from uws_store.builder.members import Members, piece_name
from uws_store.builder.memory import MemoryProjection, available_bytes, parse_bytes
from uws_store.builder.object_folder import object_sizes
from uws_store.builder.progress import Progress, silent
from uws_store.builder.scratch import Scratch
from uws_store.builder.search import DEFAULT_FIDELITY, Fidelity, FidelityKind, first_step
from uws_store.builder.sources import Place, ZooFiles
from uws_store.builder.surveyed import BuiltBasis
from uws_store.builder.work import WorkFolder, resumed

__all__ = [
    "DEFAULT_FIDELITY",
    "EXACT_OVERHEAD",
    "AnalysisCache",
    "BasisBuilder",
    "BuiltBasis",
    "EncodedModel",
    "Fidelity",
    "FidelityKind",
    "Members",
    "MemoryProjection",
    "Place",
    "Progress",
    "Scratch",
    "WorkFolder",
    "ZooFiles",
    "available_bytes",
    "build_basis",
    "encode_model",
    "encode_within",
    "first_step",
    "member_step",
    "object_sizes",
    "parse_bytes",
    "piece_name",
    "resumed",
    "silent",
]
