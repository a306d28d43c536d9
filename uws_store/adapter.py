"""Adapters: the configuration that PEFT keeps beside their weights, and which tensors are factors of one product.

Owns the checks of ``adapter_config.json`` and the names that training programs give to low-rank factors. A
configuration is text from a stranger: it is parsed within limits and never followed, neither its paths nor the modules
it names. Must not know about files or families.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from uws_store.errors import InvalidInputError, Problem

__all__ = [
    "CONFIG_NAME",
    "MAX_CONFIG_BYTES",
    "AdapterConfig",
    "FactorPair",
    "find_pairs",
    "parse_config",
]

CONFIG_NAME = "adapter_config.json"
"""The file's name, by PEFT."""

MAX_CONFIG_BYTES = 1 << 20
"""Longest configuration that is read; a real one has one or two kilobytes."""

_MAX_DEPTH = 16
_MAX_ENTRIES = 256
_MAX_KEY = 200
_MAX_RANK = 1 << 14

Entries = tuple[tuple[str, str], ...]
"""A configuration's keys and their values as compact JSON, sorted by key."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A checked ``adapter_config.json``.

    Attributes
    ----------
    values : Mapping of str to object
        All of it, as JSON has it; ``target_modules`` sorted where it is a list, since PEFT writes a set.
    """

    values: Mapping[str, object]

    @property
    def base_model(self) -> str:
        """The base model's id or path as its author wrote it; empty when there is none."""
        found = self.values.get("base_model_name_or_path")
        revision = self.values.get("revision")
        name = found if isinstance(found, str) else ""
        return f"{name}@{revision}" if name and isinstance(revision, str) and revision else name

    @property
    def kind(self) -> str:
        """The method, ``LORA`` and the like; empty when it is not said."""
        found = self.values.get("peft_type")
        return found if isinstance(found, str) else ""

    @property
    def entries(self) -> Entries:
        """Keys and compact JSON texts, sorted by key."""
        return tuple((key, _compact(value)) for key, value in sorted(self.values.items()))


