"""Which files are one checkpoint: a file, a set of shards, an index, a folder.

Owns the names checkpoint files have. Reads indexes, but no weights. Must not know about zoos.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from uws_store.checkpoint.base import listed
from uws_store.checkpoint.weight_file import file_errors, read_json
from uws_store.errors import FormatError, InvalidInputError, NotFoundError, Problem

__all__ = [
    "INDEX_SUFFIX",
    "SAFETENSORS_SUFFIX",
    "WEIGHT_SUFFIXES",
    "Parts",
    "checkpoints_among",
    "holds_checkpoint",
    "is_weight_name",
    "parts_of",
    "read_index",
    "shard_of",
    "task_stem",
]

SAFETENSORS_SUFFIX = ".safetensors"
WEIGHT_SUFFIXES = (SAFETENSORS_SUFFIX, ".pt", ".pth", ".bin", ".ckpt")
INDEX_SUFFIX = ".index.json"

# What a folder's weights are called, by Hugging Face's libraries: the first that is there is taken.
_PREFERRED = (
    "model.safetensors",
    "adapter_model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)
# What training programs leave beside the weights.
_TRAINING_STATE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?)\.(bin|pt|pth)", re.IGNORECASE
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})")

_LONGEST_FILE_NAME = 255


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of one checkpoint.

    Attributes
    ----------
    files : tuple of Path
        The weight files, sorted by name.
    listed_in : Mapping of str to Path
        For each tensor an index names, the file it must be in; empty where there is no index.
    notices : tuple of str
        What lies beside them and was left out.
    """

    files: tuple[Path, ...]
    listed_in: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard's place in its set, from its name."""

    stem: str
    number: int
    count: int
    suffix: str


def is_weight_name(name: str) -> bool:
    """Whether a file of this name holds weights, hidden files and the state of training excepted."""
    return not name.startswith(".") and _suffix(name) is not None and not _TRAINING_STATE.fullmatch(name)


def shard_of(name: str) -> _Shard | None:
    """Give a shard's place in its set (``model-00001-of-00003.safetensors``), or None when it is not a shard."""
    suffix = _suffix(name)
    match = _SHARD.fullmatch(name[: -len(suffix)]) if suffix else None
    if suffix is None or match is None:
        return None
    return _Shard(match["stem"], int(match["number"]), int(match["count"]), suffix.casefold())


def task_stem(name: str) -> str:
    """Take a file's suffix off, and its place in a set of shards: what is left is the name of its task."""
    if name.endswith(INDEX_SUFFIX):
        name = name.removesuffix(INDEX_SUFFIX)
    shard = shard_of(name)
    if shard:
        return shard.stem
    suffix = _suffix(name)
    return name[: -len(suffix)] if suffix else name


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder itself, not one within it, holds weights."""
    with file_errors(folder):
        return any(is_weight_name(entry.name) or _is_index_name(entry.name) for entry in folder.iterdir())


def parts_of(path: Path) -> Parts:
    """Find the files of the checkpoint a path names.

    Parameters
    ----------
    path : Path
        A weight file, one of a set of shards, an index (``*.safetensors.index.json``), or a folder of these.

    Raises
    ------
    NotFoundError
        When nothing is there (kind ``not-found/checkpoint``).
    InvalidInputError
        When it is not a checkpoint (kind ``invalid-input/not-a-checkpoint``), or a folder holds several
        (``invalid-input/ambiguous-checkpoint``).
    FormatError
        When shards are missing or the index is damaged (kind ``format/checkpoint``).
    """
    try:
        with file_errors(path):
            mode = path.stat().st_mode
    except ValueError as error:
        # A NUL, or half of a surrogate pair: no file system has such a name.
        raise NotFoundError(f"there is no checkpoint {str(path)!a}", kind="not-found/checkpoint") from error
    if stat.S_ISDIR(mode):
        return _parts_of_folder(path)
    # A pipe or a device could be opened, and would be waited for.
    if stat.S_ISREG(mode):
        if _is_index_name(path.name):
            return _parts_of_index(path)
        if _suffix(path.name):
            return _parts_of_file(path)
    raise InvalidInputError(
        f"{path} is not a checkpoint: expected a file that ends in {', '.join(WEIGHT_SUFFIXES)}, or a folder of these",
        kind="invalid-input/not-a-checkpoint",
    )


def read_index(path: Path) -> dict[str, str]:
    """Read an index and give, for each tensor, its shard's name, which stays in the index's folder.

    Raises
    ------
    FormatError
        When it is not an index, or names a file elsewhere (kind ``format/checkpoint``), with all problems.
    """
    try:
        content = read_json(path)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the index {path} is not JSON ({error})", kind="format/checkpoint") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            f"the index {path} has no 'weight_map' from tensors to files; download it again",
            kind="format/checkpoint",
        )
    problems = tuple(
        Problem(
            f"/weight_map/{name}",
            "format/shard-name",
            f"{shard!r} is not the name of a weight file beside the index",
        )
        for name, shard in weight_map.items()
        if not isinstance(shard, str)
        or "/" in shard
        or "\\" in shard
        or not is_weight_name(shard)
        or len(shard.encode("utf-8", "surrogatepass")) > _LONGEST_FILE_NAME
    )
    if problems:
        raise FormatError(f"the index {path} cannot be used", kind="format/checkpoint", problems=problems)
    return weight_map


def _suffix(name: str) -> str | None:
    """Give a weight file's suffix as the name spells it."""
    found = Path(name).suffix
    return found if found.casefold() in WEIGHT_SUFFIXES else None


