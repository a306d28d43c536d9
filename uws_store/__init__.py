"""Keep hundreds of fine-tuned networks of one architecture: one shared basis, a few compact numbers per model.

The names below are imported when they are first used: ``import uws_store`` and ``uws-store --help`` do not wait for
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_ELSEWHERE = {"LazyStateDict": "uws_store.loader", "UwsError": "uws_store.errors"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_ELSEWHERE.get(name, "uws_store.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
