"""What every test shares: no user's own places are touched, threads are few, property tests are repeatable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# Scripts under tools/ are tested like modules.
for folder in (REPOSITORY / "tools", REPOSITORY / "tools" / "demo"):
    sys.path.insert(0, str(folder))

# Read by huggingface_hub when it is imported: the tests' stand-in for the Hub takes large files by LFS alone.
os.environ["HF_HUB_DISABLE_XET"] = "1"

# A slow, shared machine is no failure; on CI the same examples are drawn each time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the default registry and cache into a fresh temporary folder."""
    folder = tmp_path_factory.mktemp("places")
    monkeypatch.setenv("UWS_STORE_REGISTRY", str(folder / "registry"))
    monkeypatch.setenv("UWS_STORE_CACHE", str(folder / "cache"))
    for variable in ("HF_TOKEN", "HF_HOME", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the folder that holds pyproject.toml."""
    return REPOSITORY
