"""Running the command line inside a test, and a zoo of networks of 5,282 parameters to run it on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from zoo_support import make_zoo

from uws_store.cli import PROGRAM

SHAPES = {"fc1.weight": (64, 48), "fc1.bias": (64,), "fc2.weight": (32, 64), "fc2.bias": (32,)}
MODELS = 8
TASKS = [f"task-{index:02d}" for index in range(MODELS)]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document that is all of stdout."""
        return json.loads(self.stdout)

    @property
    def error_kind(self) -> str:
        """The kind of the error that was told on stderr."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error [")]
        assert len(lines) == 1, self.stderr
        return lines[0].removeprefix("error [").partition("]")[0]


def run(*arguments: object) -> Ran:
    """Run the program in this process."""
    result = CliRunner().invoke(PROGRAM, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    return Ran(result.exit_code, result.stdout, result.stderr)


def run_well(*arguments: object) -> Ran:
    """Run the program and see it succeed."""
    ran = run(*arguments)
    assert ran.code == 0, ran
    return ran


def make_small_zoo(folder: Path, *, models: int = MODELS, seed: int = 0) -> Path:
    """Make networks that share a base and the subspaces of their changes."""
    return make_zoo(folder, models=models, shapes=SHAPES, seed=seed)
