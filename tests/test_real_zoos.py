"""Other people's networks, where they are at hand: build, add, exact round trip of every model, task scores."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from zoo_support import same_bits

import uws_store
from uws_store.checkpoint import scan_zoo

ZOOS = Path(__file__).resolve().parents[2] / "shared" / "zoos"

pytestmark = pytest.mark.skipif(not ZOOS.is_dir(), reason="the folder of real zoos is not at hand")


def _score(name: str) -> Any:
    path = ZOOS / "evaluations.py"
    spec = importlib.util.spec_from_file_location("evaluations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def _split(zoo: Path, folder: Path) -> tuple[Path, list[Path]]:
    """A zoo of most members as links, and the paths of the rest."""
    folder.mkdir()
    members = scan_zoo(zoo)
    held = members[:: max(2, len(members) // 6)]
    for member in members:
        if member not in held:
            (folder / member.path.name).symlink_to(member.path)
    return folder, [member.path for member in held]


@pytest.mark.parametrize("name", ["acasxu", "ani_1x_1ccx", "hexells", "wakewords"])
def test_every_model_comes_back_exact(tmp_path: Path, name: str) -> None:
    registry = str(tmp_path / "registry")
    part, held = _split(ZOOS / name, tmp_path / "zoo")
    uws_store.build(part, family=name, registry=registry, exact=True)
    for path in held:
        uws_store.add(path, family=name, registry=registry, exact=True)
    members = scan_zoo(ZOOS / name)
    assert len(uws_store.list_models(name, registry=registry)) == len(members)
    family = uws_store.open_family(name, registry=registry)
    for member in members:
        original = load_file(member.path)
        exact = family.load(member.task, tier="exact").materialize()
        assert set(exact) == set(original)
        assert all(same_bits(exact[key], original[key]) for key in original)


def _mean(score: Any, family: uws_store.Family, tasks: list[str], *, tier: Any, key: str) -> float:
    values: list[float] = []
    for task in tasks:
        try:
            values.append(float(score(family.load(task, tier=tier), task)[key]))
        except KeyError:
            continue
    return sum(values) / len(values)


def test_wake_words_are_still_heard(tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    part, held = _split(ZOOS / "wakewords", tmp_path / "zoo")
    uws_store.build(part, family="wake", registry=registry, change_error=0.01, exact=True, exact_overhead=1.0)
    for path in held:
        uws_store.add(path, family="wake", registry=registry, exact=True, exact_overhead=1.0)
    family = uws_store.open_family("wake", registry=registry)
    tasks = list(family)[::4]
    score = _score("wakeword_auc")
    original = _mean(score, family, tasks, tier="exact", key="auc")
    compact = _mean(score, family, tasks, tier="compact", key="auc")
    mean = _mean(score, family, tasks, tier="mean", key="auc")
    assert compact > original - 0.01
    assert mean < original - 0.2, "the control: the zoo's mean hears next to nothing"


def test_potentials_keep_their_energies_at_a_small_error(tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    uws_store.build(ZOOS / "ani_1x_1ccx", family="ani", registry=registry, rel_error=0.002, exact=True)
    family = uws_store.open_family("ani", registry=registry)
    score = _score("ani_error")
    tasks = list(family)[::3]
    assert _mean(score, family, tasks, tier="exact", key="mae_kcal_mol") < 1e-6
    compact = _mean(score, family, tasks, tier="compact", key="mae_kcal_mol")
    mean = _mean(score, family, tasks, tier="mean", key="mae_kcal_mol")
    assert compact < 1.05, "below the ensemble's own spread"
    assert mean > 10 * compact


def test_zoos_of_many_architectures_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(uws_store.UwsError) as caught:
        uws_store.build(ZOOS / "sb3_agents", family="agents", registry=str(tmp_path / "r"))
    assert caught.value.kind == "incompatible/architecture"
    assert len(caught.value.problems) > 30
