"""Keep hundreds of fine-tuned networks of one architecture: one shared basis, a few compact numbers per model."""

from __future__ import annotations

from uws_store.api import (
    Family,
    add,
    build,
    export,
    is_model,
    list_models,
    load_model,
    open_family,
    show,
    verify,
)
from uws_store.errors import UwsError
from uws_store.loader import LazyStateDict

__all__ = [
    "Family",
    "LazyStateDict",
    "UwsError",
    "add",
    "build",
    "export",
    "is_model",
    "list_models",
    "load_model",
    "open_family",
    "show",
    "verify",
]
