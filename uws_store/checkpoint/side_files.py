"""The small files beside a checkpoint's weights: its configuration, its tokenizer, its preprocessor.

Owns the list of names that travel with a model; everything else in the folder stays where it is, programs and pickles
among it. Reads these files and runs nothing. Must not know what they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from uws_store.checkpoint.base import listed
from uws_store.checkpoint.weight_file import file_errors
from uws_store.errors import FormatError
from uws_store.metadata.files import MAX_FILE_BYTES

__all__ = ["SIDE_FILES", "find_side_files", "read_side_file"]

SIDE_FILES = frozenset(
    {
        "adapter_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "config_sentence_transformers.json",
        "generation_config.json",
        "merges.txt",
        "modules.json",
        "normalizer.json",
        "preprocessor_config.json",
        "processor_config.json",
        "sentence_bert_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""The names that travel. What ``save_pretrained`` of transformers, PEFT and timm writes, weights left out."""

# The modules of sentence-transformers: 1_Pooling/config.json.
_MODULE_FOLDER = re.compile(r"[0-9]{1,2}_[A-Za-z]{1,40}")
_MODULE_FILE = "config.json"
_MOST_MODULES = 20
_PROGRAMS = frozenset({".py", ".pyc", ".so", ".sh"})
# How a pickle and a zip archive begin.
_NOT_PLAIN = (b"\x80", b"PK\x03\x04")


def find_side_files(folder: Path) -> tuple[Mapping[str, Path], tuple[str, ...]]:
    """Find the side files of a checkpoint's folder, without reading them.

    Returns
    -------
    files : Mapping of str to Path
        By name, sorted.
    notices : tuple of str
        What was left out, in sentences.
    """
    with file_errors(folder):
        entries = sorted(folder.iterdir())
        found = {entry.name: entry for entry in entries if entry.name in SIDE_FILES and entry.is_file()}
        found.update(_modules([entry for entry in entries if _MODULE_FOLDER.fullmatch(entry.name)]))
    programs = [entry.name for entry in entries if entry.suffix in _PROGRAMS]
    notices = (f"left out: {listed(programs)} (programs do not travel)",) if programs else ()
    return MappingProxyType(dict(sorted(found.items()))), notices


def _modules(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders[:_MOST_MODULES]:
        path = folder / _MODULE_FILE
        if path.is_file():
            yield f"{folder.name}/{_MODULE_FILE}", path


def read_side_file(path: Path) -> bytes:
    """Read a side file and check that it is what its name says.

    Raises
    ------
    FormatError
        When it is too large, not text, or not JSON (kind ``format/side-file``).
    UwsError
        As of :func:`~uws_store.checkpoint.weight_file.file_errors`.
    """
    with file_errors(path), path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise _refused(path, f"it is longer than {MAX_FILE_BYTES} bytes")
    if path.suffix == ".model":
        if data.startswith(_NOT_PLAIN):
            raise _refused(path, "it is a pickle or an archive, and these do not travel")
        return data
    try:
        text = data.decode()
        if path.suffix == ".json":
            json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"it is not {'JSON' if path.suffix == '.json' else 'text'} ({error})") from error
    return data


def _refused(path: Path, reason: str) -> FormatError:
    return FormatError(
        f"{path} cannot travel with its model: {reason}; repair it or take it out of the folder",
        kind="format/side-file",
    )
