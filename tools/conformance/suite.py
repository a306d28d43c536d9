"""A conformance suite for readers of the format, in any language.

    python tools/conformance/suite.py write FOLDER
    python tools/conformance/suite.py run [--suite FOLDER] [--tier compact|exact] [--no-signatures] [--any-rule] -- COMMAND...

``write`` makes the cases: registries as folders, and ``cases.json`` that says of each what a reader does with it: the digests
of every tensor, or that it refuses, by which rule, under which kind of error, and where the damage lies. ``run`` starts COMMAND
once and writes one JSON line per case to its standard input:

    {"registry": PATH, "family": NAME, "task": NAME, "version": NUMBER, "tier": "compact" or "exact"}
    {"registry": PATH, "family": NAME or null, "key": 64 hexadecimal digits}

COMMAND answers the first with one JSON line: ``{"tensors": [{"name", "dtype", "shape", "sha256"}, ...]}`` in the model's order,
or ``{"refused": TEXT}``. The second holds the registry to an Ed25519 public key, for one family or for all; the answer is
``{"signed": NUMBER}``, of the commit, or a refusal. TEXT that is one of the specification's rules (``R-...``) or kinds
(``format/...``) is compared; other text is any refusal. An answer may take a minute. The exit code is 0 when every case passes.
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
VALID = ("registry", "groups", "whole", "files", "adapters", "packs")
REQUEST = ("registry", "family", "task", "version", "tier", "key")
READ = {"family": "vectors", "task": "exact", "version": 1}

Json = dict[str, Any]

__all__ = ["Reader", "judge", "run_suite", "write_suite"]


def write_suite(folder: Path) -> list[Json]:
    """Write every case below a new folder.

    Valid ones are the golden vectors; invalid ones are the damages of the tests, each with every digest above it made to
    fit, so that only the rule it names is broken.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    folder.mkdir(parents=True)
    cases: list[Json] = []
    for name in VALID:
        source = VECTORS / name
        expected = (
            source / "expected.json" if (source / "expected.json").is_file() else VECTORS / "expected.json"
        )
        shutil.copytree(source if name == "registry" else source / "registry", folder / f"valid-{name}")
        cases += _valid_cases(f"valid-{name}", json.loads(expected.read_text(encoding="utf-8"))["models"])
    cases += _invalid_cases(folder)
    cases += _invalid_packs(folder)
    cases += _signatures(folder)
    (folder / CASES_NAME).write_text(json.dumps(cases, indent=1, ensure_ascii=False), encoding="utf-8")
    return cases


def _valid_cases(registry: str, models: list[Json]) -> list[Json]:
    """What a reader gives for each model, at each tier that it has."""
    cases = []
    for model in models:
        for tier in ("compact", "exact"):
            tensors = [
                {"name": name, "dtype": held["dtype"], "shape": held["shape"], "sha256": held.get(tier)}
                for name, held in model["tensors"].items()
            ]
            if all(tensor["sha256"] for tensor in tensors):
                request = {name: model[name] for name in ("family", "task", "version")}
                cases.append(
                    {
                        "name": f"{registry}: {model['task']}@{model['version']} {tier}",
                        "registry": registry,
                        **request,
                        "tier": tier,
                        "tensors": tensors,
                    }
                )
    return cases


def _invalid_cases(folder: Path) -> list[Json]:
    """Damages to a registry whose models lie in folders."""
    from spec_damages import CASES  # noqa: PLC0415 - the damages stand beside the tests that hold them

    cases = []
    for number, case in enumerate(CASES):
        registry = folder / f"invalid-{number:03d}"
        shutil.copytree(VECTORS / "registry", registry)
        case.damage(registry)
        refused = {
            "rule": case.rule,
            "kind": case.kind,
            "where": _where(registry, VECTORS / "registry"),
        }
        cases.append(
            {"name": case.name, "registry": registry.name, **READ, "tier": case.tier, "refused": refused}
        )
    return cases


