"""Build a family in a process of its own and print what it took: run by tests that measure memory or kill it.

``python build_in_process.py ZOO REGISTRY JSON-OF-OPTIONS [SMALL HELD]``; the last two shrink the bounds above which a
zoo is streamed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import uws_store
from uws_store.builder import fit, members


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    zoo, registry, options, *bounds = sys.argv[1:]
    if bounds:
        members.SMALL_ELEMENTS, fit._HELD_ELEMENTS = map(int, bounds)
    result = uws_store.build(zoo, family="f", registry=registry, **json.loads(options))
    sys.stdout.write(json.dumps({"projected": result.projected_memory_bytes, "peak": peak_bytes()}) + "\n")


if __name__ == "__main__":
    main()
