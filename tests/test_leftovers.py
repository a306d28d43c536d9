"""Temporary files of killed writers: gc tells and removes the old ones, and nothing else that looks like them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cli_support import run_well
from storage_support import DIGEST, found_family, next_models, processes, publish_and_die_unnamed

from uws_store.registry import Registry, collect
from uws_store.storage import CachedStorage, CacheFolder, LocalStorage, MemoryStorage, find_leftovers
from uws_store.storage.probing import LookFirstStorage

DAY = 86400.0
LOCK = ".tmp-lock"


def temporary_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".tmp*") if path.name != LOCK)


def make_old(path: Path, *, age_s: float) -> None:
    """Let a file have been written so long before now, by the disk's clock."""
    written = path.stat().st_mtime - age_s
    os.utime(path, (written, written))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry.init(str(tmp_path / "registry"))
    made.publish(found_family())
    made.publish(next_models("left"))
    return made


@pytest.fixture
def folder(registry: Registry) -> Path:
    return Path(registry.url)


def kill_a_writer(registry: Registry) -> Path:
    """Let a process publish that is killed before its file has a name; give the file that it leaves."""
    before = temporary_files(Path(registry.url))
    writer = processes().Process(target=publish_and_die_unnamed, args=(registry.url,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    (left,) = set(temporary_files(Path(registry.url))) - set(before)
    return left


def test_what_a_killed_writer_left_is_removed_when_it_is_old(registry: Registry, folder: Path) -> None:
    old, young = kill_a_writer(registry), kill_a_writer(registry)
    size_bytes = old.stat().st_size
    assert size_bytes > 0
    assert collect(registry, grace_s=DAY).leftovers == ()
    make_old(old, age_s=2 * DAY)
    result = collect(registry, grace_s=DAY)
    assert [(one.prefix, one.objects, one.size_bytes) for one in result.leftovers] == [
        (old.relative_to(folder).as_posix(), 1, size_bytes)
    ]
    assert temporary_files(folder) == [young]
    assert collect(registry, grace_s=DAY).leftovers == ()
    again = Registry.open(registry.url)
    assert again.state().number == 2
    again.publish(next_models("left", "right"))


def test_a_dry_run_tells_of_them_and_removes_none(registry: Registry, folder: Path) -> None:
    left = kill_a_writer(registry)
    make_old(left, age_s=2 * DAY)
    result = run_well("gc", "--dry-run", "--registry", folder, "--json").document
    assert [one["prefix"] for one in result["leftovers"]] == [left.relative_to(folder).as_posix()]
    assert left.exists()
    assert "temporary files would be removed" in run_well("gc", "--dry-run", "--registry", folder).stdout
    assert run_well("gc", "--quiet", "--registry", folder).stdout.split() == [
        left.relative_to(folder).as_posix()
    ]
    assert not left.exists()


def test_what_only_looks_like_one_stays(registry: Registry, folder: Path, tmp_path: Path) -> None:
    name = ".tmp-" + "0" * 24
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name).write_bytes(b"not of this registry")
    (folder / "_log" / LOCK).write_bytes(b"")
    (folder / ".tmp-notes").write_bytes(b"")
    (folder / f"{name}.bak").write_bytes(b"")
    (folder / "families" / name).mkdir(parents=True)
    (folder / "families" / "link").symlink_to(elsewhere, target_is_directory=True)
    (folder / "_log" / name).symlink_to(elsewhere / name)
    for path in (*folder.rglob("*"), elsewhere / name):
        if not path.is_symlink() and path.is_file():
            make_old(path, age_s=30 * DAY)
    before = sorted(folder.rglob("*"))
    result = collect(registry, grace_s=DAY)
    assert result.leftovers == ()
    left = {path for path in folder.rglob("*") if "_pending" not in path.parts}
    assert left == {path for path in before if "_pending" not in path.parts}
    assert (elsewhere / name).exists()


def test_the_lock_that_stands_in_for_links_is_held_and_kept(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    registry.publish(next_models("left"))
    lock = folder / "_log" / LOCK
    make_old(lock, age_s=30 * DAY)
    collect(registry, grace_s=DAY)
    assert lock.exists()


def test_they_are_found_below_every_wrapper_and_only_on_a_disk(folder: Path, tmp_path: Path) -> None:
    left = folder / "families" / (".tmp-" + "a" * 24)
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    local = LocalStorage(folder)
    at = left.stat().st_mtime
    cache = CacheFolder(tmp_path / "cache", limit_bytes=1000)
    for storage in (local, LookFirstStorage(local), CachedStorage(LookFirstStorage(local), cache)):
        (found,) = find_leftovers(storage, before=at)
        assert (found.path, found.size_bytes) == (f"families/{left.name}", 4)
        assert find_leftovers(storage, before=at - 1) == []
    memory = MemoryStorage("none")
    memory.put("x", DIGEST.encode())
    assert find_leftovers(memory, before=at) == []
