"""What the package does, by name: build, add, load, list, show, verify, export.

Names are resolved and parts joined here; the command line and the package root only pass arguments on.
"""

from __future__ import annotations

from uws_store.api.adding import add
from uws_store.api.analysis import analyze
from uws_store.api.cache import cache_contents, clear_cache
from uws_store.api.card import card
from uws_store.api.collecting import gc
from uws_store.api.comparing import DiffResult, diff
from uws_store.api.doctor import Diagnosis, doctor
from uws_store.api.drift import Growth
from uws_store.api.family import Family, open_family
from uws_store.api.growth import extend, rebase
from uws_store.api.inspect import (
    FamilySummary,
    Lineage,
    ModelSummary,
    is_model,
    list_families,
    list_models,
    show,
)
from uws_store.api.load import aload_model, load_model
from uws_store.api.moving import MoveResult, mirror, pull, push
from uws_store.api.names import (
    AliasResult,
    DeleteResult,
    LogEntry,
    delete,
    history,
    remove_alias,
    set_alias,
)
from uws_store.api.opening import open_registry
from uws_store.api.planning import plan, read_plan, save_plan
from uws_store.api.publish import build
from uws_store.api.recording import VerificationSummary
from uws_store.api.restore import ExportResult, export, export_name, file_name_of
from uws_store.api.results import AddResult, BuildResult, ExtendResult, ModelResult
from uws_store.api.showing import publish_card
from uws_store.api.signatures import SignatureResult, check_signature, sign
from uws_store.api.verdicts import ModelVerdict, VerifyResult
from uws_store.api.verification import verify

__all__ = [
    "AddResult",
    "AliasResult",
    "BuildResult",
    "DeleteResult",
    "Diagnosis",
    "DiffResult",
    "ExportResult",
    "ExtendResult",
    "Family",
    "FamilySummary",
    "Growth",
    "Lineage",
    "LogEntry",
    "ModelResult",
    "ModelSummary",
    "ModelVerdict",
    "MoveResult",
    "SignatureResult",
    "VerificationSummary",
    "VerifyResult",
    "add",
    "aload_model",
    "analyze",
    "build",
    "cache_contents",
    "card",
    "check_signature",
    "clear_cache",
    "delete",
    "diff",
    "doctor",
    "export",
    "export_name",
    "extend",
    "file_name_of",
    "gc",
    "history",
    "is_model",
    "list_families",
    "list_models",
    "load_model",
    "mirror",
    "open_family",
    "open_registry",
    "plan",
    "publish_card",
    "pull",
    "push",
    "read_plan",
    "rebase",
    "remove_alias",
    "save_plan",
    "set_alias",
    "show",
    "sign",
    "verify",
]
