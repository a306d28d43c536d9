"""An ``adapter_config.json`` from a stranger: checked, kept as text, never followed; and factors found by their names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from adapter_support import config_of
from hypothesis import given
from hypothesis import strategies as st

from uws_store.adapter import MAX_CONFIG_BYTES, FactorPair, find_pairs, parse_config
from uws_store.errors import InvalidInputError


def parsed(changes: dict[str, Any]) -> Any:
    return parse_config(json.dumps(config_of(4) | changes).encode(), where="here")


def test_a_configuration_is_kept_with_its_fields() -> None:
    config = parsed({"revision": "v2", "target_modules": ["v", "q"], "loftq_config": {"a": [1, None]}})
    assert config.kind == "LORA"
    assert config.base_model == "org/tiny-base@v2"
    entries = dict(config.entries)
    assert entries["loftq_config"] == '{"a":[1,null]}'
    assert entries["target_modules"] == '["q","v"]'
    assert entries["task_type"] == "null"
    assert list(entries) == sorted(entries)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "8"},
        {"r": 0},
        {"r": True},
        {"r": 1 << 30},
        {"lora_alpha": [1]},
        {"use_rslora": 1},
        {"peft_type": None},
        {"peft_type": "../LORA"},
        {"target_modules": {"q": 1}},
        {"target_modules": ["../../etc/passwd"]},
        {"target_modules": ["a/b"]},
        {"modules_to_save": ["head", 3]},
        {"rank_pattern": {"q": 1.5}},
        {"rank_pattern": {"../q": 4}},
        {"rank_pattern": [4]},
        {"alpha_pattern": {"q": "much"}},
        {"base_model_name_or_path": "../../secrets"},
        {"base_model_name_or_path": "..\\secrets"},
        {"base_model_name_or_path": "a\x1b[2Jb"},
        {"base_model_name_or_path": {"a": 1}},
        {"revision": "../x"},
        {"\x00": 1},
        {"k" * 201: 1},
        {f"k{index}": 1 for index in range(300)},
    ],
)
def test_fields_of_wrong_types_or_with_names_that_leave_a_folder_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parsed(changes)
    assert caught.value.kind == "invalid-input/adapter-config"
    assert caught.value.problems


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{" * 100_000,
        b'{"peft_type":"LORA","a":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"peft_type":"LORA","peft_type":"LORA"}',
        b'{"peft_type":"LORA","lora_alpha":NaN}',
        b'{"peft_type":"LORA","lora_alpha":1e999}',
        b'{"peft_type":"LORA","r":' + b"9" * 10_000 + b"}",
        b'{"peft_type":"LORA"}' + b" " * MAX_CONFIG_BYTES,
        b'{"r":4}',
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_configuration_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_config(data, where="here")
    assert caught.value.kind == "invalid-input/adapter-config"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse_config(data, where="here")
    except InvalidInputError as error:
        assert error.kind == "invalid-input/adapter-config"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("base_model.model.q.lora_B.weight", "base_model.model.q.lora_A.weight"),
        ("q.lora_B.default.weight", "q.lora_A.default.weight"),
        ("emb.lora_embedding_B", "emb.lora_embedding_A"),
        ("lora_unet_q.lora_up.weight", "lora_unet_q.lora_down.weight"),
        ("unet.q.lora.up.weight", "unet.q.lora.down.weight"),
        ("to_q_lora.up.weight", "to_q_lora.down.weight"),
        ("text_encoder:0:up", "text_encoder:0:down"),
    ],
)
def test_factors_are_found_by_the_names_that_programs_give(left: str, right: str) -> None:
    assert find_pairs({right: (4, 9), left: (6, 4), "x": (4, 4)}) == (FactorPair(left, right, 4),)
    assert find_pairs({right: (4, 9), left: (6, 3)}) == ()
    assert find_pairs({right: (4, 9)}) == ()
    assert find_pairs({right: (4, 9, 3, 3), left: (6, 4, 1, 1)}) == (FactorPair(left, right, 4),)
    assert find_pairs({right: (4, 9), left: (6, 4, 3, 3)}) == ()
    assert find_pairs({right: (0, 9), left: (6, 0)}) == ()


def test_products_of_three_factors_are_left_alone() -> None:
    shapes = {"q.lora_A": (4, 9), "q.lora_B": (6, 4)}
    assert find_pairs({**shapes, "q.lora_E": (4, 1)}) == ()
    assert find_pairs(shapes, parsed({"peft_type": "ADALORA"})) == ()
    assert len(find_pairs(shapes, parsed({}))) == 1