@dataclass(frozen=True, slots=True)
class FactorPair:
    """Two tensors whose product is what an adapter adds to a weight.

    Attributes
    ----------
    left, right : str
        Names of B (m x r) and of A (r x n).
    rank : int
        ``r``.
    """

    left: str
    right: str
    rank: int


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_config(data: bytes, *, where: str) -> AdapterConfig:
    """Read and check an ``adapter_config.json``.

    Parameters
    ----------
    data : bytes
        At most ``MAX_CONFIG_BYTES``.
    where : str
        The file, for messages.

    Raises
    ------
    InvalidInputError
        When it is too long, no JSON object, nested too deeply, or has fields of wrong types or with names that are no
        names (kind ``invalid-input/adapter-config``), with all problems.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise _refusal(where, f"it has {len(data)} bytes, and at most {MAX_CONFIG_BYTES} are read")
    try:
        text = data.decode()
        _check_depth(text)
        raw = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except (ValueError, RecursionError) as error:
        raise _refusal(where, f"it is not JSON that can be kept ({error})") from error
    if not isinstance(raw, dict):
        raise _refusal(where, "it is not a JSON object")
    problems = _problems(raw)
    if problems:
        raise _refusal(where, "its fields are not those of an adapter", problems)
    modules = raw.get("target_modules")
    if isinstance(modules, list):
        raw["target_modules"] = sorted(modules)
    return AdapterConfig(MappingProxyType(raw))


def _refusal(where: str, reason: str, problems: tuple[Problem, ...] = ()) -> InvalidInputError:
    return InvalidInputError(
        f"{where} cannot be used: {reason}; save the adapter again with PEFT's save_pretrained",
        kind="invalid-input/adapter-config",
        problems=problems,
    )


_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def _check_depth(text: str) -> None:
    depth = 0
    for match in _TOKEN.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        elif match[0] in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is beyond float64")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError("an integer is beyond 64 bits")
    return int(text)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 4096 and value.isprintable()


def _is_path(value: object) -> bool:
    """An id of a hub, or a path: kept as text, so only what could leave a folder or a line is refused."""
    return _is_text(value) and ".." not in re.split(r"[/\\]", str(value))


def _is_module(value: object) -> bool:
    """A dotted name of a module."""
    return _is_text(value) and re.fullmatch(r"[^/\\\s]+", str(value)) is not None and ".." not in str(value)


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_RANK


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_bool(value: object) -> bool:
    return type(value) is bool


def _modules(value: object) -> bool:
    # A string is a regular expression over names, and PEFT's own affair.
    return _is_text(value) or (isinstance(value, list) and all(_is_module(name) for name in value))


def _pattern(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(_is_text(key) and ".." not in key.split("/") and check(part) for key, part in value.items())
    )


_FIELDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "peft_type": ("a short text", _is_module),
    "task_type": ("a short text", _is_module),
    "base_model_name_or_path": ("an id or a path without '..'", _is_path),
    "revision": ("a name without '..'", _is_path),
    "r": (f"a whole number from 1 to {_MAX_RANK}", _is_rank),
    "lora_alpha": ("a number", _is_number),
    "lora_dropout": ("a number", _is_number),
    "use_rslora": ("true or false", _is_bool),
    "use_dora": ("true or false", _is_bool),
    "fan_in_fan_out": ("true or false", _is_bool),
    "inference_mode": ("true or false", _is_bool),
    "target_modules": ("names of modules", _modules),
    "exclude_modules": ("names of modules", _modules),
    "modules_to_save": ("names of modules", _modules),
    "rank_pattern": ("names to ranks", _pattern(_is_rank)),
    "alpha_pattern": ("names to numbers", _pattern(_is_number)),
}
"""What is checked; every field but ``peft_type`` may also be null. Other fields are kept as they are."""


def _problems(raw: dict[str, object]) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    if len(raw) > _MAX_ENTRIES:
        problems.append(
            Problem("/", "format/size", f"{len(raw)} fields, and at most {_MAX_ENTRIES} are kept")
        )
    for key, value in raw.items():
        if not key or len(key) > _MAX_KEY or not key.isprintable():
            problems.append(Problem(f"/{key[:40]!a}", "format/value", "not the name of a field"))
        elif key in _FIELDS and not (value is None and key != "peft_type") and not _FIELDS[key][1](value):
            problems.append(
                Problem(f"/{key}", "format/type", f"expected {_FIELDS[key][0]}, found {_shown(value)}")
            )
    if "peft_type" not in raw:
        problems.append(Problem("/peft_type", "format/missing-field", "the field is missing"))
    return tuple(problems)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# The name of A, what stands for B, by PEFT (two spellings), by kohya's scripts, by diffusers, and by the first LoRA
# programs for diffusion models.
_NAMES = (
    (re.compile(r"(?<![A-Za-z0-9])lora_A(?![A-Za-z0-9])"), "lora_B"),
    (re.compile(r"(?<![A-Za-z0-9])lora_embedding_A(?![A-Za-z0-9])"), "lora_embedding_B"),
    (re.compile(r"(?<![A-Za-z0-9])lora_down(?![A-Za-z0-9])"), "lora_up"),
    (re.compile(r"lora\.down(?![A-Za-z0-9])"), "lora.up"),
    (re.compile(r":down\Z"), ":up"),
)


def find_pairs(
    shapes: Mapping[str, tuple[int, ...]], config: AdapterConfig | None = None
) -> tuple[FactorPair, ...]:
    """Find the low-rank products of a checkpoint, by names and shapes.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        The checkpoint's tensors.
    config : AdapterConfig, optional
        Where there is one, only ``LORA`` has products of two factors (AdaLoRA has three).
    """
    if (config is not None and config.kind != "LORA") or any("lora_E" in name for name in shapes):
        return ()
    pairs: list[FactorPair] = []
    for right, shape in shapes.items():
        for pattern, other in _NAMES:
            left, count = pattern.subn(other, right)
            if count != 1 or left not in shapes:
                continue
            other_shape = shapes[left]
            rank = shape[0] if shape else 0
            if (
                len(shape) >= 2
                and len(other_shape) >= 2
                and other_shape[1] == rank
                and 1 <= rank <= _MAX_RANK
                and math.prod(other_shape[2:]) == 1
                and math.prod(shape) * math.prod(other_shape) > 0
            ):
                pairs.append(FactorPair(left, right, rank))
            break
    return tuple(pairs)
