"""The environment is read when it is asked for, and by the platform's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from uws_store.config import cache_folder, default_registry_url, tool_version

VARIABLES = ("UWS_STORE_REGISTRY", "UWS_STORE_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")


def test_the_defaults_lie_in_the_users_home(tmp_path: Path) -> None:
    assert default_registry_url() == str(tmp_path / ".local/share/uws-store/registry")
    assert cache_folder() == tmp_path / ".cache/uws-store"


def test_an_xdg_folder_is_used_when_it_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_registry_url() == "/data/uws-store/registry"
    assert cache_folder() == tmp_path / ".cache/uws-store"


def test_our_own_variables_come_first_and_are_read_at_each_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UWS_STORE_REGISTRY", "memory://x")
    monkeypatch.setenv("UWS_STORE_CACHE", "~/c")
    assert default_registry_url() == "memory://x"
    assert cache_folder() == tmp_path / "c"
    monkeypatch.setenv("UWS_STORE_REGISTRY", "")
    assert default_registry_url() == str(tmp_path / ".local/share/uws-store/registry")


def test_the_tool_names_itself() -> None:
    assert tool_version().startswith("uws-store ")
