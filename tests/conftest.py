"""What every test shares: no user's own places are touched, threads are few, property tests are repeatable."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# Tests stand in these too.
pytest.register_assert_rewrite("storage_contract", "cloud_support", "registry_support")

REPOSITORY = Path(__file__).resolve().parent.parent

# Scripts under tools/ are tested like modules.
for folder in (REPOSITORY / "tools", REPOSITORY / "tools" / "demo"):
    sys.path.insert(0, str(folder))

# The tests' servers are on loopback; a proxy that the machine has for the world is not asked for them.
for variable in ("NO_PROXY", "no_proxy"):
    os.environ[variable] = ",".join(filter(None, (os.environ.get(variable), "127.0.0.1,localhost")))

# What a machine's user set for the clients of storages, for the store or for how things are shown is no part of a test.
# UWS_TEST_ and UWS_VENV are about the run itself.
_USERS_OWN = (
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "GCSFS_",
    "FSSPEC_",
    "HF_",
    "STORAGE_EMULATOR_HOST",
    "UWS_STORE_",
    "ZARR_",
)
_SHOWN_BY = ("CLICOLOR", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "TTY_")
for variable in list(os.environ):
    if variable.startswith((*_USERS_OWN, *_SHOWN_BY)):
        del os.environ[variable]

# Read by huggingface_hub when it is imported: the tests' stand-in for the Hub takes large files by LFS alone.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

# A slow, shared machine is no failure; on CI the same examples are drawn each time.
UNHURRIED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("local", UNHURRIED)
hypothesis.settings.register_profile("ci", UNHURRIED, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_configure(config: pytest.Config) -> None:
    """On CI, show what is found only as the garbage collector comes by, and let it fail no test.

    Which test it comes by in is chance, and seldom the one that left something open. Elsewhere it is an error.
    """
    if os.environ.get("CI"):
        config.addinivalue_line("filterwarnings", "default::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the default registry and cache into a fresh temporary folder."""
    folder = tmp_path_factory.mktemp("places")
    monkeypatch.setenv("UWS_STORE_REGISTRY", str(folder / "registry"))
    monkeypatch.setenv("UWS_STORE_CACHE", str(folder / "cache"))


@pytest.fixture(scope="module")
def _libraries() -> Iterator[None]:
    """Let transformers and its kin ask no Hub about files that a folder lacks, and torch train with one thread.

    Not by the environment: huggingface_hub reads it once, and the tests of the Hub in this process want it to ask.
    """
    threads = torch.get_num_threads()
    # Tensors are so small that a second thread is waited for longer than it works.
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the folder that holds pyproject.toml."""
    return REPOSITORY
