"""README.md is true: its Python runs, its commands exist, its tree is what is on disk, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import run_well
from safetensors.torch import load_file

from uws_store.cli.command import command_rows
from uws_store.cli.commands import COMMANDS


@pytest.fixture(scope="module")
def readme() -> str:
    return (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no {language} block"
    return found


@pytest.fixture(scope="module")
def ran(readme: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which all Python blocks were run, one after the other, and what they printed."""
    folder = tmp_path_factory.mktemp("readme")
    code = "import warnings\nwarnings.simplefilter('error')\n" + "\n".join(blocks(readme, "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_python_runs_and_prints_what_it_says(ran: tuple[Path, str]) -> None:
    _, printed = ran
    assert "torch.Size([64, 48])" in printed
    assert "'task-7'" in printed


def test_the_first_block_is_short(readme: str) -> None:
    assert len([line for line in blocks(readme, "python")[0].splitlines() if line.strip()]) <= 12


def test_the_family_of_the_python_verifies_against_its_zoo(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    registry = ("--registry", folder / "registry")
    found = run_well("verify", "demo", "--against", folder / "zoo", *registry, "--json").document
    assert len(found["safe_to_delete"]) == 8
    run_well("export", "demo", "task-3", "-o", folder / "back.safetensors", "--tier", "exact", *registry)
    back, original = load_file(folder / "back.safetensors"), load_file(folder / "zoo" / "task-3.safetensors")
    assert back["layer.weight"].equal(original["layer.weight"])


def tree_paths(readme: str) -> set[str]:
    """The files of the tree, with <sha256> for digests."""
    found: set[str] = set()
    folders: list[str] = []
    for line in blocks(readme, "text")[0].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = []
        if name.endswith("/"):
            folders.append(name.strip("/"))
        elif "{" in name:
            stem, _, names = name.rstrip("}").partition("{")
            found.update("/".join([*folders, stem + part]) for part in names.split(","))
        else:
            found.add("/".join([*folders, name]))
    return found


def test_the_tree_is_what_is_on_disk(readme: str, ran: tuple[Path, str]) -> None:
    folder, _ = ran
    stored = {
        re.sub(r"\b[0-9a-f]{64}\b", "<sha256>", str(path.relative_to(folder)))
        for path in (folder / "registry").rglob("*")
        if path.is_file()
    }
    shown = tree_paths(readme)
    assert stored <= shown
    # What this zoo does not need: no tensor is private or the same everywhere, and the planner may want no factor.
    optional = re.compile(r"/(private|shared|left|right|exponents)/")
    assert {path for path in shown if not optional.search(path)} <= stored


def test_the_commands_are_exactly_those_there_are(readme: str) -> None:
    rows = re.findall(r"^\| `(uws-store [^`]*)` \| (.*) \|$", readme, flags=re.MULTILINE)
    assert rows == [(row.usage, row.summary) for row in command_rows(COMMANDS)]


def test_every_command_line_can_be_read(readme: str) -> None:
    commands = {command.name: command for command in COMMANDS}
    lines = [
        line for block in blocks(readme, "sh") for line in block.splitlines() if line.startswith("uws-store")
    ]
    assert len(lines) >= 4
    for line in lines:
        name, *words = shlex.split(line, comments=True)[1:]
        commands[name].make_context(name, words)


def test_every_link_leads_somewhere(readme: str, repository: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert "spec/uws-1.md" in links
    for link in links:
        if not link.startswith("https://"):
            assert (repository / link).exists(), link
    for script in ("tools/quickstart", "tools/test"):
        assert script in readme
        assert (repository / script).exists(), script
