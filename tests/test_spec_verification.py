"""Records of verifications: both readers over the vectors, and what both refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_verification_vectors
import pytest
from independent_documents import Refusal, read_log, read_verification
from independent_log import read_from_checkpoint
from spec_support import VECTORS, Json, read_commits, to_json, write_commits
from test_spec_schemas import is_valid

from uws_store.errors import FormatError, UwsError
from uws_store.layout import verification_path
from uws_store.metadata.verification import VerificationDocument
from uws_store.registry import Registry
from uws_store.registry import read_verification as read_ours
from uws_store.registry.reading import replay

FOLDER = VECTORS / "verified"
REGISTRY = FOLDER / "registry"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_bytes())


def theirs(registry: Path, *, checkpoint: bool) -> dict[str, Any]:
    families = (read_from_checkpoint if checkpoint else read_log)(registry)
    names = ("digest", "size_bytes", "ok")
    return {
        name: [dict(zip(names, held, strict=True)) for held in family.verifications]
        for name, family in families.items()
    }


def test_both_readers_give_the_verifications_on_record() -> None:
    assert [len(held) for held in EXPECTED.values()] == [3, 16]
    assert theirs(REGISTRY, checkpoint=True) == EXPECTED
    assert theirs(REGISTRY, checkpoint=False) == EXPECTED
    opened = Registry.open(str(REGISTRY))
    assert make_verification_vectors.verifications_of(opened) == EXPECTED
    assert opened.audit() == ()
    log = replay(opened.storage, opened.state().number)
    assert log.families["beta"] == opened.state().families["beta"]


def test_both_readers_read_every_record() -> None:
    opened = Registry.open(str(REGISTRY))
    for name, family in read_log(REGISTRY).items():
        for held, entry in zip(
            family.verifications, opened.state().families[name].verifications, strict=True
        ):
            record = read_verification(REGISTRY, name, held)
            assert is_valid("verification", record)
            assert json.loads(read_ours(opened.storage, name, entry).to_bytes()) == record
            path = REGISTRY / verification_path(name, held[0])
            assert path.read_bytes() == to_json(record)


def test_what_is_written_today_is_what_was_written_then(tmp_path: Path) -> None:
    assert make_verification_vectors.main([str(tmp_path / "new")]) == 0
    assert make_verification_vectors.main([str(tmp_path / "new")]) == 2

    def files(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    assert files(tmp_path / "new") == files(FOLDER)


def newest(registry: Path) -> VerificationDocument:
    opened = Registry.open(str(registry))
    return read_ours(opened.storage, "alpha", opened.state().family("alpha").verifications[-1])


def edited(
    edit: Callable[[Json], object], *, action: dict[str, object] | None = None
) -> Callable[[Path], None]:
    """Change the newest record of alpha, and let the log name what it has become."""

    def damage(registry: Path) -> None:
        commits = read_commits(registry)[:5]
        named = commits[-1]["actions"][-1]
        folder = registry / "families" / "alpha" / "verifications"
        record = json.loads((folder / f"{named['digest']}.json").read_bytes())
        edit(record)
        data = to_json(record)
        named.update(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        named.update(action or {})
        (folder / f"{named['digest']}.json").write_bytes(data)
        rewrite(registry, commits)

    return damage


def rewrite(registry: Path, commits: list[Json]) -> None:
    for path in (registry / "_log").glob("0*.json"):
        path.unlink()
    (registry / "_log" / "head").unlink()
    for commit in commits:
        commit.pop("index", None)
        commit.pop("checkpoint", None)
    write_commits(registry, commits)


def stored(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Change the object of alpha's newest record."""

    def damage(registry: Path) -> None:
        digest = EXPECTED["alpha"][-1]["digest"]
        change(registry / "families" / "alpha" / "verifications" / f"{digest}.json")

    return damage


def logged(edit: Callable[[list[Json]], object]) -> Callable[[Path], None]:
    """Change the log."""

    def damage(registry: Path) -> None:
        commits = read_commits(registry)[:5]
        edit(commits)
        rewrite(registry, commits)

    return damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(bytes(data))


def model(index: int, **fields: object) -> Callable[[Json], object]:
    return lambda record: record["models"][index].update(fields)


def side(index: int, **fields: object) -> Callable[[Json], object]:
    return lambda record: record["models"][0]["scores"][0]["sides"][index].update(fields)


