"""Memory of loading: at most 1.2 times the model and the basis, however a model is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from load_in_process import load_in_process

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "bench"))

import forged_vit

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc"
)

MOST = 1.2


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A family of 26 MB a model, and a tiny one."""
    folder = tmp_path_factory.mktemp("forged")
    large = forged_vit.forge_vit(folder / "large", models=2, width=256, depth=8)
    small = forged_vit.forge_vit(folder / "small", models=1, width=192, depth=1)
    return large.registry, small.registry


@pytest.mark.parametrize("how", ["cold", "into", "switch", "switch again"])
def test_a_load_takes_little_beside_the_model_and_the_basis(registries: tuple[Path, Path], how: str) -> None:
    """What a module holds before, and after in place of that, is not counted; a copy beside it would be."""
    large, small = registries
    told = load_in_process(how, registry=large, small=small)
    assert told["model"] > 24e6
    # The basis is what stays; measured, and no more than its numbers and an index or two.
    assert told["numbers"] <= told["basis"] <= 1.5 * told["numbers"]
    model = 0 if how == "switch again" else told["model"]
    assert told["peak"] <= model + told["basis"] + (MOST - 1) * (told["model"] + told["basis"])
