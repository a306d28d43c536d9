"""The conformance table names every rule of the specification once, and only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import spec_damages

TESTS = Path(__file__).resolve().parent
SPEC = TESTS.parent / "spec"
RULE = re.compile(r"R-[A-Z]+-[0-9]+")
TABLE = dict(
    re.findall(
        r"(?m)^\| (R-[A-Z]+-[0-9]+) \| (.+) \|$", (SPEC / "conformance.md").read_text(encoding="utf-8")
    )
)
TEXT = (SPEC / "uws-1.md").read_text(encoding="utf-8")
DEFINED = re.findall(r"\*\*\[(R-[A-Z]+-[0-9]+)\]\*\*", TEXT)


def test_every_rule_is_defined_once_and_has_a_row() -> None:
    assert len(DEFINED) == len(set(DEFINED)) > 90
    assert list(TABLE) == DEFINED
    rows = re.findall(r"(?m)^\| R-", (SPEC / "conformance.md").read_text(encoding="utf-8"))
    assert len(rows) == len(TABLE)


def test_every_obligation_stands_under_a_rule() -> None:
    """MUST binds only where an id can name it; the first section says what the word means."""
    body = TEXT.split("## 1. Terms", 1)[1]
    for paragraph in re.split(r"\n(?=- |\n|#)", body):
        if "MUST" in paragraph and not paragraph.startswith("\n  "):
            assert re.match(r"\s*- \*\*\[R-", paragraph), paragraph


def test_every_row_names_tests_that_exist() -> None:
    for rule, where in TABLE.items():
        named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", where)
        assert named, rule
        assert re.sub(r"`[^`]+`", "", where).strip(", ") == "", rule
        for file, test in named:
            assert not test or f"def {test}(" in (TESTS / file).read_text(encoding="utf-8"), (
                f"{rule}: {file}::{test}"
            )
            assert (TESTS / file).is_file(), rule


def test_rules_that_are_said_to_be_refused_are_in_the_table_of_damages() -> None:
    refused = {case.rule for case in spec_damages.CASES}
    assert refused <= set(DEFINED)
    assert len(refused) > 45
    for rule in refused:
        assert "test_spec_invalid.py" in TABLE[rule] or "test_spec_reader.py" in TABLE[rule], rule


def test_the_independent_reader_names_only_rules_there_are() -> None:
    for path in TESTS.glob("independent_*.py"):
        assert set(RULE.findall(path.read_text(encoding="utf-8"))) <= set(DEFINED), path.name


def test_every_rule_by_which_the_independent_reader_refuses_has_a_damage() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("independent_*.py"))
    tables = [
        TESTS / f"test_{name}.py"
        for name in (
            "spec_invalid",
            "spec_log",
            "spec_files",
            "spec_adapters",
            "spec_packs",
            "spec_verification",
            "exact_whole",
        )
    ]
    tables += [TESTS / "signature_support.py", TESTS / "spec_damages.py"]
    tried = set(RULE.findall("".join(path.read_text(encoding="utf-8") for path in tables)))
    assert set(RULE.findall(text)) - tried == set()


def test_kinds_of_errors_in_the_table_of_damages_are_in_the_specification() -> None:
    section = TEXT.split("## 17. Kinds of errors", 1)[1]
    for case in spec_damages.CASES:
        assert f"`{case.kind}`" in section, case.kind
