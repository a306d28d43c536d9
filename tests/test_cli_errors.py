"""What the command line refuses: with which kind and exit code, and that nothing was changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from cli_support import make_small_zoo, run, run_well
from safetensors.torch import save_file
from zoo_support import snapshot

from uws_store.cli import look


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    make_small_zoo(folder / "zoo", models=3)
    run_well("build", folder / "zoo", "--family", "mlp", "--registry", folder / "registry")
    return folder


@pytest.fixture
def zoo(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "zoo", tmp_path / "zoo"))


def refused(registry: Path, *arguments: object) -> str:
    """Run what is refused, in words and as JSON; give its kind. The registry stays as it was."""
    before = snapshot(registry)
    ran = run(*arguments, "--registry", registry)
    assert (ran.code, ran.stdout) == (2, "")
    as_json = run(*arguments, "--registry", registry, "--json")
    assert as_json.code == 2
    error = as_json.document["error"]
    assert set(error) == {"kind", "message", "problems"}
    assert error["kind"] == ran.error_kind == as_json.error_kind
    assert error["message"] in as_json.stderr
    assert snapshot(registry) == before
    return ran.error_kind


class TestZoos:
    def test_a_zoo_that_is_not_there(self, built: Path, tmp_path: Path) -> None:
        assert refused(built / "registry", "build", tmp_path / "none", "--family", "new") == "not-found/zoo"

    def test_an_empty_zoo(self, built: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        kind = refused(built / "registry", "build", tmp_path / "empty", "--family", "new")
        assert kind == "invalid-input/empty-zoo"

    def test_a_zoo_of_one_model(self, built: Path, tmp_path: Path) -> None:
        zoo = make_small_zoo(tmp_path / "one", models=1)
        kind = refused(built / "registry", "build", zoo, "--family", "new")
        assert kind == "invalid-input/one-model-zoo"

    def test_one_task_twice(self, built: Path, zoo: Path) -> None:
        (zoo / "task-00").mkdir()
        shutil.copy(zoo / "task-00.safetensors", zoo / "task-00" / "model.safetensors")
        kind = refused(built / "registry", "build", zoo, "--family", "new")
        assert kind == "invalid-input/duplicate-task"

    def test_a_truncated_checkpoint(self, built: Path, zoo: Path) -> None:
        path = zoo / "task-01.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        kind = refused(built / "registry", "build", zoo, "--family", "new")
        assert kind.startswith("format/")
        assert refused(built / "registry", "add", path, "--family", "mlp") == kind

    def test_a_member_of_another_architecture_is_named_and_can_be_skipped(
        self, built: Path, zoo: Path, tmp_path: Path
    ) -> None:
        save_file({"conv.weight": torch.randn(8, 8)}, zoo / "stranger.safetensors")
        registry = built / "registry"
        assert refused(registry, "build", zoo, "--family", "new") == "incompatible/architecture"
        ran = run("build", zoo, "--family", "new", "--registry", registry, "--json")
        assert [problem["loc"] for problem in ran.document["error"]["problems"]] == ["stranger"]
        assert refused(registry, "add", zoo / "stranger.safetensors", "--family", "mlp").startswith(
            "incompatible/"
        )
        ran = run_well(
            "build", zoo, "--family", "new", "--skip-mismatched", "--registry", tmp_path / "r", "--json"
        )
        assert ran.document["skipped"] == ["stranger"]
        assert len(ran.document["models"]) == 3


class TestNames:
    def test_a_family_that_exists(self, built: Path) -> None:
        kind = refused(built / "registry", "build", built / "zoo", "--family", "mlp")
        assert kind == "already-exists/family"

    @pytest.mark.parametrize("family", ["a/b", "..", "", "con", "é"])
    def test_a_family_that_cannot_be_a_folder(self, built: Path, family: str) -> None:
        kind = refused(built / "registry", "build", built / "zoo", "--family", family)
        assert kind == "invalid-input/family-name"

    @pytest.mark.parametrize(
        "task", ["..", "a/../b", "/etc/passwd", " a", "a@2", "a\\b", "a\nb", "\u202ea", "x" * 300]
    )
    def test_a_task_that_could_be_taken_for_something_else(self, built: Path, task: str) -> None:
        arguments = ("add", built / "zoo" / "task-00.safetensors", "--family", "mlp", "--task", task)
        assert refused(built / "registry", *arguments) == "invalid-input/task-name"

    def test_a_task_that_differs_in_case_alone(self, built: Path) -> None:
        arguments = ("add", built / "zoo" / "task-00.safetensors", "--family", "mlp", "--task", "TASK-00")
        assert refused(built / "registry", *arguments) == "already-exists/name"

    @pytest.mark.parametrize(
        "arguments",
        [
            ("show", "mpl"),
            ("verify", "mpl"),
            ("export", "mpl", "task-00", "-o", "x.safetensors"),
            ("export", "mpl", "--all", "-o", "x"),
            ("add", "x.safetensors", "--family", "mpl"),
        ],
    )
    def test_an_unknown_family(self, built: Path, arguments: tuple[str, ...]) -> None:
        assert refused(built / "registry", *arguments) == "not-found/family"

    @pytest.mark.parametrize(
        ("name", "kind"), [("mlp/nope", "not-found/task"), ("mlp/task-00@9", "not-found/version")]
    )
    def test_an_unknown_model(self, built: Path, tmp_path: Path, name: str, kind: str) -> None:
        for command in (("show", name), ("verify", name), ("export", name, "-o", tmp_path / "x.safetensors")):
            assert refused(built / "registry", *command) == kind
        assert not list(tmp_path.iterdir())


class TestOptions:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("build",),
            ("build", "zoo"),
            ("build", "zoo", "--family", "new", "--bits", "few"),
            ("build", "zoo", "--family", "new", "--frobnicate"),
            ("show",),
            ("export", "mlp", "-o", "x"),
            ("export", "mlp", "task-00"),
            ("export", "mlp", "task-00", "--all", "-o", "x"),
            ("export", "mlp", "task-00", "-o", "x", "--tier", "best"),
        ],
        ids=" ".join,
    )
    def test_a_line_that_cannot_be_read(self, built: Path, arguments: tuple[str, ...]) -> None:
        assert refused(built / "registry", *arguments) == "invalid-input/usage"

    @pytest.mark.parametrize(
        "options",
        [
            ("--bits", "0"),
            ("--bits", "nan"),
            ("--rel-error", "1.5"),
            ("--change-error", "-1"),
            ("--bits", "1", "--rel-error", "0.1"),
        ],
        ids=" ".join,
    )
    def test_a_fidelity_that_means_nothing(self, built: Path, options: tuple[str, ...]) -> None:
        kind = refused(built / "registry", "build", built / "zoo", "--family", "new", *options)
        assert kind == "invalid-input/fidelity"

    def test_a_family_that_expects_no_models(self, built: Path) -> None:
        kind = refused(built / "registry", "build", built / "zoo", "--family", "new", "--expect-models", 0)
        assert kind == "invalid-input/expect-models"

    def test_a_registry_that_is_named_twice(self, tmp_path: Path) -> None:
        assert run("init", tmp_path / "a", "--registry", tmp_path / "b").error_kind == "invalid-input/usage"
        assert not list(tmp_path.iterdir())

    def test_a_tier_that_was_not_stored(self, built: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        kind = refused(built / "registry", "export", "mlp", "task-00", "-o", path, "--tier", "exact")
        assert kind == "fidelity/no-exact-tier"
        assert not path.exists()

    @pytest.mark.parametrize("path", ["none/x.safetensors", "none/"])
    def test_a_folder_that_is_not_there(self, built: Path, tmp_path: Path, path: str) -> None:
        kind = refused(built / "registry", "export", "mlp", "task-00", "-o", f"{tmp_path}/{path}")
        assert kind == "not-found/folder"
        assert not list(tmp_path.iterdir())


class TestRegistries:
    @pytest.mark.parametrize(
        "command", [("list",), ("show", "mlp"), ("verify", "mlp"), ("add", "x", "--family", "f")]
    )
    def test_a_registry_that_is_not_there(self, tmp_path: Path, command: tuple[str, ...]) -> None:
        ran = run(*command, "--registry", tmp_path / "none")
        assert (ran.code, ran.error_kind) == (2, "not-found/registry")
        assert not (tmp_path / "none").exists()

    def test_an_empty_name_is_not_the_default(self) -> None:
        assert run("list", "--registry", "").error_kind == "invalid-input/usage"

    def test_a_storage_that_is_not_supported(self) -> None:
        assert run("list", "--registry", "ftp://host/place").error_kind == "invalid-input/storage-scheme"

    def test_a_folder_with_other_files_is_not_made_a_registry(self, zoo: Path) -> None:
        before = snapshot(zoo)
        assert run("init", zoo).error_kind == "invalid-input/not-empty"
        assert run("build", zoo, "--family", "new", "--registry", zoo).error_kind == "invalid-input/not-empty"
        assert snapshot(zoo) == before

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_registry_that_may_not_be_written(self, built: Path, tmp_path: Path) -> None:
        registry = Path(shutil.copytree(built / "registry", tmp_path / "registry"))
        before = snapshot(registry)
        folders = [registry, *(path for path in registry.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        try:
            ran = run("add", built / "zoo" / "task-00.safetensors", "--family", "mlp", "--registry", registry)
            assert (ran.code, ran.error_kind) == (2, "storage/permission")
            run_well("verify", "mlp", "--registry", registry)
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert snapshot(registry) == before


class TestTheUnexpected:
    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch, built: Path) -> Path:
        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError("of all things")

        monkeypatch.setattr(look, "list_families", fail)
        return built / "registry"

    def test_it_is_told_in_a_line_with_what_to_do(self, broken: Path) -> None:
        ran = run("list", "--registry", broken)
        assert (ran.code, ran.error_kind) == (2, "internal")
        assert "ZeroDivisionError: of all things" in ran.stderr
        assert "--traceback" in ran.stderr

    @pytest.mark.parametrize("way", ["option", "environment"])
    def test_developers_can_have_the_traceback(
        self, broken: Path, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from click.testing import CliRunner  # noqa: PLC0415 - run() of these tests refuses tracebacks

        from uws_store.cli import PROGRAM  # noqa: PLC0415 - likewise

        if way == "environment":
            monkeypatch.setenv("UWS_STORE_TRACEBACK", "1")
        options = ["--traceback"] if way == "option" else []
        result = CliRunner().invoke(PROGRAM, ["list", "--registry", str(broken), *options])
        assert result.exit_code == 2
        assert "Traceback (most recent call last)" in result.stderr

    def test_an_interrupt_exits_with_130(self, monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(look, "list_families", interrupt)
        ran = run("list", "--registry", built / "registry")
        assert (ran.code, ran.stdout) == (130, "")
        assert "interrupted" in ran.stderr
