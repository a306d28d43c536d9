"""Build a family in a process of its own, that memory can be measured of and that can be killed.

``python build_in_process.py SETTINGS``: a JSON object with zoo, registry, options, and perhaps small and held (the
bounds above which a zoo is streamed), bounds (others, by module and name) and kill_after (pieces of work after which the process kills itself).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import uws_store
from uws_store.basis import opened
from uws_store.builder import fit, members, memory, tiles
from uws_store.builder.work import WorkFolder


def build_in_process(
    zoo: Path,
    registry: Path,
    *,
    options: dict[str, Any],
    killed: bool = False,
    **settings: Any,
) -> dict[str, int]:
    """Build in another process and return what it tells; nothing when it is to be killed."""
    words = {"zoo": str(zoo), "registry": str(registry), "options": options, **settings}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        timeout=900,
    )
    if killed:
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)
        return {}
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told


class _Kept(WorkFolder):
    """Counts the pieces of the process, and ends it after some."""

    kill_after = -1
    made: WorkFolder

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _Kept.made = self

    def put(self, name: str, piece: bytes) -> None:
        super().put(name, piece)
        if self.kept == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    settings = json.loads(sys.argv[1])
    members.SMALL_ELEMENTS = settings.get("small", members.SMALL_ELEMENTS)
    fit._HELD_ELEMENTS = settings.get("held", fit._HELD_ELEMENTS)
    for module in (opened, memory, tiles):
        vars(module).update(settings.get("bounds", {}).get(module.__name__.rpartition(".")[2], {}))
    _Kept.kill_after = settings.get("kill_after", -1)
    vars(members)["WorkFolder"] = _Kept
    result = uws_store.build(
        settings["zoo"], family="f", registry=settings["registry"], **settings["options"]
    )
    told = {
        "projected": result.projected_memory_bytes,
        "peak": _peak_bytes() if Path("/proc/self/status").exists() else 0,
        "kept": _Kept.made.kept,
        "reused": _Kept.made.reused,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
