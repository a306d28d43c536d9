"""Records of verifications: published whole or not at all, kept, moved, told, and never believed."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from cli_support import TASKS, make_small_zoo, run, run_well
from safetensors.torch import load_file, save_file
from storage_support import (
    CountingStorage,
    FaultyStorage,
    fail_before,
    found_family,
    next_models,
    processes,
    record_and_die,
    record_of,
)

from uws_store import UwsError, api
from uws_store.api import open_registry
from uws_store.errors import AlreadyExistsError, InvalidInputError, NotFoundError, StorageError
from uws_store.layout import verification_path
from uws_store.metadata.pending import PendingNote
from uws_store.registry import Registry, publish_verification, read_verification
from uws_store.registry.collect import collect
from uws_store.report import gather, render
from uws_store.storage import MemoryStorage

SCORE = """
def score(weights, task):
    value = float(weights["fc1.weight"].abs().sum())
    return {"metric": "size", "value": value, "higher_is_better": True, "n": 1}
"""


def digits(storage: MemoryStorage | CountingStorage) -> Registry:
    registry = Registry.over(storage, create=True)
    registry.publish(found_family())
    registry.publish(next_models("left"))
    return registry


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("zoo"), models=4)


@pytest.fixture(scope="module")
def made(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("registry") / "made"
    api.build(zoo, family="nets", registry=str(place), exact=True)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(made, tmp_path / "registry"))


def test_a_record_is_published_with_what_was_found(zoo: Path, place: str) -> None:
    before = open_registry(place).state()
    result = api.verify("nets", registry=place, against=zoo, record=True, signed_off_by=" Zoë ")
    registry = open_registry(place)
    state = registry.state()
    assert state.number == before.number + 1
    (entry,) = state.family("nets").verifications
    assert entry.digest == result.record
    assert (entry.ok, entry.commit) == (True, state.number)
    document = read_verification(registry.storage, "nets", entry)
    assert (document.commit, document.commit_sha256) == (before.number, before.sha256)
    assert (document.registry, document.signed_off_by) == (registry.document.id, "Zoë")
    assert (document.compared, document.evaluation) == (True, None)
    found = {verdict.task: verdict for verdict in result.models}
    assert [model.task for model in document.models] == sorted(found)
    for model in document.models:
        comparison = found[model.task].report.comparison
        assert comparison is not None
        assert model.comparison is not None
        assert (model.digest, model.tiers) == (found[model.task].digest, ("compact", "exact"))
        assert (model.comparison.rel_error, model.comparison.mean_rel_error, model.comparison.identical) == (
            comparison.rel_error,
            comparison.mean_rel_error,
            4,
        )
    path = Path(place) / verification_path("nets", entry.digest)
    assert entry.size_bytes == path.stat().st_size


def test_without_record_nothing_is_written(place: str) -> None:
    before = sorted(Path(place).rglob("*"))
    assert api.verify("nets", registry=place).record is None
    assert sorted(Path(place).rglob("*")) == before


def test_a_writer_killed_anywhere_leaves_no_record_or_a_whole_one(tmp_path: Path) -> None:
    registry = Registry.init(str(tmp_path / "registry"))
    registry.publish(found_family())
    registry.publish(next_models("left"))
    context = processes()
    outcomes: list[int] = []
    for point in range(0, 60, 2):
        writer = context.Process(target=record_and_die, args=(registry.url, point))
        writer.start()
        writer.join(400)
        opened = Registry.open(registry.url)
        held = opened.state().family("digits").verifications
        for entry in held:
            assert read_verification(opened.storage, "digits", entry).ok
        outcomes.append(len(held))
        if writer.exitcode == 0 or held:
            break
        assert writer.exitcode == -signal.SIGKILL
    assert outcomes[0] == 0
    assert outcomes[-1] == 1


def test_a_record_without_its_commit_is_garbage_and_can_be_published_again() -> None:
    faulty = FaultyStorage(MemoryStorage())
    registry = digits(faulty)
    document = record_of(registry)
    path = verification_path("digits", document.sha256())
    faulty.fault = fail_before
    with pytest.raises(StorageError):
        publish_verification(registry, document)
    assert faulty.size(path) is not None
    assert registry.state().family("digits").verifications == ()
    assert path in {removal.prefix for removal in collect(registry, dry_run=True).marked} or faulty.size(path)
    publish_verification(registry, document)
    assert [entry.digest for entry in registry.state().family("digits").verifications] == [document.sha256()]
    with pytest.raises(AlreadyExistsError) as caught:
        publish_verification(registry, document)
    assert caught.value.kind == "already-exists/verification"


def test_recording_costs_one_request_beyond_a_publication() -> None:
    counting = CountingStorage(MemoryStorage())
    registry = digits(counting)
    registry.state()
    counting.requests.clear()
    registry.publish(next_models("left"))
    publication = len(counting.requests)
    document = record_of(registry)
    counting.requests.clear()
    publish_verification(registry, document)
    assert len(counting.requests) == publication + 1
    counting.requests.clear()
    read_verification(counting, "digits", registry.state(refresh=False).family("digits").verifications[0])
    assert len(counting.requests) == 1


def test_a_family_has_the_newest_sixteen() -> None:
    registry = digits(MemoryStorage())
    digests = []
    for second in range(20):
        document = record_of(registry, time=f"2026-01-01T00:00:{second:02d}Z")
        publish_verification(registry, document)
        digests.append(document.sha256())
    held = registry.state().family("digits").verifications
    assert [entry.digest for entry in held] == digests[-16:]
    assert Registry.over(registry.storage).state().family("digits").verifications == held


def test_a_collector_keeps_what_the_family_has(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api.verify("nets", registry=place, record=True)
    registry = open_registry(place)
    document = record_of(registry, "nets")
    stray = verification_path("nets", document.sha256())
    registry.storage.put(stray, document.to_bytes())
    monkeypatch.setattr(sys.modules["uws_store.registry.collect"], "LEAST_GRACE_S", 0.0)
    collect(registry, grace_s=0.0)
    removed = collect(registry, grace_s=0.0).removed
    assert [removal.prefix for removal in removed] == [stray]
    assert api.verify("nets", registry=place).ok


def test_a_lease_may_hold_a_record() -> None:
    path = verification_path("nets", "0" * 64)
    note = PendingNote(kind="lease", prefixes=(path,))
    assert PendingNote.parse(note.to_bytes(), where="x").prefixes == (path,)


def test_records_move_with_the_whole_family_and_once(place: str) -> None:
    target = Registry.over(MemoryStorage(), create=True)
    first = api.verify("nets", registry=place, record=True).record
    api.push("nets", target, TASKS[0], registry=place)
    assert target.state().family("nets").verifications == ()
    api.push("nets", target, registry=place)
    second = api.verify("nets", registry=place, record=True, signed_off_by="second").record
    (moved,) = api.mirror(target, registry=place)
    assert moved.commits
    assert [entry.digest for entry in target.state().family("nets").verifications] == [first, second]
    assert api.push("nets", target, registry=place).commits == ()
    family, _ = api.show("nets", registry=target)
    assert family.verification is not None
    assert (family.verification.elsewhere, family.verification.unverified) == (True, ())
    assert api.verify("nets", registry=target).ok


def test_a_record_hides_no_damage(place: str) -> None:
    assert api.verify("nets", registry=place, record=True).ok
    shard = next((Path(place) / "families/nets/models").glob("*/core/c/0"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = api.verify("nets", registry=place, record=True)
    assert not found.ok
    family, _ = api.show("nets", registry=place)
    assert family.verification is not None
    assert not family.verification.ok
    assert len(family.verification.wrong) == 1
    with pytest.raises(UwsError):
        api.load_model("nets", family.verification.wrong[0], registry=place).materialize()


def test_a_damaged_record_is_a_problem_of_the_family(place: str) -> None:
    digest = api.verify("nets", registry=place, record=True).record
    assert digest is not None
    path = Path(place) / verification_path("nets", digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"true", b"True", 1))
    found = api.verify("nets", registry=place)
    assert [problem.kind for problem in found.problems] == ["format/digest"]


def test_paths_of_the_machine_stay_on_it(zoo: Path, place: str, tmp_path: Path) -> None:
    other = Path(shutil.copytree(zoo, tmp_path / "private-folder"))
    weights = load_file(other / f"{TASKS[0]}.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / f"{TASKS[0]}.safetensors")
    assert not api.verify("nets", registry=place, against=other, record=True).ok
    (path,) = (Path(place) / "families/nets/verifications").iterdir()
    (wrong,) = [model for model in json.loads(path.read_bytes())["models"] if not model["ok"]]
    assert wrong["problems"] == [{"kind": "incompatible/source", "where": f"{TASKS[0]}.safetensors"}]
    assert "private-folder" not in path.read_text()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"signed_off_by": "Jo"}, "invalid-input/signed-off-by"),
        ({"record": True, "signed_off_by": "a\x1b[2J"}, "invalid-input/signed-off-by"),
        ({"record": True, "signed_off_by": " "}, "invalid-input/signed-off-by"),
        ({"record": True, "signed_off_by": "x" * 201}, "invalid-input/signed-off-by"),
    ],
)
def test_a_name_that_signs_nothing_is_refused(place: str, options: dict[str, object], kind: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        api.verify("nets", registry=place, **options)  # type: ignore[arg-type]
    assert caught.value.kind == kind


def test_a_record_of_no_family_is_refused() -> None:
    registry = digits(MemoryStorage())
    with pytest.raises(NotFoundError):
        publish_verification(registry, record_of(registry, "other"))


def test_the_command_line_records_shows_logs_and_reports(zoo: Path, place: str, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCORE)
    options = ("--registry", place)
    ran = run_well(
        "verify", "nets", "--against", zoo, "--eval", f"{tmp_path / 'score.py'}:score",
        "--record", "--signed-off-by", "Jo <b>", "--json", *options,
    )  # fmt: skip
    digest = ran.document["record"]
    assert (Path(place) / verification_path("nets", digest)).is_file()
    assert run_well("verify", "nets", "--json", *options).document["record"] is None
    shown = run_well("show", "nets", *options).stdout
    assert "all as recorded" in shown
    assert "signed off by Jo <b>" in shown
    assert "not among them" not in shown
    assert "verified, all as recorded" in run_well("log", "nets", *options).stdout
    run_well("add", zoo / f"{TASKS[0]}.safetensors", "--family", "nets", "--task", "new", *options)
    assert "newest versions are not among them" in run_well("show", "nets", *options).stdout
    held = run_well("show", "nets", "--json", *options).document["families"][0]["family"]["verification"]
    assert (held["digest"], held["unverified"]) == (digest, ["new"])
    page = render(gather(open_registry(place), "nets"))
    assert "basis-free, same bits" in page
    assert "Jo &lt;b&gt;" in page
    assert digest in page
    assert "1 newest versions are not among them" in page


def test_a_broken_promise_is_recorded_and_the_exit_code_says_so(place: str) -> None:
    (shard, *_) = (Path(place) / "families/nets/models").glob("*/core/c/0")
    shard.unlink()
    ran = run("verify", "nets", "--record", "--json", "--registry", place)
    assert ran.code == 1
    assert not ran.document["ok"]
    family, _ = api.show("nets", registry=place)
    assert family.verification is not None
    assert family.verification.digest == ran.document["record"]
    assert not family.verification.ok
    assert "PROBLEMS FOUND" in run_well("log", "nets", "--registry", place).stdout
    page = render(gather(open_registry(place), "nets"))
    assert "Something was wrong" in page
    assert "format/missing-object" in page
    assert "PROBLEMS" in run_well("show", "nets", "--registry", place).stdout


@pytest.mark.filterwarnings(
    "ignore:Glyph:UserWarning"
)  # a task's name has a face that the plots' font has not
def test_a_report_on_groups_kept_whole_is_made() -> None:
    vectors = Path(__file__).resolve().parent.parent / "spec" / "vectors"
    for name in ("v1/groups", "v1/adapters", "v1/files", "v1/whole"):
        registry = Registry.open(str(vectors / name / "registry"))
        (family,) = registry.state().families
        assert "No verification is on record" in render(gather(registry, family))
