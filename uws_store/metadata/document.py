"""What every JSON document of the format has in common: bytes in, a frozen value or every problem out.

Owns the JSON rules (limits, duplicates, canonical bytes) and the translation of pydantic's errors into our own.
Must not know what any particular document says, nor where documents are stored.

A stored document is untrusted: its size, nesting and numbers are checked before anything is built from it, so
that refusing a hostile one costs memory proportional to ``max_bytes`` and time linear in its length.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from uws_store.errors import FormatError, Problem, UwsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydantic_core import ErrorDetails

__all__ = ["FORMAT_VERSION", "MAX_DEPTH", "TAG_FIELD", "Document", "Part", "problems_of"]

FORMAT_VERSION = 1
"""The major version of the format that this package reads and writes."""

MAX_DEPTH = 32
"""Deepest nesting of arrays and objects that is read."""

TAG_FIELD = "op"
"""The field that tells members of a union apart, in every document; it makes error locations exact."""

_MARKERS = ("uws", "kind")
"""Fields of a document that say what it is; the tag of a union is demanded by pydantic itself."""

_MIN_INT = -(2**63)
_MAX_INT = 2**63 - 1
_LONGEST_INT = len(str(_MIN_INT))
_SHOWN_CHARS = 80

# Either a whole string, so that brackets inside it are not counted, or one bracket. The last alternatives close a
# string that never ends: every match then moves forward and the scan is linear, whatever the input is.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)

_PROBLEM_KINDS = {
    "missing": "format/missing-field",
    "extra_forbidden": "format/unknown-field",
    "union_tag_invalid": "format/unknown-op",
    "union_tag_not_found": "format/missing-field",
}


def _require_markers(schema: dict[str, Any]) -> None:
    # They have defaults, so that code need not repeat them, and no document may leave them out.
    marked = [name for name in (*_MARKERS, TAG_FIELD) if name in schema.get("properties", {})]
    schema["required"] = [*marked, *(name for name in schema.get("required", []) if name not in marked)]


class Part(BaseModel):
    """A frozen value inside a document: strict types, no unknown fields, no NaN or infinity.

    Fields hold immutable values only: numbers, strings, tuples and other parts (never lists or dicts), so that a
    document cannot change after it was checked. Members of a union carry a literal ``op`` field.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        # Problems are shown to users and logged; what a document held may be huge or private.
        hide_input_in_errors=True,
        json_schema_extra=_require_markers,
    )


class Document(Part):
    """A whole JSON document of the format.

    Attributes
    ----------
    uws : int
        Major version of the format, always 1; a reader refuses any it does not know.
    """

    max_bytes: ClassVar[int] = 1 << 20
    """Longest document of this class that is read or written, in bytes; subclasses set their own."""

    leaves_out_defaults: ClassVar[bool] = False
    """Whether optional fields that say nothing, such as empty arrays, are left out of what is written."""

    uws: Literal[1] = Field(default=1, description="Major version of the format.")

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Self:
        """Read a document from the bytes it is stored as.

        Parameters
        ----------
        data : bytes
            UTF-8 JSON, at most ``max_bytes`` long.
        where : str
            The path or URL the bytes came from, for messages.

        Returns
        -------
        Document
            The checked value, of the class this is called on.

        Raises
        ------
        FormatError
            ``format/size``, ``format/json``, ``format/depth``, ``format/duplicate-key``,
            ``format/newer-version``, or ``format/document`` with every problem found in ``problems``.
        """
        raw = _load(data, max_bytes=cls.max_bytes, where=where)
        if not isinstance(raw, dict):
            raise FormatError(
                f"{where}: expected a JSON object, found {_type_word(raw)}; the file is damaged or not of this format",
                kind="format/document",
                problems=(Problem("", "format/type", "expected an object"),),
            )
        _check_version(raw, where=where)
        problems = [
            Problem(f"/{name}", "format/missing-field", "Field required")
            for name in _MARKERS
            if name in cls.model_fields and name not in raw
        ]
        # A field without a value is left out: one spelling, and the one that is written.
        problems += [
            Problem(place, "format/type", "null is no value; leave the field out") for place in _nulls(raw)
        ]
        # Python takes true and 1.0 for 1.
        if raw.get("uws") == FORMAT_VERSION and type(raw["uws"]) is not int:
            problems.append(Problem("/uws", "format/type", "Input should be a valid integer"))
        try:
            # From the bytes and not from `raw`: only there does strict mode take a JSON array for a tuple.
            document = cls.model_validate_json(data, strict=True)
        except pydantic.ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
            if details[0]["type"] == "json_invalid":
                # Only what Python's parser lets through and the standard does not, such as lone surrogates.
                raise FormatError(
                    f"{where}: not valid JSON: {details[0]['msg']}", kind="format/json"
                ) from error
            known = {problem.loc for problem in problems}
            problems += [problem for detail in details if (problem := _problem(detail, raw)).loc not in known]
            raise _refusal(cls, problems, where=where) from error
        if problems:
            raise _refusal(cls, problems, where=where)
        return document

    def to_bytes(self) -> bytes:
        """Write the one canonical form: sorted keys, no spaces, UTF-8, absent fields left out, no newline.

        Returns
        -------
        bytes
            Equal values give equal bytes, and ``parse`` gives back an equal value.

        Raises
        ------
        FormatError
            When a reader would refuse the result: too long (``format/size``) or a number beyond 64 bits
            (``format/json``).
        """
        value = self.model_dump(mode="json", exclude_none=True, exclude_defaults=self.leaves_out_defaults)
        value |= {name: getattr(self, name) for name in _MARKERS if name in type(self).model_fields}
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode()
        # Nothing is ever stored that we would not read back.
        _load(data, max_bytes=self.max_bytes, where=f"the {type(self).__name__} to be written")
        return data

    def sha256(self) -> str:
        """Hex SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def problems_of(error: pydantic.ValidationError) -> tuple[Problem, ...]:
    """Translate pydantic's errors about a value that was being made in code."""
    return tuple(_problem(detail, None) for detail in error.errors(include_url=False, include_input=False))


