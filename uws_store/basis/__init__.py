"""A basis in memory: its tensor table joined with its numbers. Shared by the builder, the loader and the verifier."""

from __future__ import annotations

from uws_store.basis.decoder import Decoder, Job, shared_decoder
from uws_store.basis.files import read_files
from uws_store.basis.opened import ARRAYS, Basis, array_record, is_large_basis, step_of
from uws_store.basis.panels import PanelTensor
from uws_store.basis.stack import Decode
from uws_store.basis.table import Group, Slot
from uws_store.basis.tensor import StoredTensor, TensorBasis
from uws_store.basis.wide import WideTensor, is_wide

__all__ = [
    "ARRAYS",
    "Basis",
    "Decode",
    "Decoder",
    "Group",
    "Job",
    "PanelTensor",
    "Slot",
    "StoredTensor",
    "TensorBasis",
    "WideTensor",
    "array_record",
    "is_large_basis",
    "is_wide",
    "read_files",
    "shared_decoder",
    "step_of",
]
