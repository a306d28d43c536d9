"""A family of which records are missing or damaged: what is left is shown, what is not is named, the exit code tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well

from uws_store import api
from uws_store.errors import FormatError
from uws_store.layout import GROUP_PATH, basis_prefix, verification_path
from uws_store.registry import ModelEntry, Registry


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partial")
    zoo = make_small_zoo(folder / "zoo", models=4)
    api.build(zoo, family="mlp", registry=str(folder / "registry"))
    api.verify("mlp", registry=str(folder / "registry"), record=True)
    return folder / "registry"


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "registry"))


def entry_of(place: Path, task: str) -> ModelEntry:
    return Registry.open(str(place)).resolve("mlp", task)


def damage(place: Path) -> dict[str, str]:
    """Take a model's record away and damage another's; gives the kind of each problem."""
    (place / entry_of(place, "task-01").prefix / GROUP_PATH).unlink()
    path = place / entry_of(place, "task-02").prefix / GROUP_PATH
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    return {"task-01@1": "format/missing-object", "task-02@1": "format/digest"}


def test_show_tells_the_rest_of_a_family_and_names_what_is_missing(place: Path) -> None:
    expected = damage(place)
    ran = run("show", "mlp", "--json", "--registry", place)
    assert ran.code == 1
    (held,) = ran.document["families"]
    assert [model["task"] for model in held["models"]] == ["task-00", "task-03"]
    assert {problem["loc"]: problem["kind"] for problem in held["family"]["problems"]} == expected
    text = run("show", "mlp", "--registry", place)
    assert text.code == 1
    assert "2 problems" in text.stdout
    assert all(f"{where}: " in text.stdout and kind in text.stdout for where, kind in expected.items())
    assert "task-03" in text.stdout
    quiet = run("show", "mlp", "--quiet", "--registry", place)
    assert (quiet.code, quiet.stdout.split()) == (1, ["mlp/task-00@1", "mlp/task-03@1"])


def test_one_model_whose_record_is_damaged_is_an_error_and_the_others_are_not(place: Path) -> None:
    damage(place)
    for task, kind in (("task-01", "format/missing-object"), ("task-02", "format/digest")):
        ran = run("show", f"mlp/{task}", "--registry", place)
        assert (ran.code, ran.error_kind) == (2, kind)
    assert run_well("show", "mlp/task-03", "--registry", place).stdout


def test_verify_and_show_agree_on_what_is_damaged(place: Path) -> None:
    expected = damage(place)
    verdicts = api.verify("mlp", registry=str(place)).models
    found = {
        f"{verdict.task}@{verdict.version}": problem.kind
        for verdict in verdicts
        for problem in verdict.report.problems
    }
    assert (
        found
        == expected
        == {problem.loc: problem.kind for problem in api.show("mlp", registry=str(place))[0].problems}
    )


def test_a_family_without_a_basis_or_a_verification_that_can_be_read_is_named_too(place: Path) -> None:
    state = Registry.open(str(place)).state().families["mlp"]
    basis = place / basis_prefix("mlp", state.bases[1].digest) / GROUP_PATH
    basis.write_bytes(basis.read_bytes()[:-1])
    path = verification_path("mlp", state.verifications[-1].digest)
    (place / path).write_bytes(b"{}")
    summary, models = api.show("mlp", registry=str(place))
    assert models == ()
    assert [problem.loc for problem in summary.problems] == [
        *(f"task-{number:02}@1" for number in range(4)),
        path,
    ]
    assert summary.verification is None


def test_a_family_that_is_whole_has_no_problems(place: Path) -> None:
    ran = run_well("show", "mlp", "--json", "--registry", place)
    assert ran.document["families"][0]["family"]["problems"] == []


def test_no_card_is_written_for_half_a_family(place: Path) -> None:
    damage(place)
    with pytest.raises(FormatError) as caught:
        api.card("mlp", registry=str(place))
    assert caught.value.kind == "format/missing-object"
    assert len(caught.value.problems) == 2


def test_a_report_shows_the_rest_and_names_what_is_missing(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="a report needs the extra")
    expected = damage(place)
    page = tmp_path / "page.html"
    ran = run("report", "mlp", "-o", page, "--json", "--registry", place)
    assert ran.code == 1
    assert {problem["loc"]: problem["kind"] for problem in ran.document["problems"]} == expected
    text = page.read_text(encoding="utf-8")
    assert "Not everything could be read" in text
    assert all(where in text and kind in text for where, kind in expected.items())
    assert "task-03" in text
    told = run("report", "mlp", "-o", page, "--overwrite", "--registry", place)
    assert told.code == 1
    assert "2 problems" in told.stdout


def test_a_report_of_a_family_whose_basis_is_gone_is_a_page_all_the_same(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="a report needs the extra")
    state = Registry.open(str(place)).state().families["mlp"]
    (place / basis_prefix("mlp", state.bases[1].digest) / GROUP_PATH).unlink()
    page = tmp_path / "page.html"
    ran = run("report", "mlp", "-o", page, "--json", "--registry", place)
    assert ran.code == 1
    assert [problem["loc"] for problem in ran.document["problems"]] == [
        "basis r1",
        *(f"task-{number:02}@1" for number in range(4)),
    ]
    assert "basis r1" in page.read_text(encoding="utf-8")


def test_a_report_of_a_family_that_is_whole_names_nothing(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="a report needs the extra")
    ran = run_well("report", "mlp", "-o", tmp_path / "page.html", "--json", "--registry", place)
    assert ran.document["problems"] == []
    assert "Not everything" not in (tmp_path / "page.html").read_text(encoding="utf-8")
