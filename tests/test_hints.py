"""The commands that a command prints next: they can be pasted, and hold no secret."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from cli_support import Ran, make_small_zoo, run_well

from uws_store.cli.hints import next_command, storage_command
from uws_store.storage import StorageUrl, parse_options, public_options

OPTIONS = {
    "endpoint_url": "http://localhost:9000",
    "anon": False,
    "key": "AKIA-not-to-be-seen",
    "secret": "not-to-be-seen",
    "client_kwargs": {"region_name": "eu", "aws_session_token": "not-to-be-seen", "verify": None},
    "config_kwargs": {"password": "not-to-be-seen"},
    "proxy": "not-to-be-seen",
}


def hinted(ran: Ran) -> list[list[str]]:
    """Every command in what was printed, as the words that a shell makes of it."""
    lines = [
        line[line.index("uws-store ") :]
        for line in ran.stdout.splitlines()
        if re.search(r"uws-store [a-z]", line)
    ]
    return [shlex.split(line)[1:] for line in lines]


def test_options_that_may_be_credentials_are_left_out() -> None:
    shown = public_options(StorageUrl("s3://b/p", OPTIONS))
    assert shown == {
        "endpoint_url": "http://localhost:9000",
        "anon": False,
        "client_kwargs": {"region_name": "eu", "verify": None},
    }
    line = next_command("verify", "f", registry=StorageUrl("s3://b/p", OPTIONS), zoo_options=OPTIONS)
    line += storage_command("init", StorageUrl("s3://b/p", OPTIONS), "--single-writer")
    assert "not-to-be-seen" not in line
    assert public_options({"endpoint_url": "http://me:word@host:9000/"}) == {}


def test_options_come_back_from_what_is_written() -> None:
    words = shlex.split(next_command("show", "f", registry=StorageUrl("s3://b/p q", OPTIONS)))
    assert words[:5] == ["uws-store", "show", "f", "--registry", "s3://b/p q"]
    pairs = [word for flag, word in zip(words[5::2], words[6::2], strict=True) if flag == "--storage-option"]
    assert parse_options(pairs) == public_options(OPTIONS)
    assert next_command("show", "f", registry=None) == "uws-store show f"


@pytest.mark.parametrize("registry", ["r", "r with a blank"])
def test_what_build_hints_at_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UWS_STORE_REGISTRY", str(tmp_path / "another"))
    zoo = make_small_zoo(tmp_path / "a zoo", models=4)
    assert zoo.is_dir()
    built = run_well("build", "a zoo", "--family", "f", "--registry", registry)
    show, verify = hinted(built)
    assert (show[0], verify[0]) == ("show", "verify")
    run_well(*show)
    assert run_well(*verify, "--json").document["ok"]


def test_what_an_empty_registry_hints_at_names_it(tmp_path: Path) -> None:
    url = str(tmp_path / "r")
    run_well("init", url)
    assert (
        f"build ZOO --family NAME --registry {shlex.quote(url)}" in run_well("list", "--registry", url).stderr
    )


def test_what_show_hints_at_runs(tmp_path: Path) -> None:
    registry = str(tmp_path / "r")
    zoo = make_small_zoo(tmp_path / "zoo", models=4)
    run_well("build", zoo, "--family", "f", "--registry", registry)
    run_well("verify", "f", "--record", "--registry", registry)
    more = make_small_zoo(tmp_path / "more", models=1, seed=3)
    run_well("add", more / "task-00.safetensors", "--family", "f", "--task", "x", "--registry", registry)
    (again,) = hinted(run_well("show", "f", "--registry", registry))
    assert again[:3] == ["verify", "f", "--record"]
    run_well(*again)
    assert not hinted(run_well("show", "f", "--registry", registry))


def test_a_map_of_names_is_part_of_the_hint(tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=4)
    names = tmp_path / "map.json"
    names.write_text(json.dumps({"fc1.weight": "first.weight"}))
    registry = str(tmp_path / "r")
    built = run_well("build", zoo, "--family", "f", "--registry", registry, "--rename", names)
    assert run_well(*hinted(built)[1], "--json").document["ok"]
