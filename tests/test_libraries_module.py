"""``module()``: what a recorded configuration may and may not do."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from uws_store import build, load_model
from uws_store.errors import IncompatibleError
from uws_store.loader.construct import build_module

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.usefixtures("_libraries")

VALUES = {
    "vocab_size": 12,
    "n_positions": 8,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def source() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and the saved weights of a small GPT-2."""
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**VALUES))
    config = module.config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}
    state = {name: value for name, value in module.state_dict().items() if name != "lm_head.weight"}
    return json.loads(json.dumps(config)), state


def made(config: object, state: dict[str, torch.Tensor], **files: bytes) -> nn.Module:
    data = json.dumps(config).encode()
    return build_module({"config.json": data} | files, lambda: state, name="f/t", dtype=None)


def refused(config: object, state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(IncompatibleError) as caught:
        made(config, state)
    return caught.value.kind


def test_weights_are_not_copied(source: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> None:
    config, state = source
    module = made(config, state)
    own = dict(module.named_parameters())
    assert all(own[name].data_ptr() == value.data_ptr() for name, value in state.items())
    assert module.lm_head.weight is module.transformer.wte.weight  # type: ignore[union-attr]


def test_code_that_comes_with_a_checkpoint_is_not_run(
    source: tuple[dict[str, Any], dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, state = source
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n"
    (tmp_path / "modeling_evil.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    evil = {
        "AutoConfig": "modeling_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoModel": "someone/repository--modeling_evil.Evil",
    }
    # With a class of the library, what else the configuration names is left alone.
    assert type(made(config | {"auto_map": evil}, state)).__name__ == "GPT2LMHeadModel"
    for name in (
        "Evil",
        "modeling_evil.Evil",
        "modeling_evil",
        "os.system",
        "AutoModel",
        "logging",
        "__name__",
        "",
    ):
        assert (
            refused(config | {"auto_map": evil, "architectures": [name]}, state)
            == "incompatible/not-in-library"
        )
    assert refused(config | {"architectures": [["GPT2LMHeadModel"]]}, state) == "incompatible/not-in-library"
    assert not marker.exists()
    assert "modeling_evil" not in sys.modules


def test_nothing_is_fetched(
    source: tuple[dict[str, Any], dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, state = source

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    named = {"_attn_implementation": "someone/kernels", "_name_or_path": "someone/model"}
    assert type(made(config | named, state)).__name__ == "GPT2LMHeadModel"


def test_a_configuration_that_does_not_fit_is_refused(
    source: tuple[dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    config, state = source
    assert refused(config | {"n_layer": 2}, state) == "incompatible/module"
    assert refused(config | {"n_embd": 32}, state) == "incompatible/config"
    assert refused(config | {"n_head": 3}, state) == "incompatible/config"
    others: list[object] = [{}, [], 3, {"architectures": []}, {"architecture": 3}]
    for other in others:
        assert refused(other, state) == "incompatible/no-config"
    with pytest.raises(IncompatibleError) as caught:
        build_module({}, lambda: state, name="f/t", dtype=None)
    assert caught.value.kind == "incompatible/no-config"


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000], ids=["cut", "no text", "deep"])
def test_a_configuration_that_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(IncompatibleError) as caught:
        build_module({"config.json": data}, dict, name="f/t", dtype=None)
    assert caught.value.kind == "incompatible/config"


@pytest.mark.parametrize(
    ("package", "config"),
    [("transformers", {"architectures": ["GPT2LMHeadModel"]}), ("timm", {"architecture": "resnet10t"})],
)
def test_a_library_that_is_not_installed_is_named(
    package: str, config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(IncompatibleError, match=f"pip install {package}") as caught:
        made(config, {})
    assert caught.value.kind == "incompatible/library-missing"


def test_a_refused_configuration_costs_no_decoding() -> None:
    def decoded() -> dict[str, torch.Tensor]:
        raise AssertionError("decoded")

    data = json.dumps({"architectures": ["NoSuchModel"]}).encode()
    with pytest.raises(IncompatibleError):
        build_module({"config.json": data}, decoded, name="f/t", dtype=None)


def test_making_a_module_leaves_the_process_as_it_was(
    source: tuple[dict[str, Any], dict[str, torch.Tensor]], capfd: pytest.CaptureFixture[str]
) -> None:
    config, state = source
    shown = transformers.utils.logging.is_progress_bar_enabled()
    before = (torch.get_default_dtype(), torch.get_rng_state(), nn.Module.register_parameter)
    half = {name: value.half() for name, value in state.items()}
    module = made(config | {"dtype": "float16"}, half)
    assert {value.dtype for value in module.parameters()} == {torch.float16}
    assert torch.get_default_dtype() is before[0]
    assert nn.Module.register_parameter is before[2]
    assert transformers.utils.logging.is_progress_bar_enabled() is shown
    assert capfd.readouterr() == ("", "")


def test_threads_make_modules_of_one_family(
    source: tuple[dict[str, Any], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    config, state = source
    for index in range(3):
        folder = tmp_path / "zoo" / f"task-{index}"
        folder.mkdir(parents=True)
        save_file({name: value + 0.01 * index for name, value in state.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
    build(tmp_path / "zoo", family="f", registry=str(tmp_path / "r"), exact=True)

    def load(index: int) -> float:
        module = load_model("f", f"task-{index}", registry=str(tmp_path / "r"), tier="exact").module()
        change = module.transformer.wpe.weight - state["transformer.wpe.weight"]  # type: ignore[union-attr, operator]
        return float(change.detach().mean())

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, [0, 1, 2] * 4))
    assert found == pytest.approx([0.0, 0.01, 0.02] * 4, abs=1e-6)
