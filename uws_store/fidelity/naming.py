"""From ``package.module:function`` or ``path/file.py:function`` to an evaluation.

Owns the import of a user's code, which happens only for a name that the caller gave.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from uws_store.errors import InvalidInputError, NotFoundError
from uws_store.fidelity.evaluation import KIND, Evaluation, EvaluationFunction

__all__ = ["load_evaluation", "load_function"]

_LONGEST_NAME = 300


def load_evaluation(
    source: str | EvaluationFunction, *, metric: str | None = None, higher_is_better: bool | None = None
) -> Evaluation:
    """Find an evaluation.

    Parameters
    ----------
    source : str or callable
        ``"package.module:function"`` for what can be imported, ``"path/file.py:function"`` for a file, or the function
        itself. A file's folder is put at the end of ``sys.path``, so that it finds the modules beside it.
    metric, higher_is_better
        For functions that return a plain mapping of numbers; see :class:`Evaluation`.

    Raises
    ------
    NotFoundError
        When there is no such file, module or function (``not-found/evaluation``).
    InvalidInputError
        When the name cannot be read, or importing it fails (``invalid-input/evaluation``).
    """
    if not isinstance(source, str):
        if not callable(source):
            raise InvalidInputError(
                f"an evaluation is a function or its name, not {type(source).__name__}", kind=KIND
            )
        name, sha256 = _described(source)
        return Evaluation(name[:_LONGEST_NAME], sha256, source, metric, higher_is_better)
    name, sha256, function = _find(source, what="evaluation")
    return Evaluation(name[:_LONGEST_NAME], sha256, function, metric, higher_is_better)


def load_function(source: str, *, what: str) -> Callable[..., Any]:
    """Find a function by its name, as :func:`load_evaluation` does.

    Parameters
    ----------
    source : str
        ``"package.module:function"`` or ``"path/file.py:function"``.
    what : str
        What it is for, in messages and kinds, such as ``module``.

    Raises
    ------
    NotFoundError
        When there is no such file, module or function (``not-found/<what>``).
    InvalidInputError
        When the name cannot be read, or importing it fails (``invalid-input/<what>``).
    """
    return _find(source, what=what)[2]


def _find(source: str, *, what: str) -> tuple[str, str | None, Callable[..., Any]]:
    """Name, digest of the source file, and the function itself."""
    place, colon, words = source.rpartition(":")
    if not colon or not place or not all(word.isidentifier() for word in words.split(".")):
        raise InvalidInputError(
            f"{source!r} names no {what}; write package.module:function or path/file.py:function",
            kind=f"invalid-input/{what}",
        )
    if place.endswith(".py"):
        path = Path(place)
        sha256: str | None
        module, sha256 = _from_file(path, source, what)
        name = f"{path.name}:{words}"
    else:
        module = _from_module(place, source, what)
        sha256 = _file_digest(getattr(module, "__file__", None))
        name = source
    function: object = module
    for word in words.split("."):
        function = getattr(function, word, None)
    if function is None:
        raise NotFoundError(f"{place} has no function {words!r}", kind=f"not-found/{what}")
    if not callable(function):
        raise InvalidInputError(
            f"{source} is {type(function).__name__}, not a function", kind=f"invalid-input/{what}"
        )
    return name, sha256, function


def _from_file(path: Path, source: str, what: str) -> tuple[ModuleType, str]:
    try:
        code = path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"the {what}'s file {path} cannot be read: {error.strerror}", kind=f"not-found/{what}"
        ) from error
    sha256 = hashlib.sha256(code).hexdigest()
    whole = path.resolve()
    # One module for one file and content, so that two of its functions share what it holds; and for pickle and
    # dataclasses, which look their module up.
    key = f"_uws_evaluation_{hashlib.sha256(str(whole).encode()).hexdigest()[:16]}_{sha256[:16]}"
    held = sys.modules.get(key)
    if held is not None:
        return held, sha256
    spec = importlib.util.spec_from_file_location(key, whole)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    if str(whole.parent) not in sys.path:
        sys.path.append(str(whole.parent))
    try:
        # Not through the loader, which may take a cached compilation: what is hashed is what runs.
        exec(compile(code, str(whole), "exec"), module.__dict__)  # noqa: S102 - the caller asked for this file to be run
    except (Exception, SystemExit) as error:
        del sys.modules[key]
        raise _failed(source, error, what) from error
    return module, sha256


def _from_module(place: str, source: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise NotFoundError(
                f"there is no module {error.name!r} to import for the {what} {source}; install it, or name a file: "
                "path/file.py:function",
                kind=f"not-found/{what}",
            ) from error
        raise _failed(source, error, what) from error
    except (Exception, SystemExit) as error:
        raise _failed(source, error, what) from error


def _failed(source: str, error: BaseException, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"importing the {what} {source} failed: {type(error).__name__}: {error}",
        kind=f"invalid-input/{what}",
    )


def _described(function: EvaluationFunction) -> tuple[str, str | None]:
    """Name a function that was passed itself, and digest the file it is written in."""
    inner: object = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner) if callable(inner) else inner
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    try:
        path = inspect.getsourcefile(named)  # type: ignore[arg-type]
    except TypeError:
        path = None
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", repr(named))
    return f"{module}:{name}" if module else str(name), _file_digest(path)


def _file_digest(path: object) -> str | None:
    try:
        return hashlib.sha256(Path(str(path)).read_bytes()).hexdigest() if path else None
    except OSError:
        return None
