"""A family's model card: what it is, how many models, how much smaller, what was measured, how to load it.

Owns the text, the metadata that the Hub indexes, and the line by which a text of ours is told from another's.
Everything in it is told by the records.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from uws_store.api.inspect import FamilySummary, ModelSummary, show
from uws_store.api.opening import open_registry
from uws_store.errors import FormatError
from uws_store.fidelity import FamilyScore, summarise
from uws_store.registry import Registry

__all__ = ["card", "is_ours"]

_SHOWN_MODELS = 50
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ._/-]*")
# What YAML would take for something other than text.
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_LICENCE_KEYS = ("license", "licence")
_BASE_KEYS = ("base_model", "base-model", "base")


def card(family: str, *, registry: str | Registry | None = None, repository: str | None = None) -> str:
    """Write the README.md of a family.

    Parameters
    ----------
    family : str
        The family.
    registry : str or Registry, optional
        URL or path; by default ``UWS_STORE_REGISTRY``, else the user's data folder.
    repository : str, optional
        The URL that readers will find the family at, such as ``hf://org/name``; without it the text says
        ``URL`` in its place.

    Returns
    -------
    str
        YAML metadata between lines of ``---``, then Markdown. The same records give the same text.

    Raises
    ------
    NotFoundError
        When there is no such registry or family.
    FormatError
        When a record is damaged.
    """
    summary, models = show(family, registry=open_registry(registry))
    for problem in summary.problems[:1]:
        raise FormatError(problem.message, kind=problem.kind, problems=summary.problems)
    scores = summarise((model.task, score) for model in models for score in model.scores)
    return "".join(f"{line}\n" for line in _lines(summary, models, scores, repository or "URL"))


def is_ours(text: bytes, family: str) -> bool:
    """Tell whether a README.md was written by :func:`card` for this family, and not taken over by hand since."""
    return _mark(family).encode() in text


def _mark(family: str) -> str:
    return (
        f"<!-- Written by uws-store for the family {family}; remove this line to keep a text of your own. -->"
    )


def _lines(
    family: FamilySummary, models: Sequence[ModelSummary], scores: Sequence[FamilyScore], url: str
) -> Iterator[str]:
    yield from _metadata(models)
    yield _mark(family.name)
    yield ""
    yield f"# {_text(family.name)}"
    yield ""
    yield (
        f"{family.tasks} models of one architecture ({family.versions} versions), stored as a shared basis and a few "
        "compact numbers per model with [uws-store](https://pypi.org/project/uws-store/)."
    )
    yield ""
    yield from _size_table(family, models)
    yield ""
    if scores:
        yield from _score_table(scores)
    yield "## How to load"
    yield ""
    yield "```python"
    yield "from uws_store import load_model"
    yield ""
    task = models[0].task if models else "TASK"
    yield f"weights = load_model({family.name!r}, {task!r}, registry={url!r})  # a mapping of tensors"
    yield "```"
    yield ""
    if models:
        yield from _model_table(models)


def _size_table(family: FamilySummary, models: Sequence[ModelSummary]) -> Iterator[str]:
    source = sum(model.source_bytes for model in models)
    compact = family.basis_bytes + sum(model.compact_bytes for model in models)
    exact = [model for model in models if model.exact]
    yield "| | |"
    yield "|---|---|"
    yield f"| models | {family.tasks} |"
    yield f"| their checkpoints | {_size(source)} |"
    if compact:
        yield f"| stored, basis included | {_size(compact)}, {source / compact:.1f} times smaller |"
    yield f"| basis | {_size(family.basis_bytes)} |"
    if models:
        bits = sum(model.bits_per_parameter for model in models) / len(models)
        error = max(model.rel_error for model in models)
        yield f"| bits per parameter | {bits:.3g}, mean over models |"
        yield f"| relative error of the weights | at most {error:.3g} |"
    yield f"| bit-identical on request | {len(exact)} of {len(models)} models |"


def _score_table(scores: Sequence[FamilyScore]) -> Iterator[str]:
    yield "## Scores"
    yield ""
    yield "| metric | originals | stored | mean drop | worst drop | models |"
    yield "|---|---|---|---|---|---|"
    for score in scores:
        yield (
            f"| {_text(score.metric)} | {score.original:.4g} | {score.reconstruction:.4g} | {score.drop:.3g} | "
            f"{score.worst_drop:.3g} ({_text(score.worst_task)}) | {score.models} |"
        )
    yield ""


def _model_table(models: Sequence[ModelSummary]) -> Iterator[str]:
    yield "## Models"
    yield ""
    yield "| task | version | compact | relative error | tiers |"
    yield "|---|---|---|---|---|"
    for model in models[:_SHOWN_MODELS]:
        tiers = "compact, exact" if model.exact else "compact"
        yield (
            f"| {_text(model.task)} | {model.version} | {_size(model.compact_bytes)} | {model.rel_error:.3g} | "
            f"{tiers} |"
        )
    if len(models) > _SHOWN_MODELS:
        yield f"| and {len(models) - _SHOWN_MODELS} more | | | | |"


def _metadata(models: Sequence[ModelSummary]) -> Iterator[str]:
    """Write what the Hub indexes, as YAML: only what all records agree on is said of all."""
    yield "---"
    yield "library_name: uws-store"
    licence = _agreed(models, _LICENCE_KEYS)
    if licence:
        yield f"license: {_scalar(licence.lower())}"
    base = _agreed(models, _BASE_KEYS)
    if base:
        yield f"base_model: {_scalar(base)}"
    yield "tags:"
    for tag in ("uws-store", "model-zoo", "weight-compression"):
        yield f"- {tag}"
    yield "---"
    yield ""


def _agreed(models: Sequence[ModelSummary], keys: Sequence[str]) -> str | None:
    """The one value that every model's source has under one of the keys."""
    found = Counter(
        value
        for model in models
        for value in {held for name, held in model.lineage.source_metadata if name.lower() in keys}
    )
    return next(iter(found)) if len(found) == 1 and found.total() == len(models) else None


def _scalar(text: str) -> str:
    """Write text for YAML, of which JSON strings are a part."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS and text == text.strip()
    return text if plain else json.dumps(text)


def _text(text: str) -> str:
    """Make a name from a record harmless in Markdown and HTML."""
    shown = re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", " ".join(text.split()))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"
