"""From a zoo into a registry and back, through the command line: what is stored, printed and returned."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from cli_support import MODELS, SHAPES, TASKS, make_small_zoo, run, run_well
from safetensors.torch import load_file, save_file
from zoo_support import same_bits, snapshot

from uws_store.api import BuildResult, ExportResult, FamilySummary, ModelResult, ModelSummary, VerifyResult
from uws_store.registry import ModelEntry

PARAMETERS = sum(math.prod(shape) for shape in SHAPES.values())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a zoo and a registry, which no test may change."""
    folder = tmp_path_factory.mktemp("built")
    make_small_zoo(folder / "zoo")
    run_well("build", folder / "zoo", "--family", "mlp", "--exact", "--registry", folder / "registry")
    return folder


@pytest.fixture
def places(built: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(built, tmp_path / "places"))


def keys(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


class TestInit:
    def test_a_registry_is_made_and_named(self, tmp_path: Path) -> None:
        ran = run_well("init", tmp_path / "new", "--json")
        assert ran.document["registry"] == str(tmp_path / "new")
        assert run_well("list", "--registry", tmp_path / "new", "--json").document["families"] == []

    def test_the_environment_names_the_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UWS_STORE_REGISTRY", str(tmp_path / "mine"))
        assert run_well("init", "-q").stdout == f"{tmp_path / 'mine'}\n"

    def test_a_second_one_in_the_same_place_is_refused(self, tmp_path: Path) -> None:
        run_well("init", tmp_path / "new")
        before = snapshot(tmp_path)
        ran = run("init", tmp_path / "new")
        assert (ran.code, ran.error_kind) == (2, "already-exists/registry")
        assert snapshot(tmp_path) == before


class TestBuild:
    def test_the_document_has_the_fields_of_the_result_and_true_sizes(self, tmp_path: Path) -> None:
        zoo, registry = make_small_zoo(tmp_path / "zoo"), tmp_path / "registry"
        ran = run_well("build", zoo, "--family", "mlp", "--registry", registry, "--json")
        found = ran.document
        assert list(found) == keys(BuildResult)
        assert [list(model) for model in found["models"]] == [keys(ModelResult)] * MODELS
        assert [model["task"] for model in found["models"]] == TASKS
        assert found["coded_parameters"] == PARAMETERS
        family = registry / "families" / "mlp"
        assert found["basis_bytes"] == sum(map(len, snapshot(*(family / "basis").glob("*/")).values()))
        stored = sum(len(data) for path, data in snapshot(family / "models").items() if "/" in path)
        assert sum(model["size_bytes"] for model in found["models"]) == stored
        for model in found["models"]:
            assert model["source_bytes"] == (zoo / f"{model['task']}.safetensors").stat().st_size
            assert model["bits_per_parameter"] == pytest.approx(8 * model["compact_bytes"] / PARAMETERS)
            assert 0 < model["rel_error"] < 1

    def test_the_summary_says_what_is_stored(self, tmp_path: Path) -> None:
        zoo = make_small_zoo(tmp_path / "zoo")
        ran = run_well("build", zoo, "--family", "mlp", "--exact", "--registry", tmp_path / "registry")
        for words in (
            "built family mlp",
            "compact",
            "exact",
            "checkpoints",
            "basis and 8 models",
            "relative error",
        ):
            assert words in ran.stdout
        assert f"{PARAMETERS:,}" in ran.stdout
        assert "encoding: 8 of 8 models" in ran.stderr

    def test_quiet_prints_names_and_nothing_else(self, tmp_path: Path) -> None:
        zoo = make_small_zoo(tmp_path / "zoo")
        ran = run_well("build", zoo, "--family", "mlp", "--registry", tmp_path / "registry", "-q")
        assert ran.stdout == "".join(f"mlp/{task}@1\n" for task in TASKS)
        assert ran.stderr == ""

    @pytest.mark.parametrize(
        ("option", "field", "limit"),
        [("--rel-error", "rel_error", 0.02), ("--bits", "bits_per_parameter", 6.0)],
    )
    def test_a_fidelity_that_was_asked_for_is_kept(
        self, tmp_path: Path, option: str, field: str, limit: float
    ) -> None:
        zoo = make_small_zoo(tmp_path / "zoo")
        ran = run_well("build", zoo, "--family", "mlp", option, limit, "--registry", tmp_path / "r", "--json")
        values = [model[field] for model in ran.document["models"]]
        assert limit / 2 < sum(values) / len(values) <= limit

    def test_odd_tensors_are_told(self, tmp_path: Path) -> None:
        zoo = make_small_zoo(tmp_path / "zoo")
        odd = load_file(zoo / "task-03.safetensors")
        save_file({**odd, "fc2.bias": torch.zeros(7)}, zoo / "task-03.safetensors")
        ran = run_well("build", zoo, "--family", "mlp", "--registry", tmp_path / "registry")
        assert "fc2.bias" in ran.stderr
        assert "task-03" in ran.stderr
        assert "odd tensors" in ran.stdout

    def test_a_family_larger_than_its_checkpoints_is_told_so(self, tmp_path: Path) -> None:
        (tmp_path / "zoo").mkdir()
        for index in range(2):
            save_file({"w": torch.randn(4, 4)}, tmp_path / "zoo" / f"{index}.safetensors")
        ran = run_well("build", tmp_path / "zoo", "--family", "tiny", "--registry", tmp_path / "registry")
        assert "share too little" in ran.stderr


class TestAdd:
    def test_versions_count_up_and_nothing_stored_changes(self, places: Path) -> None:
        before = snapshot(places / "registry")
        new = make_small_zoo(places / "more", models=1, seed=1) / "task-00.safetensors"
        arguments = ("add", new, "--family", "mlp", "--registry", places / "registry", "--json")
        first = run_well(*arguments).document
        assert (first["model"]["task"], first["model"]["version"], first["commit"]) == ("task-00", 2, 2)
        other = run_well(*arguments, "--task", "org/new é 😀").document
        assert (other["model"]["task"], other["model"]["version"], other["commit"]) == ("org/new é 😀", 1, 3)
        after = snapshot(places / "registry")
        assert {path: after[path] for path in before if path != "_log/head"} == {
            path: data for path, data in before.items() if path != "_log/head"
        }

    def test_a_name_with_spaces_slashes_and_emoji_comes_back(self, places: Path) -> None:
        name = "org/digits, bold 😀"
        registry = ("--registry", places / "registry")
        checkpoint = places / "zoo" / "task-05.safetensors"
        ran = run_well("add", checkpoint, "--family", "mlp", "--task", name, "--exact", *registry, "-q")
        assert ran.stdout == f"mlp/{name}@1\n"
        assert f"mlp/{name}" in run_well("list", "mlp/org/*", *registry, "-q").stdout.splitlines()
        assert run_well("show", f"mlp/{name}@1", *registry, "-q").stdout == f"mlp/{name}@1\n"
        folder = places / "out"
        folder.mkdir()
        ran = run_well("export", "mlp", name, "-o", folder, "--tier", "exact", *registry, "-q")
        assert Path(ran.stdout.rstrip("\n")).parent == folder
        assert same_weights(Path(ran.stdout.rstrip("\n")), checkpoint)


class TestList:
    def test_families_and_models_are_listed(self, built: Path) -> None:
        found = run_well("list", "--registry", built / "registry", "--json").document
        (family,) = found["families"]
        assert list(family) == keys(FamilySummary)
        assert (family["name"], family["tasks"], family["versions"]) == ("mlp", MODELS, MODELS)
        assert [list(model) for model in found["models"]] == [keys(ModelEntry)] * MODELS
        assert [model["task"] for model in found["models"]] == TASKS

    def test_a_pattern_selects_models(self, built: Path) -> None:
        ran = run_well("list", "mlp/task-0[12]", "--registry", built / "registry", "-q")
        assert ran.stdout == "mlp/task-01\nmlp/task-02\n"

    def test_a_pattern_that_matches_nothing_gives_nothing(self, built: Path) -> None:
        ran = run_well("list", "vit*", "--registry", built / "registry")
        assert ran.stdout == ""
        assert "vit*" in ran.stderr
        assert run_well("list", "vit*", "--registry", built / "registry", "--json").document["families"] == []

    def test_the_table_names_every_model(self, built: Path) -> None:
        ran = run_well("list", "mlp", "--registry", built / "registry")
        assert all(f"mlp/{task}" in ran.stdout for task in TASKS)


class TestShow:
    def test_a_family_and_its_models(self, built: Path) -> None:
        found = run_well("show", "mlp", "--registry", built / "registry", "--json").document
        (entry,) = found["families"]
        assert list(entry["family"]) == keys(FamilySummary)
        assert [list(model) for model in entry["models"]] == [keys(ModelSummary)] * MODELS
        assert all(
            model["exact"] and model["compact_bytes"] < model["size_bytes"] for model in entry["models"]
        )

    def test_several_names_are_shown_in_their_order(self, built: Path) -> None:
        ran = run_well("show", "mlp/task-04", "mlp/task-01@1", "--registry", built / "registry", "-q")
        assert ran.stdout == "mlp/task-04@1\nmlp/task-01@1\n"

    def test_one_model_in_detail(self, built: Path) -> None:
        registry = ("--registry", built / "registry")
        (entry,) = run_well("show", "mlp/task-04", *registry, "--json").document["families"]
        text = run_well("show", "mlp/task-04", *registry).stdout
        assert entry["models"][0]["digest"] in text
        assert entry["models"][0]["worst_tensors"][0][0] in text


class TestVerify:
    def test_what_is_well_is_said_to_be(self, built: Path) -> None:
        registry = ("--registry", built / "registry")
        found = run_well("verify", "mlp", *registry, "--json").document
        assert list(found) == ["registry", "ok", "safe_to_delete", *keys(VerifyResult)]
        assert found["ok"]
        assert [model["task"] for model in found["models"]] == TASKS
        assert all(model["report"]["tensors"] == 2 * len(SHAPES) for model in found["models"])
        assert run_well("verify", "mlp", *registry, "-q").stdout == ""

    def test_against_the_originals_the_control_is_shown_and_the_safe_are_listed(self, built: Path) -> None:
        ran = run_well(
            "verify", "mlp", "--against", built / "zoo", "--registry", built / "registry", "--json"
        )
        assert ran.document["safe_to_delete"] == TASKS
        for model in ran.document["models"]:
            compared = model["report"]["comparison"]
            assert compared["identical"] == len(SHAPES)
            assert 0 < compared["rel_error"] < compared["mean_rel_error"]

    def test_without_an_exact_tier_nothing_is_safe_to_delete(self, tmp_path: Path) -> None:
        zoo, registry = make_small_zoo(tmp_path / "zoo"), tmp_path / "registry"
        run_well("build", zoo, "--family", "mlp", "--registry", registry)
        ran = run_well("verify", "mlp", "--against", zoo, "--registry", registry, "--json")
        assert ran.document["safe_to_delete"] == []
        assert (
            "no original is safe"
            in run_well("verify", "mlp", "--against", zoo, "--registry", registry).stdout
        )

    @pytest.mark.parametrize("spelling", [("mlp", "task-02"), ("mlp/task-02",), ("mlp/task-02@1",)])
    def test_one_task_is_verified_alone(self, built: Path, spelling: tuple[str, ...]) -> None:
        original = built / "zoo" / "task-02.safetensors"
        ran = run_well("verify", *spelling, "--against", original, "--registry", built / "registry", "--json")
        assert ran.document["safe_to_delete"] == ["task-02"]

    @pytest.mark.parametrize("place", ["models", "basis"])
    @pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
    def test_a_damaged_object_is_named_and_the_exit_code_is_1(
        self, places: Path, place: str, damage: str
    ) -> None:
        registry = places / "registry"
        array = {"models": "core", "basis": "mean"}[place]
        target = next((registry / "families" / "mlp" / place).glob(f"*/{array}/c/0"))
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.unlink()
        if damage != "gone":
            target.write_bytes(data if damage == "flipped" else data[:-1])
        ran = run("verify", "mlp", "--registry", registry, "--json")
        assert ran.code == 1
        found = ran.document
        problems = [
            *found["problems"],
            *(p for model in found["models"] for p in model["report"]["problems"]),
        ]
        assert str(target.relative_to(registry)) in [problem["loc"] for problem in problems]
        text = run("verify", "mlp", "--registry", registry)
        assert text.code == 1
        assert str(target.relative_to(registry)) in text.stdout

    def test_damage_that_ends_it_early_is_also_exit_code_1(self, places: Path) -> None:
        (places / "registry" / "_log" / "00000000000000000001.json").write_bytes(b"{}")
        ran = run("verify", "mlp", "--registry", places / "registry", "--json")
        assert ran.code == 1
        assert ran.document["error"]["kind"].startswith("format")
        assert run("list", "--registry", places / "registry").code == 2

    def test_quiet_names_what_is_wrong(self, places: Path) -> None:
        registry = places / "registry"
        (entry,) = run_well("show", "mlp/task-06", "--registry", registry, "--json").document["families"]
        digest = entry["models"][0]["digest"]
        (registry / "families" / "mlp" / "models" / digest / "core" / "c" / "0").write_bytes(b"")
        ran = run("verify", "mlp", "--registry", registry, "-q")
        assert (ran.code, ran.stdout) == (1, "mlp/task-06@1\n")

    def test_another_checkpoint_than_the_one_stored_is_told(self, built: Path, tmp_path: Path) -> None:
        other = make_small_zoo(tmp_path / "other", seed=7)
        ran = run("verify", "mlp", "--against", other, "--registry", built / "registry", "--json")
        assert ran.code == 1
        kinds = {
            problem["kind"] for model in ran.document["models"] for problem in model["report"]["problems"]
        }
        assert kinds == {"incompatible/source"}


class TestExport:
    def test_the_exact_tier_gives_every_bit_back(self, built: Path, tmp_path: Path) -> None:
        folder = tmp_path / "restored"
        registry = ("--registry", built / "registry")
        found = run_well(
            "export", "mlp", "--all", "-o", folder, "--tier", "exact", *registry, "--json"
        ).document
        assert [list(one) for one in found["exports"]] == [keys(ExportResult)] * MODELS
        for one in found["exports"]:
            assert one["size_bytes"] == Path(one["path"]).stat().st_size
        for task in TASKS:
            assert same_weights(folder / f"{task}.safetensors", built / "zoo" / f"{task}.safetensors")

    def test_the_compact_tier_is_near_and_the_mean_farther(self, built: Path, tmp_path: Path) -> None:
        original = load_file(built / "zoo" / "task-01.safetensors")["fc1.weight"]
        errors = []
        for tier in ("compact", "mean"):
            path = tmp_path / f"{tier}.safetensors"
            run_well("export", "mlp/task-01", "-o", path, "--tier", tier, "--registry", built / "registry")
            errors.append(float((load_file(path)["fc1.weight"] - original).norm() / original.norm()))
        assert 0 < errors[0] < errors[1] / 2

    def test_an_older_version_is_exported_by_its_number(self, places: Path) -> None:
        registry = ("--registry", places / "registry")
        new = places / "zoo" / "task-07.safetensors"
        run_well("add", new, "--family", "mlp", "--task", "task-00", "--exact", *registry)
        paths = {revision: places / f"{revision}.safetensors" for revision in (1, 2)}
        for revision, path in paths.items():
            run_well(
                "export", "mlp", "task-00", "-o", path, "--revision", revision, "--tier", "exact", *registry
            )
        assert same_weights(paths[1], places / "zoo" / "task-00.safetensors")
        assert same_weights(paths[2], new)

    def test_a_file_that_is_there_is_kept_unless_told(self, built: Path, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"mine")
        arguments = ("export", "mlp", "task-00", "-o", path, "--registry", built / "registry")
        ran = run(*arguments)
        assert (ran.code, ran.error_kind) == (2, "already-exists/file")
        assert path.read_bytes() == b"mine"
        run_well(*arguments, "--overwrite")
        assert set(load_file(path)) == set(SHAPES)

    def test_all_is_refused_before_the_first_file_when_one_is_there(
        self, built: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "task-05.safetensors").write_bytes(b"mine")
        before = snapshot(tmp_path)
        ran = run("export", "mlp", "--all", "-o", tmp_path, "--registry", built / "registry")
        assert (ran.code, ran.error_kind) == (2, "already-exists/file")
        assert snapshot(tmp_path) == before

    def test_all_is_refused_before_the_first_file_when_a_model_lacks_the_tier(self, places: Path) -> None:
        registry = ("--registry", places / "registry")
        run_well(
            "add", places / "zoo" / "task-00.safetensors", "--family", "mlp", "--task", "lossy", *registry
        )
        ran = run("export", "mlp", "--all", "-o", places / "out", "--tier", "exact", *registry, "--json")
        assert (ran.code, ran.error_kind) == (2, "fidelity/no-exact-tier")
        assert [problem["loc"] for problem in ran.document["error"]["problems"]] == ["lossy"]
        assert not (places / "out").exists()

    def test_names_that_look_alike_get_a_file_each(self, places: Path) -> None:
        registry = ("--registry", places / "registry")
        for task in ("a/b", "a--b", "a%2Fb"):
            run_well(
                "add", places / "zoo" / "task-00.safetensors", "--family", "mlp", "--task", task, *registry
            )
        run_well("export", "mlp", "--all", "-o", places / "out", "--overwrite", *registry)
        written = {path.name for path in (places / "out").iterdir()}
        assert {"a%2Fb.safetensors", "a--b.safetensors", "a%252Fb.safetensors"} <= written


def same_weights(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return list(one) == list(other) and all(same_bits(one[name], other[name]) for name in one)
