"""Builds that are refused, killed or run out of disk, and damage: the registry stays as it was."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo, snapshot

import uws_store
from uws_store.errors import (
    AlreadyExistsError,
    FormatError,
    IncompatibleError,
    InvalidInputError,
    StorageError,
    UwsError,
)


@pytest.fixture
def family(zoo: Path, tmp_path: Path) -> str:
    registry = str(tmp_path / "registry")
    # Models this small would be stored bit-identical at every tier.
    uws_store.build(zoo, family="f", registry=registry, exact=True, exact_overhead=1.0)
    return registry


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def _truncate(folder: Path) -> None:
    path = folder / "task-02.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _one(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def _pickle(folder: Path) -> None:
    torch.save({"weights": torch.nn.Linear(2, 2)}, folder / "evil.pt")


def _twice(folder: Path) -> None:
    torch.save(load_file(folder / "task-00.safetensors"), folder / "task-00.pt")


def _stranger(folder: Path) -> None:
    save_file({"other": torch.zeros(50, 50)}, folder / "stranger.safetensors")


@pytest.mark.parametrize(
    ("spoil", "error", "kind"),
    [
        (_truncate, FormatError, "format/checkpoint"),
        (_empty, InvalidInputError, "invalid-input/empty-zoo"),
        (_one, InvalidInputError, "invalid-input/one-model-zoo"),
        (_pickle, InvalidInputError, "invalid-input/pickle"),
        (_twice, InvalidInputError, "invalid-input/duplicate-task"),
        (_stranger, IncompatibleError, "incompatible/architecture"),
    ],
)
def test_a_zoo_that_cannot_be_built_leaves_the_registry_as_it_was(
    tmp_path: Path, family: str, spoil: object, error: type[UwsError], kind: str
) -> None:
    folder = make_zoo(tmp_path / "bad")
    assert callable(spoil)
    spoil(folder)
    before = snapshot(Path(family))
    with pytest.raises(error) as caught:
        uws_store.build(folder, family="g", registry=family)
    assert caught.value.kind == kind
    assert snapshot(Path(family)) == before


def test_a_refused_zoo_makes_no_registry(tmp_path: Path) -> None:
    _stranger(make_zoo(tmp_path / "bad"))
    with pytest.raises(IncompatibleError):
        uws_store.build(tmp_path / "bad", family="g", registry=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_mismatched_members_are_skipped_when_asked(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo")
    _stranger(folder)
    result = uws_store.build(folder, family="g", registry=str(tmp_path / "r"), skip_mismatched=True)
    assert result.skipped == ("stranger",)
    assert len(result.models) == 8


def test_a_full_disk_leaves_the_registry_as_it_was(
    zoo: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = uws_store.list_models(registry=family)
    real = os.write
    written = 0

    def limited(descriptor: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 3000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(StorageError) as caught:
        uws_store.build(zoo, family="g", registry=family)
    assert caught.value.kind == "storage/no-space"
    monkeypatch.setattr(os, "write", real)
    assert uws_store.list_models(registry=family) == before
    # And the same build succeeds once there is room.
    assert uws_store.build(zoo, family="g", registry=family).models


def _damage(registry: str, pattern: str, change: object) -> None:
    path = next(iter(sorted(Path(registry).glob(pattern))))
    assert callable(change)
    path.chmod(0o644)
    data = change(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("pattern", "change", "kind"),
    [
        ("families/f/models/*/core/c/0", lambda data: None, "format/missing-object"),
        (
            "families/f/models/*/core/c/0",
            lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
            "format/digest",
        ),
        ("families/f/models/*/zarr.json", lambda data: None, "format/missing-object"),
        ("families/f/models/*/zarr.json", lambda data: data.replace(b"0", b"1", 1), "format/digest"),
        ("families/f/basis/*/mean/c/0", lambda data: None, "format/missing-object"),
        ("families/f/basis/*/zarr.json", lambda data: data[:-1], "format/digest"),
    ],
)
def test_damage_is_caught_before_a_weight_is_returned(
    family: str, pattern: str, change: object, kind: str
) -> None:
    _damage(family, pattern, change)
    failures = []
    for task in uws_store.open_family("f", registry=family).tasks():
        try:
            uws_store.load_model("f", task, registry=family).materialize()
        except FormatError as error:
            failures.append(error.kind)
    assert failures
    assert set(failures) == {kind}
    verdict = uws_store.verify("f", registry=family)
    assert not verdict.ok


def test_two_builders_at_once_make_one_family(zoo: Path, tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    outcomes: list[str] = []

    def run() -> None:
        try:
            uws_store.build(zoo, family="f", registry=registry)
            outcomes.append("built")
        except AlreadyExistsError as error:
            outcomes.append(error.kind)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["already-exists/family", "already-exists/family", "built"]
    assert uws_store.verify("f", registry=registry).ok


_BUILD = """
import sys
import time
import uws_store
from uws_store.storage import LocalStorage
real = LocalStorage.put_if_absent
count = 0
def counted(self, path, data, **more):
    global count
    count += 1
    print(count, flush=True)
    if count > int(sys.argv[3]):
        time.sleep(60)  # the signal comes; a busy machine may be late with it
    return real(self, path, data, **more)
LocalStorage.put_if_absent = counted
uws_store.build(sys.argv[1], family="g", registry=sys.argv[2])
print("done", flush=True)
"""


@pytest.mark.parametrize("after", [1, 3, 9, 20, 33])
def test_a_killed_build_leaves_the_registry_as_it_was(zoo: Path, family: str, after: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _BUILD, str(zoo), family, str(after)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= after:  # threads may count past a number
            time.sleep(random.uniform(0, 0.003))
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert {entry.family for entry in uws_store.list_models(registry=family)} == {"f"}
    assert uws_store.verify("f", registry=family).ok
    assert uws_store.build(zoo, family="g", registry=family).models, (
        "what the dead left behind is in nobody's way"
    )
    assert uws_store.verify("g", registry=family).ok