def _load(data: bytes, *, max_bytes: int, where: str) -> object:
    """Parse JSON by the rules of the format: bounded, finite, unambiguous."""
    if len(data) > max_bytes:
        raise FormatError(
            f"{where}: {len(data)} bytes, and such a document has at most {max_bytes}", kind="format/size"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}", kind="format/json") from error
    _check_depth(text, where=where)
    try:
        return json.loads(
            text,
            object_pairs_hook=_object_of(where),
            parse_constant=_constant_of(where),
            parse_float=_float_of(where),
            parse_int=_int_of(where),
        )
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{where}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "the file is damaged or incomplete",
            kind="format/json",
        ) from error


def _check_depth(text: str, *, where: str) -> None:
    depth = 0
    for match in _TOKEN.finditer(text):
        found = match.group()
        if found in {"[", "{"}:
            depth += 1
            if depth > MAX_DEPTH:
                raise FormatError(
                    f"{where}: nested deeper than {MAX_DEPTH} levels at character {match.start()}",
                    kind="format/depth",
                )
        elif found in {"]", "}"}:
            depth -= 1


def _object_of(where: str) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    def build(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            problems = tuple(
                Problem(_shown(key), "format/duplicate-key", f"this key stands {count} times in one object")
                for key, count in counts.items()
                if count > 1
            )
            raise FormatError(f"{where}: duplicate keys", kind="format/duplicate-key", problems=problems)
        return found

    return build


def _constant_of(where: str) -> Callable[[str], NoReturn]:
    def refuse(text: str) -> NoReturn:
        raise FormatError(f"{where}: {text} is not a JSON number", kind="format/json")

    return refuse


def _float_of(where: str) -> Callable[[str], float]:
    def build(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise FormatError(f"{where}: the number {_shown(text)} is beyond float64", kind="format/json")
        return value

    return build


def _int_of(where: str) -> Callable[[str], int]:
    def build(text: str) -> int:
        # The length first: converting a long run of digits takes quadratic time.
        if len(text) <= _LONGEST_INT and _MIN_INT <= (value := int(text)) <= _MAX_INT:
            return value
        raise FormatError(f"{where}: the integer {_shown(text)} is beyond 64 bits", kind="format/json")

    return build


def _check_version(raw: dict[str, object], *, where: str) -> None:
    found = raw.get("uws")
    if isinstance(found, int) and not isinstance(found, bool) and found > FORMAT_VERSION:
        raise FormatError(
            f"{where}: written in version {found} of the format, and this uws-store reads version "
            f"{FORMAT_VERSION}; install uws-store {found}.0 or newer to read it",
            kind="format/newer-version",
        )


def _nulls(value: object, at: str = "") -> Iterator[str]:
    """Point to every field that holds null."""
    if isinstance(value, dict):
        for name, part in value.items():
            place = f"{at}/{_escaped(name)}"
            if part is None:
                yield place
            else:
                yield from _nulls(part, place)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            if isinstance(part, dict | list):
                yield from _nulls(part, f"{at}/{index}")


def _refusal(cls: type[Document], problems: Sequence[Problem], *, where: str) -> FormatError:
    return FormatError(
        f"{where}: not a valid {cls.__name__}, {len(problems)} problem{'s' if len(problems) > 1 else ''}",
        kind="format/document",
        problems=tuple(problems),
    )


def _problem(detail: ErrorDetails, raw: object) -> Problem:
    kind = _PROBLEM_KINDS.get(detail["type"])
    if kind is None:
        kind = "format/type" if detail["type"].endswith("_type") else "format/value"
    message = detail["msg"]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, UwsError):
        kind, message = cause.kind, cause.message
    return Problem(_pointer(detail["loc"], raw), kind, message)


def _pointer(loc: tuple[int | str, ...], raw: object) -> str:
    """Turn pydantic's location into a JSON pointer into the document.

    pydantic puts the tag of a union's member and the names of its own validators between the keys. Those are
    dropped by walking the document along.
    """
    parts: list[str] = []
    here: object = raw
    tag_seen = False
    for index, part in enumerate(loc):
        if raw is None:
            pass  # made in code: there is no document to point into
        elif isinstance(here, dict):
            if not tag_seen and part == here.get(TAG_FIELD):
                tag_seen = True
                continue
            if part not in here and index < len(loc) - 1:
                continue
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            continue
        tag_seen = False
        parts.append(_escaped(str(part)))
    return "".join(f"/{part}" for part in parts)


def _escaped(key: str) -> str:
    """Write a key as a part of a JSON pointer."""
    return _shown(key).replace("~", "~0").replace("/", "~1")


def _shown(text: str) -> str:
    """Shorten what a document holds, for messages: its author decides how long it is."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _type_word(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "an array"
    return {bool: "a boolean", str: "a string"}.get(type(value), "a number")
