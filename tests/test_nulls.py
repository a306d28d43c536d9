"""Nulls: what shares a subspace is told from what shares a mean, and from what shares nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from zoo_support import make_zoo

from uws_store.basis import Basis
from uws_store.builder import BasisBuilder, Fidelity, Members
from uws_store.checkpoint import scan_zoo
from uws_store.nulls import Sharing, pooled, sharing

SHARED = Path(__file__).resolve().parents[2] / "shared" / "zoos"


def _normal(source: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def _zoo(kind: str, *, models: int = 16) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    base = _normal(source, 40, 32)
    left, right = _normal(source, 40, 4), _normal(source, 4, 32)
    found = []
    for _ in range(models):
        own = _normal(source, 40, 32)
        if kind == "subspace":
            own = base + left @ torch.diag(_normal(source, 4)) @ right + 0.1 * own
        elif kind == "mean":
            own = base + 0.3 * own
        found.append(own)
    return found


@pytest.mark.parametrize("kind", ["subspace", "mean", "nothing"])
def test_each_kind_of_zoo_is_recognised(kind: str) -> None:
    found = sharing(_zoo(kind))
    assert found is not None
    assert found.shares == kind
    assert kind in str(found) or kind == "nothing"
    assert abs(found.gaussian_bits) < 0.2
    assert abs(found.shuffled_bits) < 0.2


def test_rows_of_different_size_are_no_shared_subspace() -> None:
    source = torch.Generator().manual_seed(4)
    scales = torch.exp2(torch.linspace(2, -4, 40, dtype=torch.float64))[:, None]
    found = sharing([scales * _normal(source, 40, 32) for _ in range(24)])
    assert found is not None
    assert found.shares == "nothing"


def test_what_cannot_be_measured_is_not_judged() -> None:
    assert sharing(_zoo("subspace", models=3)) is None
    assert sharing([torch.ones(4, 4, dtype=torch.float64)] * 8) is None
    assert sharing([torch.randn(1, 9, dtype=torch.float64) for _ in range(8)]) is None
    assert pooled([]) is None


def test_tensors_count_by_their_elements() -> None:
    found = pooled([Sharing(300, 1.0, 1.0, 0.0, 0.0), Sharing(100, 0.0, 0.0, 0.4, 0.0)])
    assert found == Sharing(400, 0.75, 0.75, 0.1, 0.0)


def _judged(zoo: Path) -> tuple[Sharing | None, Basis]:
    with Members(scan_zoo(zoo)) as members:
        builder = BasisBuilder(members, fidelity=Fidelity("change-error", 0.1))
        built = builder.build()
        return builder.sharing, built.basis


def test_the_record_of_a_basis_says_what_its_zoo_shares(tmp_path: Path) -> None:
    found, basis = _judged(make_zoo(tmp_path / "zoo", shapes={"a": (32, 24), "b": (24, 32)}))
    assert found is not None
    assert found.shares == "subspace"
    assert ("shares", "subspace") in basis.document.build.options


@pytest.mark.skipif(not (SHARED / "acasxu").is_dir(), reason="other people's zoos are not at hand")
def test_collision_avoidance_networks_share_no_subspace() -> None:
    members = [load_file(path) for path in sorted((SHARED / "acasxu").glob("*.safetensors"))]
    names = [name for name, tensor in members[0].items() if tensor.ndim == 2]
    assert names
    parts = [sharing([member[name].to(torch.float64) for member in members]) for name in names]
    found = pooled([part for part in parts if part is not None])
    assert found is not None
    assert found.shares == "nothing"
