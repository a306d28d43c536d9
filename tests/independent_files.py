"""Files beside the weights, read from the specification alone."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from independent_arrays import read_array
from independent_documents import (
    Json,
    require,
)

FILE_NAME = r"([0-9]{1,2}_[A-Za-z]{1,40}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}\.(json|txt|model|jinja)"
DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)),
}


def check_files(document: dict[str, Json]) -> list[str]:
    """Check the names and sizes of a document's side files; give the names of its own."""
    records = document.get("files") or []
    own: list[str] = [record["name"] for record in records]
    names = own + (document.get("shared_files") or [])
    for name in names:
        require(re.fullmatch(FILE_NAME, name), "R-FILE-1", name)
        require(name.rpartition("/")[2].partition(".")[0].lower() not in DEVICES, "R-FILE-1", name)
    require(len({name.lower() for name in names}) == len(names), "R-FILE-2", "two files have one name")
    array = document.get("file_bytes")
    stored = sum(record["size"] for record in records)
    require(stored == (array["length"] if array else 0), "R-FILE-2", f"{stored} bytes of files")
    return own


def read_own_files(folder: Path, document: dict[str, Json]) -> dict[str, bytes]:
    """The side files that stand in a basis or a model itself."""
    data = read_array(folder, "files", document.get("file_bytes"), dtype="uint8").tobytes()
    found: dict[str, bytes] = {}
    for record in document.get("files") or []:
        found[record["name"]], data = data[: record["size"]], data[record["size"] :]
        digest = hashlib.sha256(found[record["name"]]).hexdigest()
        require(digest == record["sha256"], "R-FILE-3", f"{record['name']}: digest")
    return found
