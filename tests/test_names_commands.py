"""Aliases, withdrawals, history, comparison and search, from the command line down to the log."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from safetensors.torch import load_file, save_file
from zoo_support import snapshot

from uws_store import api
from uws_store.errors import InvalidInputError, NotFoundError
from uws_store.registry import Registry


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    zoo = make_small_zoo(folder / "zoo", models=3)
    registry = folder / "registry"
    run_well("build", zoo, "--family", "mlp", "--registry", registry, "--exact")
    weights = {name: value * 1.5 for name, value in load_file(zoo / "task-01.safetensors").items()}
    save_file(weights, folder / "other.safetensors", {"licence": "CC0-1.0", "base": "x=y"})
    run_well(
        "add", folder / "other.safetensors", "--family", "mlp", "--task", "task-01", "--registry", registry
    )
    return folder


@pytest.fixture
def registry(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "registry", tmp_path / "registry"))


class TestAliases:
    def test_an_alias_is_set_moved_and_removed(self, registry: Path) -> None:
        first = api.set_alias("mlp", "task-01@1", "prod", registry=str(registry))
        assert (first.version, first.before, first.commit) == (1, None, 3)
        moved = api.set_alias("mlp", "task-01", "prod", registry=str(registry))
        assert (moved.version, moved.before, moved.commit) == (2, 1, 4)
        assert Registry.open(str(registry)).resolve("mlp", "task-01", revision="prod").version == 2
        gone = api.remove_alias("mlp", "task-01", "prod", registry=str(registry))
        assert (gone.version, gone.before) == (None, 2)
        with pytest.raises(NotFoundError):
            Registry.open(str(registry)).resolve("mlp", "task-01", revision="prod")

    def test_an_alias_that_stands_already_makes_no_commit(self, registry: Path) -> None:
        api.set_alias("mlp", "task-01", "prod", registry=str(registry))
        before = snapshot(registry)
        again = api.set_alias("mlp", "task-01@2", "prod", registry=str(registry))
        assert (again.version, again.commit) == (2, None)
        assert snapshot(registry) == before

    def test_an_alias_may_be_set_from_another(self, registry: Path) -> None:
        run_well("alias", "mlp/task-01@1", "staging", "--registry", registry)
        ran = run_well("alias", "mlp/task-01@staging", "prod", "--registry", registry, "--json")
        assert ran.document["version"] == 1

    @pytest.mark.parametrize(
        ("arguments", "kind"),
        [
            (("mlp/task-09", "prod"), "not-found/task"),
            (("mlp/task-01@7", "prod"), "not-found/version"),
            (("mlp/task-01", "7"), "invalid-input/action"),
            (("mlp/task-01", "none", "--remove"), "not-found/version"),
            (("mlp", "prod"), "invalid-input/usage"),
        ],
    )
    def test_what_cannot_be_is_refused(self, registry: Path, arguments: tuple[str, ...], kind: str) -> None:
        before = snapshot(registry)
        ran = run("alias", *arguments, "--registry", registry)
        assert (ran.code, ran.error_kind) == (2, kind)
        assert snapshot(registry) == before


class TestDeleting:
    def test_a_withdrawn_version_is_gone_and_its_number_is_not_used_again(
        self, registry: Path, built: Path
    ) -> None:
        ran = run_well("delete", "mlp/task-01@2", "--registry", registry, "--json")
        assert ran.document["versions"] == [2]
        assert Registry.open(str(registry)).resolve("mlp", "task-01").version == 1
        added = api.add(built / "other.safetensors", family="mlp", task="task-01", registry=str(registry))
        assert added.model.version == 3

    def test_no_object_is_removed(self, registry: Path) -> None:
        before = snapshot(registry / "families")
        run_well("delete", "mlp/task-01", "--registry", registry)
        assert snapshot(registry / "families") == before

    def test_what_an_alias_stands_for_is_kept_unless_asked(self, registry: Path) -> None:
        api.set_alias("mlp", "task-01@1", "prod", registry=str(registry))
        for name in ("task-01", "task-01@1"):
            with pytest.raises(InvalidInputError) as caught:
                api.delete("mlp", name, registry=str(registry))
            assert caught.value.kind == "invalid-input/aliased"
        result = api.delete("mlp", "task-01", with_aliases=True, registry=str(registry))
        assert (result.versions, result.aliases) == ((1, 2), ("prod",))
        assert "task-01" not in api.open_family("mlp", registry=str(registry)).tasks()

    def test_a_task_is_not_withdrawn_twice(self, registry: Path) -> None:
        run_well("delete", "mlp/task-02", "--registry", registry)
        assert run("delete", "mlp/task-02", "--registry", registry).error_kind == "not-found/version"


class TestHistory:
    def test_commits_are_told_newest_first_and_by_what_they_concern(self, registry: Path) -> None:
        api.set_alias("mlp", "task-01@1", "prod", registry=str(registry))
        api.delete("mlp", "task-02", registry=str(registry))
        numbers = [entry.number for entry in api.history(registry=str(registry))]
        assert numbers == [4, 3, 2, 1]
        told = [entry.changes for entry in api.history("mlp", "task-01", registry=str(registry))]
        assert told == [
            ("mlp/task-01: alias prod is 1",),
            ("mlp/task-01@2 published",),
            ("mlp/task-01@1 published",),
        ]
        assert len(list(api.history("mlp", limit=2, registry=str(registry)))) == 2

    def test_a_changed_commit_is_noticed(self, registry: Path) -> None:
        opened = Registry.open(str(registry))
        opened.state()
        path = registry / "_log" / f"{2:020d}.json"
        path.chmod(0o644)
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(Exception, match="tampered"):
            list(opened.history())

    def test_the_commands_show_it(self, registry: Path) -> None:
        assert "mlp/task-01@2 published" in run_well("log", "--registry", registry).stdout
        assert run_well("log", "mlp", "--registry", registry, "--quiet").stdout == "2\n1\n"
        assert run("log", "none", "--registry", registry).error_kind == "not-found/family"


class TestDiff:
    def test_a_model_does_not_differ_from_itself(self, registry: Path) -> None:
        result = api.diff(("mlp", "task-00"), ("mlp", "task-00"), registry=str(registry))
        assert result.same_objects
        assert result.distance == 0
        assert {tensor.state for tensor in result.tensors} == {"same"}

    def test_the_distance_is_that_of_the_weights(self, registry: Path) -> None:
        result = api.diff(("mlp", "task-01@1"), ("mlp", "task-01@2"), tier="compact", registry=str(registry))
        # The second is the first times 1.5, stored with an error of a few percent of the change.
        assert result.distance == pytest.approx(0.5, abs=0.03)
        assert {tensor.state for tensor in result.tensors} == {"changed"}
        shown = run_well("diff", "mlp/task-01@1", "mlp/task-01@2", "--registry", registry).stdout
        assert "fc1.weight" in shown
        assert "no object is shared" in shown

    def test_a_tier_that_one_has_not_is_refused(self, registry: Path) -> None:
        ran = run("diff", "mlp/task-01@1", "mlp/task-01@2", "--tier", "exact", "--registry", registry)
        assert ran.error_kind == "fidelity/no-exact-tier"


class TestSearch:
    @pytest.mark.parametrize(
        ("conditions", "tasks"),
        [
            (("dtype=F32",), ["task-00", "task-01", "task-02"]),
            (("dtype=F16",), []),
            (("licence=CC0-1.0",), ["task-01"]),
            (("base=x=y",), ["task-01"]),
            (("licence!=CC0-1.0",), ["task-00", "task-02"]),
            (("metadata.licence=CC0-1.0", "version>=2"), ["task-01"]),
            (("exact=yes",), ["task-00", "task-02"]),
            (("rel_error<=1", "rel_error>=0"), ["task-00", "task-01", "task-02"]),
            (("rel_error>1",), []),
            (("score.accuracy>0",), []),
        ],
    )
    def test_models_are_found_by_their_records(
        self, registry: Path, conditions: tuple[str, ...], tasks: list[str]
    ) -> None:
        found = api.list_models(where=conditions, registry=str(registry))
        assert [entry.task for entry in found] == tasks

    def test_models_are_found_by_their_alias_and_their_source(self, registry: Path) -> None:
        api.set_alias("mlp", "task-02", "prod", registry=str(registry))
        assert [entry.task for entry in api.list_models(where=["alias=prod"], registry=str(registry))] == [
            "task-02"
        ]
        (model,) = api.show("mlp", "task-02", registry=str(registry))[1]
        beginning = model.lineage.source_sha256[:12]
        ran = run_well("list", "--where", f"source={beginning}", "--registry", registry, "--quiet")
        assert ran.stdout == "mlp/task-02\n"

    @pytest.mark.parametrize("text", ["", "dtype", "=F32", "rel_error<=small"])
    def test_what_is_no_condition_is_refused(self, registry: Path, text: str) -> None:
        assert run("list", "--where", text, "--registry", registry).error_kind == "invalid-input/where"


def test_a_model_tells_where_it_comes_from(registry: Path) -> None:
    api.set_alias("mlp", "task-01", "prod", registry=str(registry))
    (model,) = api.show("mlp", "task-01@prod", registry=str(registry))[1]
    lineage = model.lineage
    assert dict(lineage.source_metadata) == {"licence": "CC0-1.0", "base": "x=y"}
    assert lineage.basis_models == 3
    assert lineage.basis_tool.startswith("uws-store")
    assert "fidelity" in dict(lineage.basis_options)
    assert (lineage.commit, lineage.aliases) == (2, ("prod",))
    shown = run_well("show", "mlp/task-01", "--registry", registry).stdout
    for text in (lineage.source_sha256, lineage.basis_digest, lineage.basis_sources, "CC0-1.0"):
        assert text in shown
