"""Which of a module's tensors a name of a stored model means.

Owns what stands around a module (data parallelism, compilation) and the renaming of parameters that transformers does
between a checkpoint and its modules. Touches no weights.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from uws_store.errors import InvalidInputError

__all__ = ["inner_module", "own_names"]

_WRAPPERS = ("_orig_mod", "module")
_Names = dict[tuple[str, ...], dict[str, str]]
_KNOWN: weakref.WeakKeyDictionary[torch.nn.Module, _Names] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def inner_module(module: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile`` or a data-parallel wrapper stands around, or itself.

    Raises
    ------
    InvalidInputError
        When it is no module (kind ``invalid-input/module``).
    """
    if not isinstance(module, torch.nn.Module):
        raise InvalidInputError(
            f"weights are loaded into a torch.nn.Module, not {type(module).__name__}; leave into= out to get a mapping",
            kind="invalid-input/module",
        )
    if _is_wrapper(module):
        for name in _WRAPPERS:
            held = dict(module.named_children()).get(name)
            if held is not None:
                return inner_module(held)
    return module


def _is_wrapper(module: torch.nn.Module) -> bool:
    kinds: tuple[type, ...] = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    if "torch._dynamo.eval_frame" in sys.modules:
        kinds += (sys.modules["torch._dynamo.eval_frame"].OptimizedModule,)
    return isinstance(module, kinds)


def own_names(module: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """What a module calls the tensors of a state dict; a name that it does not know is left as it is.

    Modules of transformers may hold parameters under other names than the checkpoints that they read and write, and
    so do a base model and one with a head on it. Names are asked of the library then.
    """
    wanted = tuple(names)
    known = module.state_dict(keep_vars=True)
    library = sys.modules.get("transformers")
    base = getattr(library, "PreTrainedModel", None) if library is not None else None
    if base is None or not isinstance(module, base) or all(name in known for name in wanted):
        return {name: name for name in wanted}
    with _LOCK:
        found = _KNOWN.get(module, {}).get(wanted)
    if found is None:
        found = {name: name for name in wanted}
        # What the library calls its own may change: names stay as they are, and do not fit, where it did.
        with contextlib.suppress(Exception):
            found = _renamed(module, wanted, known)
        with _LOCK:
            _KNOWN.setdefault(module, {})[wanted] = found
    return found


def _renamed(module: Any, names: tuple[str, ...], known: dict[str, Any]) -> dict[str, str]:  # noqa: ANN401
    loading = importlib.import_module("transformers.core_model_loading")
    conversion = importlib.import_module("transformers.conversion_mapping")
    steps = conversion.get_model_conversion_mapping(module)
    renamings = [step for step in steps if isinstance(step, loading.WeightRenaming)]
    converters = [step for step in steps if isinstance(step, loading.WeightConverter)]
    prefix = module.base_model_prefix or None
    found: dict[str, str] = {}
    for name in names:
        if name in known:
            found[name] = name
            continue
        key, converter = loading.rename_source_key(name, renamings, converters, prefix, known)
        # One that is put together of others, or taken apart, is none of ours to fill.
        found[name] = key if converter is None and key in known else name
    return found
