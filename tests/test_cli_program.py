"""The program as a process: help, versions, streams, terminals, and how soon it answers."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_support import TASKS, make_small_zoo, run, run_well
from rich.console import Console

import uws_store
from uws_store.builder import DEFAULT_FIDELITY
from uws_store.cli import output, program
from uws_store.cli import progress as progress_module
from uws_store.cli.command import command_rows
from uws_store.cli.commands import COMMANDS
from uws_store.cli.output import Output, as_plain, number, printable, ratio, size
from uws_store.cli.progress import progress
from uws_store.config import tool_version

PROGRAM = [sys.executable, "-m", "uws_store"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    make_small_zoo(folder / "zoo")
    run_well("build", folder / "zoo", "--family", "mlp", "--exact", "--registry", folder / "registry")
    return folder


class TestHelp:
    def test_the_program_lists_every_command(self) -> None:
        text = run_well("--help").stdout
        assert run_well().stdout == text
        for row in command_rows(COMMANDS):
            assert row.usage.removeprefix("uws-store ") in text

    def test_the_version_is_that_of_the_package(self) -> None:
        assert run_well("--version").stdout == f"{tool_version()}\n"

    @pytest.mark.parametrize("name", [str(command.name) for command in COMMANDS])
    def test_every_command_has_examples_and_the_shared_options(self, name: str) -> None:
        text = run_well(name, "--help").stdout
        for words in ("Examples:", "--json", "--quiet", "--registry", "--traceback", "UWS_STORE_REGISTRY"):
            assert words in text
        assert max(map(len, text.splitlines())) <= 80

    def test_every_example_can_be_read_by_the_command_it_explains(self) -> None:
        seen = 0
        for command in COMMANDS:
            for example in command.examples:
                name, words = parse(example.line)
                assert name == command.name
                command.make_context(name, words)
                seen += 1
        assert seen >= len(COMMANDS)

    def test_the_default_fidelity_in_the_help_is_the_one_in_use(self) -> None:
        text = " ".join(run_well("build", "--help").stdout.split())
        assert DEFAULT_FIDELITY.kind == "change-error"
        assert f"||W - mean||. Above 0, at most 1. Default: {DEFAULT_FIDELITY.value:g}." in text


def parse(line: str) -> tuple[str, list[str]]:
    """Take a command line apart as a shell does."""
    words = shlex.split(line)
    assert words[0] == "uws-store"
    return words[1], words[2:]


class TestProcess:
    def test_it_builds_lists_and_fails_as_a_process(self, built: Path, tmp_path: Path) -> None:
        environment = {**os.environ, "UWS_STORE_REGISTRY": str(tmp_path / "registry"), "OMP_NUM_THREADS": "1"}

        def start(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*PROGRAM, *arguments], capture_output=True, text=True, check=False, env=environment
            )

        made = start("build", str(built / "zoo"), "--family", "mlp", "--json")
        assert made.returncode == 0, made.stderr
        assert [model["task"] for model in json.loads(made.stdout)["models"]] == TASKS
        assert "encoding: 8 of 8 models" in made.stderr
        again = start("build", str(built / "zoo"), "--family", "mlp")
        assert (again.returncode, again.stdout) == (2, "")
        assert again.stderr.startswith("error [already-exists/family]: ")

    def test_a_reader_that_has_gone_ends_it_without_a_word(self, built: Path) -> None:
        command = [*PROGRAM, "list", "mlp", "--registry", str(built / "registry")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_result_that_cannot_be_written_is_an_error(self, built: Path) -> None:
        command = [*PROGRAM, "list", "--json", "--registry", str(built / "registry")]
        with Path("/dev/full").open("w") as full:
            ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ran.returncode == 2
        assert ran.stderr.startswith("error [storage/io]: ")

    def test_help_does_not_wait_for_torch(self) -> None:
        # The package itself may import what it likes: here only its command line is asked.
        code = (
            "import sys, types\n"
            "package = types.ModuleType('uws_store')\n"
            f"package.__path__ = [{str(Path(uws_store.__file__).parent)!r}]\n"
            "sys.modules['uws_store'] = package\n"
            "from uws_store.cli import PROGRAM\n"
            "try:\n    PROGRAM.main(['build', '--help'])\n"
            "except SystemExit as ended:\n    assert not ended.code\n"
            "slow = {'torch', 'zarr', 'numpy', 'pydantic'} & set(sys.modules)\n"
            "assert not slow, slow\n"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "Usage: uws-store build" in ran.stdout

    def test_the_console_script_is_the_program(self) -> None:
        (script,) = importlib.metadata.entry_points(group="console_scripts", name="uws-store")
        assert script.load() is program.main


class TestText:
    def test_a_name_from_a_file_cannot_drive_the_terminal(self) -> None:
        assert printable("a\x1b[2J\x07b\u202ec\u2028d\nné 😀") == "a\\x1b[2J\\x07b\\u202ec\\u2028d\nné 😀"

    def test_an_error_that_holds_control_characters_is_made_harmless(self, tmp_path: Path) -> None:
        ran = run("build", tmp_path / "\x1b[2Jzoo", "--family", "mlp")
        assert ran.code == 2
        assert "\x1b" not in ran.stderr

    def test_numbers_that_json_has_not_become_null(self) -> None:
        assert as_plain({"a": (float("nan"), float("inf"), 1.5, True, None)}) == {
            "a": [None, None, 1.5, True, None]
        }

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0"),
            (0.00386, "0.00386"),
            (4.0712, "4.07"),
            (0.99, "0.990"),
            (123.4, "123"),
            (1e-6, "1.00e-06"),
        ],
    )
    def test_numbers_have_three_digits(self, value: float, text: str) -> None:
        assert number(value) == text

    def test_bytes_are_in_powers_of_1000(self) -> None:
        assert (size(999), size(17_300), size(2_400_000)) == ("999 bytes", "17.3 kB", "2.4 MB")
        assert ratio(100, 0) == "-"

    def test_names_that_an_encoding_has_not_are_escaped(self, built: Path) -> None:
        command = [*PROGRAM, "list", "é😀", "--registry", str(built / "registry")]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        ran = subprocess.run(command, capture_output=True, check=False, env=environment)
        assert ran.returncode == 0
        assert b"\\xe9\\U0001f600" in ran.stderr


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> Iterator[io.StringIO]:
    """Let stdout and stderr be a terminal of a width."""
    screen = io.StringIO()

    def console(_: object = None) -> Console:
        return Console(file=screen, width=width, force_terminal=True, color_system=None, markup=False)

    with monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(output, "_console", console)
        patch.setattr(output, "error_console", console)
        patch.setattr(progress_module, "error_console", console)
        patch.setattr(program, "error_console", console)
        yield screen


class TestTerminal:
    @pytest.mark.parametrize("width", [80, 160])
    @pytest.mark.parametrize(
        "arguments",
        [
            ("list",),
            ("list", "mlp"),
            ("show", "mlp"),
            ("show", "mlp/task-00"),
            ("verify", "mlp", "--against", "zoo"),
        ],
        ids=" ".join,
    )
    def test_tables_fit_and_lose_nothing(
        self, built: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], width: int
    ) -> None:
        monkeypatch.chdir(built)
        with terminal(monkeypatch, width) as screen:
            run_well(*arguments, "--registry", built / "registry")
        text = screen.getvalue().split("\x1b[?25h")[-1]  # what follows the progress bars
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        names = TASKS if "mlp" in arguments else TASKS[:1] if "mlp/task-00" in arguments else ["mlp"]
        assert all(name in text for name in names)
        if "verify" in arguments:
            assert [line.split()[-1] for line in text.splitlines() if "@1" in line] == ["ok"] * len(TASKS)

    def test_a_terminal_gets_bars_and_a_file_gets_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr("uws_store.cli.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))

        def work() -> None:
            with progress(Output(as_json=False, quiet=False)) as report:
                assert report is not None
                for phase, total in (("fitting", 3), ("fitting", 3), ("encoding", 2)):
                    for done in range(1, total + 1):
                        clock[0] += 0.5
                        report(phase, done, total, done * 10**6 if phase == "encoding" else 0)

        with terminal(monkeypatch, 80) as screen:
            work()
        assert "fitting again" in screen.getvalue()
        assert "2/2 models" in screen.getvalue()
        assert "2 MB/s" in screen.getvalue()
        plain = io.StringIO()
        monkeypatch.setattr(progress_module, "error_console", lambda: Console(file=plain, width=200))
        work()
        assert plain.getvalue().splitlines() == [
            "fitting: 3 of 3 tensors (1.5 s)",
            "fitting: 3 of 3 tensors (1.5 s)",
            "encoding: 2 of 2 models (1.0 s, 2 MB/s)",
        ]

    def test_quiet_shows_no_progress(self) -> None:
        with progress(Output(as_json=False, quiet=True)) as report:
            assert report is None