def _is_index_name(name: str) -> bool:
    return (
        not name.startswith(".")
        and name.endswith(INDEX_SUFFIX)
        and _suffix(name.removesuffix(INDEX_SUFFIX)) is not None
    )


def _parts_of_index(path: Path) -> Parts:
    listed_in = {name: path.parent / shard for name, shard in read_index(path).items()}
    files = sorted(set(listed_in.values()))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise _missing_shards(path, missing)
    return Parts(tuple(files), MappingProxyType(listed_in))


def _parts_of_file(path: Path) -> Parts:
    shard = shard_of(path.name)
    if shard is None or shard.count == 1:
        return Parts((path,))
    with file_errors(path.parent):
        siblings = {
            entry: shard_of(entry.name) for entry in path.parent.iterdir() if is_weight_name(entry.name)
        }
    found = {
        place.number: file
        for file, place in siblings.items()
        if place and (place.stem, place.count, place.suffix) == (shard.stem, shard.count, shard.suffix)
    }
    # Shards count from 1; an old few from 0.
    first = 0 if 0 in found else 1
    missing = [number for number in range(first, first + shard.count) if number not in found]
    if missing:
        raise _missing_shards(path, [f"number {number} of {shard.count}" for number in missing])
    return Parts(tuple(sorted(found.values())))


def _parts_of_folder(folder: Path) -> Parts:
    with file_errors(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    candidates = checkpoints_among(names)
    if not candidates:
        raise InvalidInputError(
            f"the folder {folder} holds no checkpoint: expected a file that ends in {', '.join(WEIGHT_SUFFIXES)}",
            kind="invalid-input/not-a-checkpoint",
        )
    # A pickle is read only where there is no safetensors.
    best = [name for name in candidates if SAFETENSORS_SUFFIX in name.casefold()] or candidates
    chosen = next((name for name in _PREFERRED if name in best), best[0])
    if len(best) > 1 and chosen not in _PREFERRED:
        raise InvalidInputError(
            f"the folder {folder} holds several checkpoints, {listed(best)}; name one, or keep one folder for each",
            kind="invalid-input/ambiguous-checkpoint",
        )
    parts = _parts_of_index(folder / chosen) if _is_index_name(chosen) else _parts_of_file(folder / chosen)
    used = {file.name for file in parts.files}
    left = [name for name in names if is_weight_name(name) and name not in used]
    notices = (f"left out: {listed(left)} (beside {chosen!r})",) if left else ()
    return Parts(parts.files, parts.listed_in, notices)


def checkpoints_among(names: list[str]) -> list[str]:
    """Give one name for each checkpoint among a folder's files: a file, an index, or the first of its shards."""
    indexes = [name for name in names if _is_index_name(name)]
    indexed_stems = {task_stem(name) for name in indexes}
    found = list(indexes)
    seen = set()
    for name in names:
        if not is_weight_name(name):
            continue
        shard = shard_of(name)
        if shard and shard.count > 1:
            key = (shard.stem, shard.count, shard.suffix)
            if shard.stem in indexed_stems or key in seen:
                continue
            seen.add(key)
        found.append(name)
    return found


def _missing_shards(path: Path, missing: list[str]) -> FormatError:
    return FormatError(
        f"{path} is one of several files, and others are missing: {listed(missing)}; download them again",
        kind="format/checkpoint",
    )
