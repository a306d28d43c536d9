"""tools/check_layers.py against small trees that each break one rule, and against the package itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_layers
import pytest
from read_imports import read_sources


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "uws_store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def places(root: Path, files: dict[str, str]) -> list[tuple[str, int]]:
    found = check_layers.find_violations(read_sources(tree(root, files), "uws_store"))
    return [(violation.path.removeprefix("uws_store/"), violation.line) for violation in found]


def test_imports_to_lower_floors_are_clean(tmp_path: Path) -> None:
    files = {
        "errors.py": "import json\n",
        "dtypes.py": "import torch\nfrom uws_store.errors import UwsError\n",
        "store.py": "import zarr\nimport numcodecs\nfrom uws_store.dtypes import DType\n",
        "cli/__init__.py": "import click\nfrom uws_store.cli.table import rows\n",
        "cli/table.py": "from rich.table import Table\nfrom uws_store import store\n",
        "__init__.py": "from uws_store.store import open_group\n",
    }
    assert places(tmp_path, files) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from uws_store.store import Group",
        "from uws_store import store",
        "import uws_store.store",
        "import uws_store.store as elsewhere",
        "from uws_store.registry import anything",  # a module that does not exist yet has its floor
        "from uws_store import load_model",  # reaches the roof, through __init__
        "import uws_store",
        "import importlib; importlib.import_module('uws_store.store')",
        "from importlib import import_module; import_module('uws_store.store')",
        "__import__('uws_store.store')",
        "def later():\n    from uws_store.store import Group",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from uws_store.store import Group",
    ],
)
def test_upward_import_is_refused(tmp_path: Path, statement: str) -> None:
    files = {"dtypes.py": statement + "\n", "store.py": "", "__init__.py": ""}
    assert places(tmp_path, files) == [("dtypes.py", statement.count("\n") + 1)]


def test_import_on_the_same_floor_is_refused(tmp_path: Path) -> None:
    files = {"builder.py": "\nfrom uws_store.loader import load\n", "loader.py": ""}
    assert places(tmp_path, files) == [("builder.py", 2)]


def test_file_in_a_folder_has_the_folders_floor(tmp_path: Path) -> None:
    files = {"metadata/group.py": "from uws_store.store import Group\n", "store.py": ""}
    assert places(tmp_path, files) == [("metadata/group.py", 1)]


def test_relative_import_is_refused(tmp_path: Path) -> None:
    assert places(tmp_path, {"store.py": "from . import errors\n", "errors.py": ""}) == [("store.py", 1)]


def test_module_without_a_floor_is_refused(tmp_path: Path) -> None:
    assert places(tmp_path, {"helpers.py": "", "errors.py": ""}) == [("helpers.py", 1)]


def test_cycle_inside_a_folder_is_told_once(tmp_path: Path) -> None:
    files = {
        "registry/a.py": "from uws_store.registry.b import B\n",
        "registry/b.py": "\nfrom uws_store.registry.c import C\n",
        "registry/c.py": "from uws_store.registry import a\n",
        "registry/d.py": "from uws_store.registry.a import A\n",
    }
    assert places(tmp_path, files) == [("registry/a.py", 1)]


def test_child_that_imports_its_own_folder_is_a_cycle(tmp_path: Path) -> None:
    files = {
        "api/__init__.py": "from uws_store.api.load import load_model\n",
        "api/load.py": "from uws_store.api import build\n",
    }
    assert places(tmp_path, files) == [("api/__init__.py", 1)]


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("plan.py", "import zarr"),
        ("plan.py", "from zarr.codecs import ZstdCodec"),
        ("plan.py", "from numcodecs import zstd"),
        ("plan.py", "import pcodec"),
        ("store.py", "import safetensors.torch"),
        ("store.py", "import fsspec"),
        ("storage.py", "import huggingface_hub"),
        ("api.py", "import click"),
        ("api.py", "from rich.progress import Progress"),
        ("executors.py", "import pickle"),
        ("executors.py", "import cloudpickle"),
        ("plan.py", "import scipy"),  # nobody owns it yet
        ("plan.py", "import os; os.environ['HOME']"),
        ("plan.py", "from os import environ"),
        ("plan.py", "import os as o; o.getenv('HOME')"),
        ("loader.py", "import torch; torch.load('x')"),
        ("loader.py", "from torch import load"),
        ("loader.py", "import torch as t; t.load('x')"),
        ("loader.py", "import torch.serialization"),
    ],
)
def test_foreign_package_or_guarded_name_has_one_owner(tmp_path: Path, name: str, statement: str) -> None:
    assert places(tmp_path, {name: statement + "\n"}) == [(name, 1)]


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("checkpoint/pickled.py", "import torch; torch.load('x', weights_only=True)"),
        ("checkpoint/single.py", "from safetensors import safe_open"),
        ("config.py", "import os; os.environ.get('X')"),
        ("entropy.py", "from pcodec import standalone"),
        ("hub.py", "import huggingface_hub"),
        ("storage/local.py", "import fsspec"),
        ("plan.py", "import os; os.cpu_count()"),
        ("plan.py", "loads = {}; loads.load = 1"),
    ],
)
def test_owner_may_use_what_it_owns(tmp_path: Path, name: str, statement: str) -> None:
    assert places(tmp_path, {name: statement + "\n"}) == []


def test_empty_package_does_not_pass(tmp_path: Path) -> None:
    assert check_layers.main(["--root", str(tmp_path)]) == 2


def test_broken_source_does_not_pass(tmp_path: Path) -> None:
    assert check_layers.main(["--root", str(tree(tmp_path, {"errors.py": "def\n"}))]) == 2


def test_command_prints_file_and_line_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path, {"errors.py": "\n\nimport zarr\n"})
    assert check_layers.main(["--root", str(root)]) == 1
    assert capsys.readouterr().out.startswith("uws_store/errors.py:3: ")


def test_the_package_itself_is_clean(repository: Path) -> None:
    run = subprocess.run(
        [sys.executable, repository / "tools" / "check_layers.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
