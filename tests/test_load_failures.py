"""What can go wrong when a model is loaded into a module: each failure is typed, and the module is as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo

import uws_store
from uws_store import layout
from uws_store.metadata.log import ModelAction
from uws_store.registry import Registry
from uws_store.storage import LocalStorage

TASK = "task-00"


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(16, 24)
        self.fc2 = torch.nn.Linear(24, 10)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of networks with weights that float16 cannot hold."""
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"))
    for path in zoo.iterdir():
        save_file({name: tensor * 1e7 for name, tensor in load_file(path).items()}, path)
    registry = tmp_path_factory.mktemp("registry")
    uws_store.build(zoo, family="mlp", registry=str(registry))
    return registry


def _nothing(_registry: Path) -> None:
    pass


def _damage_core(registry: Path) -> None:
    digest = uws_store.open_family("mlp", registry=str(registry)).resolve(TASK).digest
    core = registry / layout.model_prefix("mlp", digest) / "core" / "c" / "0"
    data = bytearray(core.read_bytes())
    data[len(data) // 2] ^= 1
    core.chmod(0o644)
    core.write_bytes(data)


def _cut_core(registry: Path) -> None:
    digest = uws_store.open_family("mlp", registry=str(registry)).resolve(TASK).digest
    core = registry / layout.model_prefix("mlp", digest) / "core" / "c" / "0"
    data = core.read_bytes()
    core.chmod(0o644)
    core.write_bytes(data[: len(data) // 2])


def _remove_core(registry: Path) -> None:
    digest = uws_store.open_family("mlp", registry=str(registry)).resolve(TASK).digest
    (registry / layout.model_prefix("mlp", digest) / "core" / "c" / "0").unlink()


def _damage_basis(registry: Path) -> None:
    digest = uws_store.open_family("mlp", registry=str(registry)).resolve(TASK).basis_digest
    mean = registry / layout.basis_prefix("mlp", digest) / "mean" / "c" / "0"
    data = bytearray(mean.read_bytes())
    data[len(data) // 2] ^= 1
    mean.chmod(0o644)
    mean.write_bytes(data)


def _write_newer_model(registry: Path) -> None:
    """Publish the model as a later version of the format would write it."""
    entry = uws_store.open_family("mlp", registry=str(registry)).resolve(TASK)
    old = registry / layout.model_prefix("mlp", entry.digest)
    document = json.loads((old / layout.GROUP_PATH).read_text())
    document["attributes"]["uws_store"] |= {"uws": 99, "of_the_future": True}
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    new = registry / layout.model_prefix("mlp", digest)
    shutil.copytree(old, new)
    (new / layout.GROUP_PATH).chmod(0o644)
    (new / layout.GROUP_PATH).write_bytes(data)
    made = ModelAction(
        family="mlp",
        task=TASK,
        version=entry.version + 1,
        basis_revision=1,
        digest=digest,
        size_bytes=1,
        exact=False,
    )
    Registry.over(LocalStorage(registry)).publish(lambda _state: [made])


def _write_newer_registry(registry: Path) -> None:
    for path in (max((registry / "_log").glob("0*.json")), registry / "uws.json"):
        path.chmod(0o644)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"uws": 99}))


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(
    ("spoil", "options", "kind"),
    [
        (_nothing, {"device": "no-such"}, "invalid-input/device"),
        (_nothing, {"dtype": torch.float16}, "incompatible/dtype"),
        (_nothing, {"dtype": torch.int32}, "invalid-input/dtype"),
        (_nothing, {"tier": "exact"}, "fidelity/no-exact-tier"),
        (_nothing, {"revision": 7}, "not-found/version"),
        (_damage_core, {}, "format/digest"),
        (_cut_core, {}, "format/truncated"),
        (_remove_core, {}, "format/missing-object"),
        (_damage_basis, {}, "format/digest"),
        (_write_newer_model, {}, "format/newer-version"),
        (_write_newer_registry, {}, "format/newer-version"),
    ],
)
def test_a_failure_is_typed_and_leaves_the_module(
    built: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    options: Mapping[str, object],
    kind: str,
    *,
    meta: bool,
) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(built, registry)
    with torch.device("meta" if meta else "cpu"):
        module = Net()
    held = dict(module.named_parameters())
    before = {} if meta else {name: value.clone() for name, value in module.state_dict().items()}
    spoil(registry)
    with pytest.raises(uws_store.UwsError) as caught:
        uws_store.load_model("mlp", TASK, registry=str(registry), into=module, **options)  # type: ignore[call-overload]
    assert caught.value.kind == kind
    assert all(module.get_parameter(name) is value for name, value in held.items())
    assert all(torch.equal(value, module.get_parameter(name)) for name, value in before.items())
