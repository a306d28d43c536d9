"""The model card: what the records say, as the Hub indexes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well
from safetensors.torch import load_file, save_file

from uws_store import api

yaml = pytest.importorskip("yaml", reason="reads the card's metadata")


def metadata_of(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(head)
    return found


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("card")
    zoo = make_small_zoo(folder / "zoo", models=3)
    for path in sorted(zoo.iterdir()):
        save_file(load_file(path), path, {"license": "Apache-2.0", "base_model": "org/base: 1"})
    api.build(zoo, family="mlp", registry=str(folder / "registry"), exact=True)
    return str(folder / "registry")


def test_the_metadata_is_what_all_models_agree_on(registry: str) -> None:
    found = metadata_of(api.card("mlp", registry=registry))
    assert found == {
        "library_name": "uws-store",
        "license": "apache-2.0",
        "base_model": "org/base: 1",
        "tags": ["uws-store", "model-zoo", "weight-compression"],
    }


def test_what_models_do_not_agree_on_is_not_said(registry: str, tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=3)
    save_file(load_file(zoo / "task-00.safetensors"), zoo / "task-00.safetensors", {"license": "mit"})
    api.build(zoo, family="mlp", registry=str(tmp_path / "registry"))
    assert "license" not in metadata_of(api.card("mlp", registry=str(tmp_path / "registry")))


def test_the_text_says_what_is_stored_and_how_to_load_it(registry: str) -> None:
    text = api.card("mlp", registry=registry, repository="hf://org/mlp")
    assert "| models | 3 |" in text
    assert "| bit-identical on request | 3 of 3 models |" in text
    assert "load_model('mlp', 'task-00', registry='hf://org/mlp')" in text
    assert text == api.card("mlp", registry=registry, repository="hf://org/mlp")


def test_names_cannot_make_markup(registry: str, tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=2)
    url = str(tmp_path / "registry")
    api.build(zoo, family="mlp", registry=url)
    api.add(zoo / "task-00.safetensors", family="mlp", task="<b>x|y</b> [a](b)", registry=url)
    text = api.card("mlp", registry=url)
    assert "<b>" not in text.split("## Models")[1]
    assert "&lt;b&gt;x\\|y" in text


def test_the_command_writes_it(registry: str, tmp_path: Path) -> None:
    shown = run_well("card", "mlp", "--registry", registry).stdout
    assert shown == api.card("mlp", registry=registry)
    path = tmp_path / "README.md"
    run_well("card", "mlp", "--registry", registry, "-o", path)
    assert path.read_text(encoding="utf-8") == shown
    assert run("card", "mlp", "--registry", registry, "-o", path).error_kind == "already-exists/file"
    assert run("card", "none", "--registry", registry).error_kind == "not-found/family"
