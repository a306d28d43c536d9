"""Checkpoints as they lie on a user's disk: opened lazily, never unpickled, written atomically.

Owns reading and writing of checkpoint files and the rule by which a folder is a zoo. Must not know about families,
bases or registries.
"""

from uws_store.checkpoint.base import Checkpoint, TensorInfo
from uws_store.checkpoint.folder import SAFETENSORS_SUFFIX
from uws_store.checkpoint.opening import open_checkpoint
from uws_store.checkpoint.remote import is_url
from uws_store.checkpoint.renamed import RENAME_KEY, Names, RenamedCheckpoint, Renaming, renamed
from uws_store.checkpoint.write import write_safetensors
from uws_store.checkpoint.write_folder import write_folder
from uws_store.checkpoint.zoo import ZooMember, scan_zoo, task_of

__all__ = [
    "RENAME_KEY",
    "SAFETENSORS_SUFFIX",
    "Checkpoint",
    "Names",
    "RenamedCheckpoint",
    "Renaming",
    "TensorInfo",
    "ZooMember",
    "is_url",
    "open_checkpoint",
    "renamed",
    "scan_zoo",
    "task_of",
    "write_folder",
    "write_safetensors",
]
