"""Making the module that a model's recorded configuration describes, with its weights.

Owns what is taken from a configuration: the name of a class that the installed library itself defines, and plain values
for it. Runs no code that a configuration names, fetches nothing, and must not know how weights are decoded.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch

from uws_store.errors import IncompatibleError
from uws_store.loader.module import fill_module

__all__ = ["CONFIG", "build_module", "read_config"]

CONFIG = "config.json"
"""The side file that a module is made from."""

Weights = Callable[[], Mapping[str, torch.Tensor]]

_GENERATION = "generation_config.json"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,199}")
# What would fetch something, name code or a file outside the library, or change the weights.
_TRANSFORMERS_LEFT_OUT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "fusion_config",
        "quantization_config",
        "transformers_weights",
        "use_pretrained_backbone",
    }
)
_TIMM_LEFT_OUT = frozenset(
    {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "scriptable"}
)
# Libraries change what is the process's while they make a module, such as the default dtype.
_LOCK = threading.Lock()


def build_module(
    files: Mapping[str, bytes], weights: Weights, *, name: str, dtype: torch.dtype | None
) -> torch.nn.Module:
    """Make the module of a configuration and give it weights.

    Parameters
    ----------
    files : mapping of str to bytes
        The model's side files.
    weights : callable
        Gives the whole state dict; called once the configuration is found usable.
    name : str
        What is made, for messages.
    dtype : torch.dtype or None
        What the weights were converted to; None for the configuration's own.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, as the library's own loading makes it: ties, buffers that no checkpoint has and renamed
        parameters included. Where nothing is converted, its parameters are the tensors themselves.

    Raises
    ------
    IncompatibleError
        When there is no configuration (kind ``incompatible/no-config``), its library is not installed
        (``incompatible/library-missing``) or does not define what it names (``incompatible/not-in-library``), the
        library refuses its values (``incompatible/config``), or names or shapes do not fit (``incompatible/module``).
    """
    config = read_config(files, name=name)
    if isinstance(config, dict) and isinstance(config.get("architectures"), list) and config["architectures"]:
        return _of_transformers(config, files.get(_GENERATION), weights, name=name, dtype=dtype)
    if isinstance(config, dict) and isinstance(config.get("architecture"), str):
        return _of_timm(config, weights, name=name)
    what = (
        f"without a {CONFIG}"
        if config is None
        else f"with a {CONFIG} that is neither transformers' nor timm's"
    )
    raise IncompatibleError(
        f"{name} was stored {what}; build the module yourself and load the weights with into=",
        kind="incompatible/no-config",
    )


def read_config(files: Mapping[str, bytes], *, name: str) -> object:
    """Parse a model's configuration; None when it has none.

    Raises
    ------
    IncompatibleError
        When it is no JSON: whoever stored it did not hold to the rules of side files (``incompatible/config``).
    """
    data = files.get(CONFIG)
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IncompatibleError(
            f"the {CONFIG} that was stored with {name} is not JSON ({error}); build the module yourself and load the "
            "weights with into=",
            kind="incompatible/config",
        ) from error


def _of_transformers(
    config: dict[str, Any],
    generation: bytes | None,
    weights: Weights,
    *,
    name: str,
    dtype: torch.dtype | None,
) -> torch.nn.Module:
    library = _library("transformers", name)
    wanted = config["architectures"][0]
    # Only what the library exports under this name; trust_remote_code has no counterpart here.
    found = getattr(library, wanted, None) if isinstance(wanted, str) and _NAME.fullmatch(wanted) else None
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise _not_in_library(name, wanted, library)
    model_class: Any = found
    if model_class.config_class is None:
        raise _not_in_library(name, wanted, library)
    with _library_errors(name):
        made = model_class.config_class.from_dict(_plain(config))
        made_generation = library.GenerationConfig.from_dict(json.loads(generation)) if generation else None
    tensors = dict(weights())
    with _library_errors(name), _LOCK, _no_progress(library):
        module, told = model_class.from_pretrained(
            None,
            config=made,
            state_dict=tensors,
            dtype=dtype or "auto",
            local_files_only=True,
            output_loading_info=True,
        )
    wrong = [
        f"{kind}: {sorted(map(str, told[kind]))}"
        for kind in ("missing_keys", "mismatched_keys", "error_msgs")
        if told[kind]
    ]
    if wrong:
        raise IncompatibleError(
            f"the weights of {name} do not fit the {wanted} of its {CONFIG}:\n\t" + "\n\t".join(wrong),
            kind="incompatible/module",
        )
    if made_generation is not None and module.can_generate():
        module.generation_config = made_generation
    return cast("torch.nn.Module", module)


def _of_timm(config: dict[str, Any], weights: Weights, *, name: str) -> torch.nn.Module:
    library = _library("timm", name)
    wanted = config["architecture"]
    # A name with a colon would be fetched.
    if not _NAME.fullmatch(wanted) or not library.is_model(wanted):
        raise _not_in_library(name, wanted, library)
    given = config.get("model_args")
    arguments = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    arguments |= given if isinstance(given, dict) else {}
    arguments = {key: value for key, value in arguments.items() if key not in _TIMM_LEFT_OUT}
    with _library_errors(name), _parameters_on_meta():
        module: torch.nn.Module = library.create_model(wanted, pretrained=False, **arguments)
    return fill_module(module, weights(), strict=True, name=name).eval()


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Copy a configuration without what would fetch something or name code; nested ones too."""
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items() if key not in _TRANSFORMERS_LEFT_OUT}
    return [_plain(held) for held in value] if isinstance(value, list) else value


def _library(package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module("transformers" if package == "transformers" else "timm")
    except ImportError as error:
        raise IncompatibleError(
            f"{name} is a model of {package}, which cannot be imported ({error}); install it with: pip install "
            f"{package}, or build the module yourself and load the weights with into=",
            kind="incompatible/library-missing",
        ) from error


def _not_in_library(name: str, wanted: object, library: ModuleType) -> IncompatibleError:
    return IncompatibleError(
        f"{name} names {str(wanted)[:200]!r}, which is no model of the installed {library.__name__} "
        f"{library.__version__}; install a version that has it, or build the module yourself and load the weights with "
        "into= (code that comes with a checkpoint is never run)",
        kind="incompatible/not-in-library",
    )


@contextmanager
def _library_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a library may raise anything for values that it does not take
        raise IncompatibleError(
            f"the module of {name} cannot be made from its {CONFIG}: {type(error).__name__}: {error}",
            kind="incompatible/config",
        ) from error


@contextmanager
def _no_progress(library: ModuleType) -> Iterator[None]:
    """Keep the library's progress bars out of what the caller prints."""
    logging = library.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let parameters that this thread makes have no memory, and buffers be real, since no checkpoint has them all."""
    maker = threading.get_ident()
    plain = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and threading.get_ident() == maker and not param.is_meta:
            param = torch.nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        plain(module, name, param)

    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.nn.Module.register_parameter = plain  # type: ignore[method-assign]
