"""What the tests run with: every package is pinned, those too that others draw."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What builds of torch for one kind of GPU bring; the build that is pinned has none of them.
OF_TORCH = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")


def test_every_package_that_an_installation_with_all_extras_draws_is_pinned(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name) for pin in pins}
    assert len(pinned) == len(pins), "a package is pinned twice"
    assert all(str(pin.specifier).startswith("==") for pin in pins)

    asked = list(project["build-system"]["requires"]) + list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    left = [Requirement(text) for text in asked]
    seen: dict[str, set[str]] = {}
    drawn_by: dict[str, str] = {}
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        extras = {"", *wanted.extras} - seen.setdefault(name, set())
        seen[name] |= extras
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # of an extra that is not installed here
            continue
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            if any(marker is None or marker.evaluate({"extra": extra}) for extra in extras):
                left.append(requirement)
                drawn_by.setdefault(canonicalize_name(requirement.name), name)
    assert len(seen) > 50
    missing = {name: drawn_by.get(name, "pyproject.toml") for name in set(seen) - pinned}
    assert not {name: by for name, by in missing.items() if not OF_TORCH.match(name)}
