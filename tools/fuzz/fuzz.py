"""Feed damaged bytes to every parser and decoder: ``python tools/fuzz/fuzz.py [--iterations N] [--flips N|all]``.

What was tried and found stands in ``spec/security.md``. With ``--coverage TARGET`` one target runs under atheris
(``pip install atheris``), guided by coverage, until it is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from flips import choose, damaged_reads
from mutate import mutate
from targets import TARGETS, VECTORS, Target

from uws_store.errors import UwsError

_HEADROOM_BYTES = 1 << 31
_SLOW_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit code is 1 when something was found."""
    parser = argparse.ArgumentParser(description="Fuzz every parser and decoder.")
    parser.add_argument("--iterations", type=int, default=2000, help="mutations per target (default: 2000)")
    parser.add_argument("--flips", default="8", help="bytes per stored object to flip, or all (default: 8)")
    parser.add_argument(
        "--registry", type=Path, default=VECTORS, help="whose bits are flipped (default: the vectors)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", help="some of: " + ", ".join(target.name for target in TARGETS))
    parser.add_argument("--coverage", metavar="TARGET", help="run one target under atheris")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if options.coverage:
        return _guided(next(target for target in TARGETS if target.name == options.coverage))
    _limit_memory()
    chosen = options.targets.split(",") if options.targets else [target.name for target in TARGETS]
    findings: list[str] = []
    for target in TARGETS:
        if target.name in chosen:
            findings += _fuzz(target, iterations=options.iterations, seed=options.seed)
    if options.flips != "0":
        per_object = None if options.flips == "all" else int(options.flips)
        started_s = time.perf_counter()
        outcomes, found = damaged_reads(
            choose(per_object=per_object, seed=options.seed, registry=options.registry),
            registry=options.registry,
        )
        findings += found
        print(
            f"flipped bits: {outcomes.total()} in {time.perf_counter() - started_s:.0f} s, {len(found)} findings"
        )
        for kind, count in outcomes.most_common():
            print(f"  {count:7} {kind}")
    for finding in findings[:20]:
        print(f"FOUND {finding}")
    return 1 if findings else 0


def _limit_memory() -> None:
    """Let the process grow by 2 GiB at most: what allocates by a number in a file fails."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not a file on a disk
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + _HEADROOM_BYTES, most))


def _fuzz(target: Target, *, iterations: int, seed: int) -> list[str]:
    source = random.Random(f"{seed} {target.name}")  # noqa: S311 - nothing secret
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    slowest_s = 0.0
    for data in target.seeds:
        target.run(data)  # a seed that is refused would fuzz nothing
    for _ in range(iterations):
        data = mutate(source.choice(target.seeds), target.seeds, source=source)
        # Of this process alone: how long a busy machine lets it wait is no finding.
        started_s = time.process_time()
        try:
            target.run(data)
        except UwsError as error:
            outcomes[error.kind] += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001 - this is the finding
            outcomes["FOUND"] += 1
            findings.append(f"{target.name}: {type(error).__name__}: {error!s:.200} from {data[:300]!r}")
        else:
            outcomes["read"] += 1
        slowest_s = max(slowest_s, time.process_time() - started_s)
    if slowest_s > _SLOW_S:
        findings.append(f"{target.name}: one input took {slowest_s:.1f} s of computing")
    kinds = ", ".join(f"{kind} {count}" for kind, count in outcomes.most_common(4))
    print(f"{target.name}: {iterations} inputs, {len(findings)} findings; {kinds}")
    return findings


def _guided(target: Target) -> int:
    import atheris  # noqa: PLC0415 - only here

    def one(data: bytes) -> None:
        with contextlib.suppress(UwsError):
            target.run(data)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], "-rss_limit_mb=4096"], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
