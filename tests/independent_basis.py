"""A basis, read from the specification (section 7) alone: its table, and its factors and mean."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from independent_adapters import (
    check_products,
    products_of,
)
from independent_arithmetic import (
    Coded,
    Ints,
    make_side,
    matrix_of,
    side_counts,
)
from independent_arrays import read_array, read_group
from independent_documents import (
    KINDS,
    Json,
    Refusal,
    require,
)
from independent_files import check_files

BASIS_ARRAYS = {
    **dict.fromkeys(("left", "right", "exponents", "profile"), "int16"),
    "mean": "int32",
    "shared": "uint8",
}


def check_table(tensors: list[dict[str, Json]]) -> None:
    by_name = {row["name"]: row for row in tensors}
    require(len(by_name) == len(tensors), "R-BASIS-2", "a name stands twice")
    groups: set[int] = set()
    for row in tensors:
        require(math.prod(row["shape"]) <= 2**42, "R-BASIS-3", "elements")
        coded = row["mode"] == "coded"
        for name in ("mean_grid", "shift", "group"):
            require((row.get(name) is not None) == coded, "R-BASIS-3", f"{row['name']}: {name}")
        require((row.get("tied_to") is not None) == (row["mode"] == "tied"), "R-BASIS-5", row["name"])
        if coded:
            require(math.prod(row["shape"]) and KINDS[row["dtype"]].precision, "R-BASIS-3", row["name"])
            groups.add(row["group"])
        for side, extent in zip(("left", "right"), matrix_of(row["shape"]), strict=True):
            if (found := row.get(side)) is not None:
                require(coded, "R-BASIS-3", row["name"])
                require(found["rank"] <= found["block"] <= extent, "R-FACTOR-1", row["name"])
        if row["mode"] == "tied":
            target = by_name.get(row["tied_to"])
            good = target is not None and target["mode"] != "tied" and target["shape"] == row["shape"]
            require(good, "R-BASIS-5", row["name"])
    require(groups == set(range(len(groups))), "R-BASIS-4", "groups")
    check_products(tensors)


class Basis:
    """A basis, read whole."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.document = read_group(folder, digest=digest, most_bytes=64 << 20, kind="basis_document")
        self.rows: list[dict[str, Json]] = self.document["tensors"]
        check_table(self.rows)
        check_files(self.document)
        coded = [row for row in self.rows if row["mode"] == "coded"]
        coded.sort(key=lambda row: row["group"])  # stable: by group, then by table
        self.shared: dict[str, tuple[int, int]] = {}
        at = 0
        for row in self.rows:
            if row["mode"] == "shared":
                size = math.prod(row["shape"]) * KINDS[row["dtype"]].size
                self.shared[row["name"]] = (at, at + size)
                at += size
        self._check_lengths(coded, at)
        arrays = {
            name: read_array(folder, name, self.document.get(name), dtype=dtype)
            for name, dtype in BASIS_ARRAYS.items()
        }
        self.shared_bytes = arrays["shared"].tobytes()
        self.coded = self._join(coded, arrays)
        self.products = products_of(self.rows)
        self.groups = [
            [name for name, tensor in self.coded.items() if tensor.row["group"] == group]
            for group in range(len({row["group"] for row in coded}))
        ]

    def _check_lengths(self, coded: list[dict[str, Json]], shared: int) -> None:
        needed = dict.fromkeys(BASIS_ARRAYS, 0) | {"shared": shared}
        groups: dict[int, int] = {}
        for row in coded:
            m, n = matrix_of(row["shape"])
            (left, p), (right, q) = side_counts(row.get("left"), m), side_counts(row.get("right"), n)
            needed["mean"] += m * n
            needed["left"] += left
            needed["right"] += right
            needed["exponents"] += (p if row.get("left") else 0) + (q if row.get("right") else 0)
            needed["profile"] += p + q
            groups[row["group"]] = groups.get(row["group"], 0) + p * q
        for name, length in needed.items():
            array = self.document.get(name)
            require((array["length"] if array else 0) == length, "R-BASIS-6", f"{name} needs {length}")
        chunk = self.document["core_chunk"]
        length = sum(-(-count // chunk) * chunk for count in groups.values())
        require(self.document["core_length"] == length, "R-CORE-2", f"the core needs {length}")

    def _join(self, coded: list[dict[str, Json]], arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Coded]:
        at = dict.fromkeys(arrays, 0)

        def take(name: str, count: int) -> Ints:
            at[name] += count
            return arrays[name][at[name] - count : at[name]].astype(np.int64)

        joined: dict[str, Coded] = {}
        for row in coded:
            m, n = matrix_of(row["shape"])
            left, right = row.get("left"), row.get("right")
            (left_count, p), (right_count, q) = side_counts(left, m), side_counts(right, n)
            mean = take("mean", m * n).reshape(m, n)
            left_side = make_side(left, m, take("left", left_count), take("exponents", p if left else 0))
            right_side = make_side(right, n, take("right", right_count), take("exponents", q if right else 0))
            rows, columns = take("profile", p), take("profile", q)
            widest = max(int(np.abs(rows).max()), int(np.abs(columns).max()))
            require(widest <= 8191, "R-CORE-4", f"class {widest}")
            joined[row["name"]] = Coded(
                row,
                (m, n),
                (p, q),
                mean,
                left_side,
                right_side,
                (rows[:, None] + columns[None, :]).reshape(-1),
            )
        return joined


def unpack(text: str, *, rule: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refusal(rule, "not base64") from error