def _invalid_packs(folder: Path) -> list[Json]:
    """Damages to a registry whose models lie in packs."""
    from test_spec_packs import DAMAGES  # noqa: PLC0415 - likewise

    cases = []
    source = VECTORS / "packs" / "registry"
    for number, (name, damage, kind, rule) in enumerate(DAMAGES):
        registry = folder / f"invalid-pack-{number:03d}"
        shutil.copytree(source, registry)
        damage(registry)
        refused = {"rule": rule, "kind": kind, "where": _where(registry, source)}
        cases.append({"name": name, "registry": registry.name, **READ, "tier": "exact", "refused": refused})
    return cases


def _signatures(folder: Path) -> list[Json]:
    """Registries with a signature, to be held to its key."""
    from signature_support import CASES, NUMBER, PUBLIC, signed_registry  # noqa: PLC0415 - likewise

    cases = []
    for number, case in enumerate(CASES):
        registry = signed_registry(folder / f"signed-{number:03d}")
        case.change(registry)
        refused = {"rule": case.rule, "kind": case.kind, "where": case.where}
        expected: Json = {"refused": refused} if case.kind else {"signed": NUMBER}
        request = {"family": case.family, "key": PUBLIC.hex()}
        cases.append({"name": f"signature: {case.name}", "registry": registry.name, **request, **expected})
    return cases


def _where(registry: Path, source: Path) -> str:
    """The object that a damage lies in.

    It is the innermost of those that are not in the valid registry, or one that is gone; of commits the first, since
    those after it were made to fit.
    """

    def files(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "head"
        }

    def depth(path: str) -> tuple[int, bool, str]:
        return path.count("/"), "/models/" in path, path

    before, after = files(source), files(registry)
    known = set(before.values())
    changed = [path for path, data in after.items() if before.get(path) != data]
    fresh = [path for path in changed if after[path] not in known]
    gone = [path for path in before if path not in after and before[path] not in set(after.values())]
    candidates = fresh or gone or changed
    if candidates and all(path.startswith("_log/") for path in candidates):
        return min(candidates)
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
    if "signed" in case:
        if answer.get("signed") == case["signed"]:
            return None
        return f"commit {case['signed']} was signed, found {answer.get('signed')}"
    if answer.get("tensors") == case["tensors"]:
        return None
    found = {
        str(tensor.get("name")): tensor for tensor in answer.get("tensors", ()) if isinstance(tensor, dict)
    }
    for tensor in case["tensors"]:
        if found.get(tensor["name"]) != tensor:
            return f"{tensor['name']}: expected {tensor}, found {found.get(tensor['name'])}"
    return "the tensors are not in the model's order, or there are more"


def chosen(suite: Path, *, tier: str, signatures: bool) -> list[Json]:
    """Give the cases that a reader at a tier is put, with or without those of signatures."""
    cases: list[Json] = json.loads((suite / CASES_NAME).read_text(encoding="utf-8"))
    return [
        case
        for case in cases
        if (signatures if "key" in case else tier == "exact" or case["tier"] == "compact")
    ]


def run_suite(
    suite: Path, command: Sequence[str], *, tier: str, any_rule: bool, signatures: bool = True
) -> list[tuple[str, str]]:
    """Put every case of a tier to a reader; return the names of those that fail and why."""
    failed: list[tuple[str, str]] = []
    reader = Reader(command)
    try:
        for case in chosen(suite, tier=tier, signatures=signatures):
            request = {name: case[name] for name in REQUEST if name in case}
            answer = reader.ask({**request, "registry": str((suite / case["registry"]).resolve())})
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
    run.add_argument("--no-signatures", action="store_true", help="leave out the cases of signatures")
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
        signatures = not options.no_signatures
        failed = run_suite(
            suite, options.command, tier=options.tier, any_rule=options.any_rule, signatures=signatures
        )
        total = len(chosen(suite, tier=options.tier, signatures=signatures))
    for name, wrong in failed:
        print(f"FAILED {name}: {wrong}")
    print(f"{total - len(failed)} of {total} cases passed as a reader at {options.tier}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