PROBLEM = {"kind": "format/digest", "where": "here"}
NOT_OK: dict[str, object] = {"ok": False}
CASES = [
    ("missing", stored(Path.unlink), "format/missing-object", "R-VERIFY-1"),
    ("flipped", stored(flip), "format/digest", "R-VERIFY-1"),
    ("longer", stored(lambda path: path.write_bytes(path.read_bytes() + b" ")), "format/size", "R-VERIFY-1"),
    ("length", edited(dict, action={"size_bytes": 2000}), "format/verification", "R-VERIFY-1"),
    ("family", edited(lambda record: record.update(family="beta")), "format/verification", "R-VERIFY-1"),
    ("outcome", edited(dict, action=NOT_OK), "format/verification", "R-VERIFY-1"),
    ("kind", edited(lambda record: record.update(kind="model")), "format/document", "R-JSON-7"),
    ("newer", edited(lambda record: record.update(uws=2)), "format/newer-version", "R-VERSION-1"),
    ("unknown field", edited(lambda record: record.update(proof="x")), "format/document", "R-JSON-6"),
    ("no commit", edited(lambda record: record.pop("commit")), "format/document", "R-JSON-7"),
    ("null", edited(lambda record: record.update(evaluation=None)), "format/document", "R-JSON-8"),
    ("commit 0", edited(lambda record: record.update(commit=0)), "format/document", "R-JSON-7"),
    ("signer", edited(lambda record: record.update(signed_off_by="a\x1b[2J")), "format/document", "R-JSON-7"),
    ("no signer", edited(lambda record: record.update(signed_off_by="")), "format/document", "R-JSON-7"),
    ("no models", edited(lambda record: record.update(models=[])), "format/document", "R-JSON-7"),
    ("task", edited(model(0, task="a\\b")), "format/document", "R-JSON-7"),
    ("tier", edited(model(0, tiers=["mean"])), "format/document", "R-JSON-7"),
    ("tiers", edited(model(0, tiers=["compact"] * 3)), "format/document", "R-JSON-7"),
    ("scores", edited(model(0, scores=[{}])), "format/document", "R-JSON-7"),
    (
        "error",
        edited(lambda record: record["models"][0]["comparison"].update(rel_error=-1)),
        "format/document",
        "R-JSON-7",
    ),
    ("side", edited(side(0, side="mine")), "format/document", "R-JSON-7"),
    ("value", edited(side(0, value="0.5")), "format/document", "R-JSON-7"),
    (
        "many problems",
        edited(lambda record: record.update(problems=[PROBLEM] * 17)),
        "format/document",
        "R-JSON-7",
    ),
    (
        "a long place",
        edited(lambda record: record.update(problems=[{**PROBLEM, "where": "x" * 1025}])),
        "format/document",
        "R-JSON-7",
    ),
    ("unsorted", edited(lambda record: record["models"].reverse()), "format/document", "R-VERIFY-2"),
    (
        "twice",
        edited(lambda record: record["models"].append(record["models"][-1])),
        "format/document",
        "R-VERIFY-2",
    ),
    ("ok with problems", edited(model(1, problems=[PROBLEM])), "format/document", "R-VERIFY-2"),
    ("not ok without", edited(model(1, ok=False)), "format/document", "R-VERIFY-2"),
    ("ok as a whole", edited(model(1, ok=False, problems=[PROBLEM])), "format/document", "R-VERIFY-2"),
    (
        "not ok as a whole",
        edited(lambda record: record.update(ok=False), action=NOT_OK),
        "format/document",
        "R-VERIFY-2",
    ),
    (
        "more problems",
        edited(model(1, ok=False, problems=[PROBLEM], more_problems=1)),
        "format/document",
        "R-VERIFY-2",
    ),
    ("side twice", edited(side(1, side="original")), "format/document", "R-VERIFY-2"),
    ("interval", edited(side(1, interval=[1, 0])), "format/document", "R-VERIFY-2"),
    (
        "no family",
        logged(lambda commits: commits[-1]["actions"][-1].update(family="gamma")),
        "format/log",
        "R-FOLD-3",
    ),
    (
        "named twice",
        logged(lambda commits: commits[-1]["actions"].append(commits[-1]["actions"][-1])),
        "format/log",
        "R-FOLD-12",
    ),
    ("action", logged(lambda commits: commits[-1]["actions"][-1].pop("ok")), "format/document", "R-JSON-7"),
]


@pytest.mark.parametrize(
    ("damage", "kind", "rule"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_both_readers_refuse(tmp_path: Path, damage: Callable[[Path], None], kind: str, rule: str) -> None:
    registry = Path(shutil.copytree(REGISTRY, tmp_path / "registry"))
    damage(registry)
    with pytest.raises(Refusal) as refused:
        read_verification(registry, "alpha", read_log(registry)["alpha"].verifications[-1])
    assert refused.value.rule == rule
    with pytest.raises(UwsError) as caught:
        newest(registry)
    assert caught.value.kind == kind


def test_a_record_too_long_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Registry.open(str(REGISTRY))
    monkeypatch.setattr(VerificationDocument, "max_bytes", 1000)
    with pytest.raises(FormatError) as caught:
        read_ours(opened.storage, "alpha", opened.state().family("alpha").verifications[-1])
    assert caught.value.kind == "format/size"


def test_families_without_records_are_written_as_before() -> None:
    snapshots = [
        path.read_bytes() for path in (VECTORS / "log" / "registry" / "_log" / "snapshots").iterdir()
    ]
    assert len(snapshots) > 2
    assert not any(b"verification" in data for data in snapshots)
