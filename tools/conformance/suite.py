"""A conformance suite for readers of the format, in any language.

    python tools/conformance/suite.py write FOLDER
    python tools/conformance/suite.py run [--suite FOLDER] [--tier compact|exact] [--any-rule] -- COMMAND...

``write`` makes the cases: registries as folders, and ``cases.json`` that says of each what a reader does with it: the digests
of every tensor, or that it refuses, by which rule, under which kind of error, and where the damage lies. ``run`` starts COMMAND
once and writes one JSON line per case to its standard input:

    {"registry": PATH, "family": NAME, "task": NAME, "version": NUMBER, "tier": "compact" or "exact"}

COMMAND answers each with one JSON line: ``{"tensors": [{"name", "dtype", "shape", "sha256"}, ...]}`` in the model's order, or
``{"refused": TEXT}``. TEXT that is one of the specification's rules (``R-...``) or kinds (``format/...``) is compared; other
text is any refusal. An answer may take a minute. The exit code is 0 when every case passes.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
VECTORS = ROOT / "spec" / "vectors" / "v1"
ANSWER_S = 60.0
CASES_NAME = "cases.json"

Json = dict[str, Any]

__all__ = ["Reader", "judge", "run_suite", "write_suite"]


def write_suite(folder: Path) -> list[Json]:
    """Write every case below a new folder.

    Valid ones are the golden vectors; invalid ones are the damages of ``tests/test_spec_invalid.py``, each with every
    digest above it made to fit, so that only the rule it names is broken.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from test_spec_invalid import CASES  # noqa: PLC0415 - the damages stand beside the tests that hold them

    folder.mkdir(parents=True)
    shutil.copytree(VECTORS / "registry", folder / "valid")
    cases: list[Json] = []
    for model in json.loads((VECTORS / "expected.json").read_text(encoding="utf-8"))["models"]:
        for tier in ("compact", "exact"):
            tensors = [
                {"name": name, "dtype": held["dtype"], "shape": held["shape"], "sha256": held.get(tier)}
                for name, held in model["tensors"].items()
            ]
            if all(tensor["sha256"] for tensor in tensors):
                cases.append(
                    {
                        "name": f"{model['task']}@{model['version']} {tier}",
                        "registry": "valid",
                        "family": model["family"],
                        "task": model["task"],
                        "version": model["version"],
                        "tier": tier,
                        "tensors": tensors,
                    }
                )
    for number, case in enumerate(CASES):
        registry = folder / f"invalid-{number:03d}"
        shutil.copytree(VECTORS / "registry", registry)
        case.damage(registry)
        cases.append(
            {
                "name": case.name,
                "registry": registry.name,
                "family": "vectors",
                "task": "exact",
                "version": 1,
                "tier": case.tier,
                "refused": {"rule": case.rule, "kind": case.kind, "where": _where(registry)},
            }
        )
    (folder / CASES_NAME).write_text(json.dumps(cases, indent=1, ensure_ascii=False), encoding="utf-8")
    return cases


