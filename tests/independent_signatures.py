"""Holding a registry to a signature, from the specification (4.6) and RFC 8032 alone: whole numbers, no library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from independent_documents import check_record, commit_path, load_json, read_file, read_log, require

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


class Point(NamedTuple):
    """Of the curve -x^2 + y^2 = 1 + D x^2 y^2, as x = X / Z, y = Y / Z, x y = T / Z."""

    x: int
    y: int
    z: int
    t: int


def add(left: Point, right: Point) -> Point:
    a = (left.y - left.x) * (right.y - right.x)
    b = (left.y + left.x) * (right.y + right.x)
    c = 2 * left.t * right.t * D
    d = 2 * left.z * right.z
    e, f, g, h = b - a, d - c, d + c, b + a
    return Point(e * f % P, g * h % P, f * g % P, e * h % P)


def times(number: int, point: Point) -> Point:
    total = Point(0, 1, 1, 0)
    while number:
        if number & 1:
            total = add(total, point)
        point = add(point, point)
        number >>= 1
    return total


def decode(data: bytes) -> Point | None:
    """A point from 32 bytes: y, and the parity of x in the last bit; None when there is none."""
    number = int.from_bytes(data, "little")
    y, odd = number & (2**255 - 1), number >> 255
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and odd):
        return None
    x = P - x if x & 1 != odd else x
    return Point(x, y, 1, x * y % P)


BASE = decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature is of these bytes by this key."""
    public, commitment = decode(key), decode(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if public is None or commitment is None or scalar >= ORDER or BASE is None:
        return False
    hashed = hashlib.sha512(signature[:32] + key + message).digest()
    left = times(scalar, BASE)
    right = add(commitment, times(int.from_bytes(hashed, "little") % ORDER, public))
    return (left.x * right.z - right.x * left.z) % P == 0 and (left.y * right.z - right.y * left.z) % P == 0


def check_signature(registry: Path, key: bytes, family: str | None) -> int:
    """Hold a registry to a key; gives the number of the commit that was signed."""
    folder = registry / "_signatures" / hashlib.sha256(key).hexdigest()
    path = folder / ("registry.json" if family is None else f"families/{family}.json")
    document = load_json(read_file(path, most_bytes=1 << 12, rule="R-SIGN-2"), most_bytes=1 << 12)
    check_record("signature", document, "signature")
    statement = document["statement"]
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    message = b"uws-1 signature\n" + text
    require(is_signed(key, message, bytes.fromhex(document["signature"])), "R-SIGN-2", "another's signature")
    own = json.loads((registry / "uws.json").read_bytes())["id"]
    require(
        (statement["registry"], statement.get("family")) == (own, family), "R-SIGN-2", "of something else"
    )
    read_log(registry)
    signed = commit_path(registry, statement["number"])
    require(signed.is_file(), "R-SIGN-2", "the log ends before")
    require(hashlib.sha256(signed.read_bytes()).hexdigest() == statement["sha256"], "R-SIGN-2", "another log")
    number: int = statement["number"]
    return number
