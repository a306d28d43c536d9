"""Mutations of bytes: what a fuzzer does to a seed. Deterministic for a generator; knows no format but JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["mutate"]

_EDGES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64 - 1)
_NUMBER = re.compile(rb"-?\d+")
_TOKENS = (
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b"-1",
    b"1e999",
    b"NaN",
    b"[" * 64,
    b'{"a":' * 40,
    b"../",
    b"\x00",
)


def mutate(seed: bytes, others: Sequence[bytes], *, source: random.Random) -> bytes:
    """Change a seed in one to four ways.

    Parameters
    ----------
    seed : bytes
        What to start from.
    others : sequence of bytes
        Seeds to splice with.
    source : random.Random
        The only source of chance.
    """
    data = bytearray(seed)
    for _ in range(source.randint(1, 4)):
        source.choice(_WAYS)(data, others, source)
    return bytes(data)


def _flip(data: bytearray, _others: Sequence[bytes], source: random.Random) -> None:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _edge(data: bytearray, _others: Sequence[bytes], source: random.Random) -> None:
    width = source.choice((1, 2, 4, 8))
    at = source.randrange(len(data) + 1)
    value = source.choice(_EDGES) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, source.choice(("little", "big")))


def _cut(data: bytearray, _others: Sequence[bytes], source: random.Random) -> None:
    at = source.randrange(len(data) + 1)
    del data[at : at + source.choice((1, 8, 100, len(data)))]


def _repeat(data: bytearray, _others: Sequence[bytes], source: random.Random) -> None:
    at = source.randrange(len(data) + 1)
    part = bytes(data[at : at + source.randint(1, 64)])
    data[at:at] = part * source.choice((1, 2, 50))


def _splice(data: bytearray, others: Sequence[bytes], source: random.Random) -> None:
    other = source.choice(others)
    at, start = source.randrange(len(data) + 1), source.randrange(len(other) + 1)
    data[at:] = other[start:]


def _number(data: bytearray, _others: Sequence[bytes], source: random.Random) -> None:
    """Put an edge in the place of a decimal number, as JSON has them."""
    found = list(_NUMBER.finditer(bytes(data)))
    if found:
        chosen = source.choice(found)
        data[chosen.start() : chosen.end()] = str(source.choice((-1, 1)) * source.choice(_EDGES)).encode()


def _token(data: bytearray, _others: Sequence[bytes], source: random.Random) -> None:
    at = source.randrange(len(data) + 1)
    data[at : at + source.randint(0, 4)] = source.choice(_TOKENS)


def _value(data: bytearray, _others: Sequence[bytes], source: random.Random) -> None:
    """Change one value of a JSON document, which stays JSON: what a parser's own checks have to find."""
    try:
        root = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return _token(data, _others, source)
    held: list[tuple[Any, Any]] = []
    _slots(root, held)
    if not held:
        return None
    where, key = source.choice(held)
    way = source.randrange(5)
    if way == 0:
        del where[key]
    elif way == 1 and isinstance(where, dict):
        where[source.choice(("", "uws", "kind", "x" * 300))] = where.pop(key)
    elif way == 2:
        other, at = source.choice(held)
        where[key] = json.loads(json.dumps(other[at]))
    elif isinstance(where, list) and way == 3:
        where[key:key] = where * source.choice((1, 2, 40))
    else:
        where[key] = source.choice(
            (*_EDGES, -1, 0.5, 1e300, "", "../x", "\ud800", "x" * 5000, [], {}, None, True)
        )
    data[:] = json.dumps(root).encode()
    return None


def _slots(value: object, found: list[tuple[Any, Any]]) -> None:
    """Collect every place in a JSON value that holds another."""
    if isinstance(value, dict | list):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            found.append((value, key))
            _slots(held, found)


_WAYS = (
    _flip,
    _flip,
    _edge,
    _cut,
    _repeat,
    _splice,
    _number,
    _number,
    _token,
    _value,
    _value,
    _value,
    _value,
)