def _where(registry: Path) -> str:
    """The object that a damage lies in: the innermost of those that are not in the valid registry, or one that is gone."""

    def files(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def depth(path: str) -> tuple[int, bool, str]:
        return path.count("/"), "/models/" in path, path

    before, after = files(VECTORS / "registry"), files(registry)
    known = set(before.values())
    changed = [path for path, data in after.items() if before.get(path) != data]
    fresh = [path for path in changed if after[path] not in known]
    gone = [path for path in before if path not in after and before[path] not in set(after.values())]
    candidates = fresh or gone or changed
    return max(candidates, key=depth) if candidates else ""


class Reader:
    """A reader under test: one process that answers line by line.

    Parameters
    ----------
    command : sequence of str
        What starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, request: Json) -> Json:
        """Put one request; what is no answer comes back as ``{"broken": why}``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=ANSWER_S)
        except BrokenPipeError:
            return {"broken": "the command has ended"}
        except queue.Empty:
            return {"broken": f"no answer within {ANSWER_S:.0f} s"}
        try:
            answer = json.loads(line)
        except ValueError:
            return {"broken": "the command has ended" if not line else f"no JSON: {line[:100]!r}"}
        return answer if isinstance(answer, dict) else {"broken": f"no JSON object: {line[:100]!r}"}

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def judge(case: Json, answer: Json, *, any_rule: bool) -> str | None:
    """Tell what is wrong with an answer; None when nothing is.

    Parameters
    ----------
    case : dict
        What is expected.
    answer : dict
        What came.
    any_rule : bool
        Take a refusal by another rule or kind for right, where several may be broken.
    """
    if "broken" in answer:
        return str(answer["broken"])
    expected = case.get("refused")
    refused = answer.get("refused")
    if expected is not None:
        if refused is None:
            return f"was read; {expected['rule']} is broken in {expected['where']}"
        named = str(refused)
        if (
            any_rule
            or not named.startswith(("R-", "format/"))
            or named in (expected["rule"], expected["kind"])
        ):
            return None
        return f"was refused as {named}, expected {expected['rule']} or {expected['kind']} in {expected['where']}"
    if refused is not None:
        return f"was refused: {refused}"
    if answer.get("tensors") == case["tensors"]:
        return None
    found = {
        str(tensor.get("name")): tensor for tensor in answer.get("tensors", ()) if isinstance(tensor, dict)
    }
    for tensor in case["tensors"]:
        if found.get(tensor["name"]) != tensor:
            return f"{tensor['name']}: expected {tensor}, found {found.get(tensor['name'])}"
    return "the tensors are not in the model's order, or there are more"


def run_suite(suite: Path, command: Sequence[str], *, tier: str, any_rule: bool) -> list[tuple[str, str]]:
    """Put every case of a tier to a reader; return the names of those that fail and why."""
    cases: list[Json] = json.loads((suite / CASES_NAME).read_text(encoding="utf-8"))
    failed: list[tuple[str, str]] = []
    reader = Reader(command)
    try:
        for case in cases:
            if tier == "compact" and case["tier"] != "compact":
                continue
            request = {name: case[name] for name in ("family", "task", "version", "tier")}
            answer = reader.ask({"registry": str((suite / case["registry"]).resolve()), **request})
            wrong = judge(case, answer, any_rule=any_rule)
            if wrong is not None:
                failed.append((case["name"], wrong))
            if "broken" in answer:
                reader.close()
                reader = Reader(command)
    finally:
        reader.close()
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description="Conformance suite for readers of the format.")
    commands = parser.add_subparsers(dest="action", required=True)
    write = commands.add_parser("write", help="write the cases into a new folder")
    write.add_argument("folder", type=Path)
    run = commands.add_parser("run", help="put the cases to a reader")
    run.add_argument("--suite", type=Path, help="folder that write made (default: made anew)")
    run.add_argument("--tier", choices=("compact", "exact"), default="exact", help="exact includes compact")
    run.add_argument("--any-rule", action="store_true", help="take any refusal of a damage for right")
    run.add_argument("command", nargs="+", help="what starts the reader, after --")
    options = parser.parse_args(arguments)
    if options.action == "write":
        print(f"wrote {len(write_suite(options.folder))} cases to {options.folder}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        suite = options.suite or Path(scratch) / "suite"
        if options.suite is None:
            write_suite(suite)
        failed = run_suite(suite, options.command, tier=options.tier, any_rule=options.any_rule)
        total = sum(
            options.tier == "exact" or case["tier"] == "compact"
            for case in json.loads((suite / CASES_NAME).read_text(encoding="utf-8"))
        )
    for name, wrong in failed:
        print(f"FAILED {name}: {wrong}")
    print(f"{total - len(failed)} of {total} cases passed as a reader at {options.tier}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
