"""What goes wrong during a build: a typed error that names file and tensor, no commit, and a second try that ends well."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.errors import InvalidInputError, NotFoundError, StorageError, UwsError
from uws_store.storage.local import LocalStorage

WIDE = {"a.weight": (48, 32), "b.weight": (32, 48), "norm.weight": (64,)}
VICTIM = "task-03.safetensors"


def _vanish(path: Path) -> None:
    path.unlink()


def _rewrite(path: Path) -> None:
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    os.utime(path, (1, 1))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_vanish, "not-found/checkpoint"),
        (_rewrite, "invalid-input/checkpoint-changed"),
        (_truncate, "invalid-input/checkpoint-changed"),
    ],
)
@pytest.mark.parametrize("executor", ["serial", "threads"])
@pytest.mark.parametrize("phase", ["reading", "encoding"])
def test_a_checkpoint_that_does_not_stay_as_it_was_ends_the_build(
    tmp_path: Path, damage: Callable[[Path], None], kind: str, executor: str, phase: str
) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=5)
    done: list[str] = []

    def report(now: str, _done: int, _total: int, _size_bytes: int = 0) -> None:
        if now == phase and not done:
            done.append(now)
            damage(zoo / VICTIM)

    with pytest.raises((InvalidInputError, NotFoundError)) as caught:
        uws_store.build(
            zoo,
            family="f",
            registry=str(tmp_path / "r"),
            executor=executor,
            workers=1,
            change_error=0.1,
            progress=report,
        )
    assert caught.value.kind == kind
    assert VICTIM in caught.value.message
    assert f"{phase} tensor" in caught.value.message
    assert not list((tmp_path / "r").glob("_log/*.json"))


def test_a_damaged_tensor_is_named_with_its_file() -> None:
    error = UwsError("x.safetensors cannot be read", kind="format/checkpoint")
    error.message += " (reading tensor 'a')"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.kind) == (str(error), "format/checkpoint"), "it crosses processes whole"


def test_a_full_disk_is_a_typed_error_and_the_next_try_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=5)
    whole = LocalStorage.stage
    stored: list[str] = []

    def full(self: LocalStorage, path: str, data: bytes) -> bool:
        if "/models/" in path and path.endswith("c/0") and len(stored) == 2:
            raise StorageError(f"no space left to write {path}", kind="storage/no-space")
        if "/models/" in path and path.endswith("c/0"):
            stored.append(path)
        return whole(self, path, data)

    registry = str(tmp_path / "r")
    monkeypatch.setattr(LocalStorage, "stage", full)
    with pytest.raises(StorageError) as caught:
        uws_store.build(zoo, family="f", registry=registry, executor="serial")
    assert caught.value.kind == "storage/no-space"
    assert not list((tmp_path / "r").glob("_log/*.json"))
    monkeypatch.setattr(LocalStorage, "stage", whole)
    uws_store.build(zoo, family="f", registry=registry)
    assert uws_store.verify("f", registry=registry, against=zoo).ok


def test_a_zoo_of_mixed_dtypes_is_built_and_every_model_keeps_its_own(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=6)
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32, torch.float32]
    for path, dtype in zip(sorted(zoo.iterdir()), dtypes, strict=True):
        weights = {name: value.to(dtype) for name, value in load_file(path).items()}
        # One tensor of one model is of another type still.
        if dtype == torch.float16:
            weights["norm.weight"] = torch.arange(64, dtype=torch.int32)
        save_file(weights, path)
    registry = str(tmp_path / "r")
    result = uws_store.build(zoo, family="f", registry=registry, exact=True)
    notices = {model.task: model.notices for model in result.models if model.notices}
    assert list(notices) == ["task-02"], "what was left out of the basis is told"
    assert "norm.weight" in notices["task-02"][0]
    for path in sorted(zoo.iterdir()):
        exact = uws_store.load_model("f", path.stem, registry=registry, tier="exact").materialize()
        original = load_file(path)
        assert all(same_bits(exact[name], original[name]) for name in original)
