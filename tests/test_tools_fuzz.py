"""Damaged bytes into every parser and decoder: refused with a typed error or read, never a crash or wrong weights."""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parent.parent / "tools" / "fuzz"
sys.path.insert(0, str(FUZZ))

import flips  # noqa: E402 - a tool, found beside its folder
from mutate import mutate  # noqa: E402
from targets import DOCUMENTS, PACKED, ROOT, TARGETS, VECTORS, VERIFIED, files_below  # noqa: E402

from uws_store import metadata  # noqa: E402
from uws_store.errors import FormatError  # noqa: E402
from uws_store.metadata.document import Document  # noqa: E402
from uws_store.metadata.verification import VerificationDocument  # noqa: E402


def test_a_run_with_little_memory_finds_nothing() -> None:
    ran = subprocess.run(
        [sys.executable, str(FUZZ / "fuzz.py"), "--iterations", "150", "--flips", "0", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        # What may grow is the address space, of which each thread and each of malloc's arenas takes much: on a machine of
        # many cores there would be many.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(" 0 findings") == len(TARGETS)


def test_every_document_of_the_format_is_fuzzed() -> None:
    for module in pkgutil.iter_modules(metadata.__path__):
        importlib.import_module(f"{metadata.__name__}.{module.name}")
    ours = {cls for cls in Document.__subclasses__() if cls.__module__.startswith(f"{metadata.__name__}.")}
    assert set(DOCUMENTS) == ours
    assert set(DOCUMENTS.values()) <= {target.name for target in TARGETS}


def test_the_table_of_findings_names_every_target_once() -> None:
    text = (ROOT / "spec" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \|.*\|.*\|$", text[text.index("| target |") :], re.MULTILINE)[1:]
    named = [name for row in rows if "flipped" not in row for name in row.split(", ")]
    assert sorted(named) == sorted(target.name for target in TARGETS)


def test_mutated_documents_get_past_the_parser_of_json() -> None:
    (target,) = (target for target in TARGETS if target.name == DOCUMENTS[VerificationDocument])
    kinds = set()
    source = random.Random(3)
    for _ in range(200):
        try:
            target.run(mutate(target.seeds[0], target.seeds, source=source))
        except FormatError as error:
            kinds |= {problem.kind for problem in error.problems}
    assert kinds > {"format/missing-field", "format/type", "format/value"}


def test_a_bit_flipped_in_any_record_of_a_verification_is_refused() -> None:
    outcomes, findings = flips.damaged_reads(
        (
            flip
            for flip in flips.choose(per_object=2, seed=4, registry=VERIFIED)
            if "/verifications/" in flip.path
        ),
        registry=VERIFIED,
    )
    assert not findings
    # The log keeps the newest records in mind; those before are read by nobody.
    assert set(outcomes) == {"format/digest", "harmless"}
    assert outcomes["format/digest"] > 30


def test_a_bit_flipped_in_any_object_is_refused_or_harmless() -> None:
    outcomes, findings = flips.damaged_reads(flips.choose(per_object=1, seed=2))
    assert not findings
    assert outcomes.total() == len(files_below(VECTORS))
    assert outcomes["format/digest"] > 10
    assert outcomes["format/crc"] > 0


def test_a_bit_flipped_in_a_pack_is_refused_by_some_model_in_it() -> None:
    outcomes, findings = flips.damaged_reads(
        (flip for flip in flips.choose(per_object=12, seed=5, registry=PACKED) if "/packs/" in flip.path),
        registry=PACKED,
    )
    assert not findings
    assert outcomes["harmless"] == 0
    assert outcomes["format/digest"] > 10


def test_wrong_weights_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[dict[str, str]] = [{"a": "1"}, {"a": "2"}]
    monkeypatch.setattr(flips, "_read", lambda _files, only="": reads.pop(0))
    outcomes, findings = flips.damaged_reads([flips.Flip("uws.json", 0, 0)])
    assert len(findings) == 1
    assert "wrong: a" in findings[0]
    assert not outcomes


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_reads_its_seeds_and_its_seeds_are_mutated(target: object) -> None:
    from targets import Target  # noqa: PLC0415 - for the type alone

    assert isinstance(target, Target)
    source = random.Random(0)
    for seed in target.seeds:
        target.run(seed)
        assert any(mutate(seed, target.seeds, source=source) != seed for _ in range(5))
