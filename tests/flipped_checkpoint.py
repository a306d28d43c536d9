"""A checkpoint's file with a few bytes changed, read whole."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from uws_store.checkpoint import open_checkpoint
from uws_store.errors import UwsError


def kind_of_reading_flipped(path: Path, data: st.DataObject) -> str:
    """Change one to four bytes and read every tensor: the kind of the refusal, ``format/none`` where there is none.

    Any other exception comes out.
    """
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except UwsError as error:
        return error.kind
    return "format/none"
