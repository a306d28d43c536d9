"""The program: the group of commands, and what becomes of every error.

Owns exit codes (0 done, 1 something stored is wrong, 2 an error, 130 interrupted, 141 the reader of the output has
gone) and the environment variable that asks for tracebacks.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from rich.text import Text

from uws_store.cli.command import TRACEBACK_VARIABLE, command_rows
from uws_store.cli.commands import COMMANDS
from uws_store.cli.output import Output, PipeClosedError, drop, error_console, printable
from uws_store.config import tool_version
from uws_store.errors import FormatError, StorageError, UwsError

__all__ = ["PROGRAM", "main"]

_WRONG = 1
_ERROR = 2
_INTERRUPTED = 130
_PIPE_CLOSED = 141


class _Program(click.Group):
    """A group that never ends in a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002, FBT001, FBT002 - click's signature
        **extra: Any,  # noqa: ANN401 - click's own
    ) -> NoReturn:
        """Run a command and exit."""
        given = list(sys.argv[1:] if args is None else args)
        _allow_any_text()
        try:
            code = super().main(given, prog_name or "uws-store", complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except (PipeClosedError, BrokenPipeError):
            drop(sys.stdout, sys.stderr)
            code = _PIPE_CLOSED
        except click.Abort:
            with contextlib.suppress(PipeClosedError):
                error_console().print("interrupted")
            code = _INTERRUPTED
        except Exception as error:  # noqa: BLE001 - the last place where any error can be told
            code = _tell(error, given)
        sys.exit(code if isinstance(code, int) else 0)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Say what a command line is made of."""
        del ctx
        return ["COMMAND", "..."]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the order of their use, with what each needs."""
        del ctx
        rows = [(row.usage.removeprefix("uws-store "), row.summary) for row in command_rows(COMMANDS)]
        with formatter.section("Commands"):
            formatter.write_dl(rows, col_max=38)


def _print_version(ctx: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value and not ctx.resilient_parsing:
        click.echo(tool_version())
        ctx.exit()


@click.group(
    cls=_Program,
    commands=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="uws-store COMMAND --help explains a command and gives examples. Exit codes: 0 done, 1 verification found "
    "something wrong, 2 an error, 130 interrupted. Guides: docs/guides. Format: spec/uws-1.md. The subspaces: "
    "https://arxiv.org/abs/2512.05117",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def PROGRAM(ctx: click.Context) -> None:  # noqa: N802 - the decorator makes a constant of it
    """Keep hundreds of fine-tuned networks of one architecture: one shared basis, a few compact numbers per model.

    A zoo is a folder of checkpoints of one architecture. A family is what a zoo becomes: a basis that its models share,
    and each model under the name of its task. A registry is a place that holds families.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Run the command line with the arguments of the process, and exit."""
    PROGRAM.main()


def _tell(error: Exception, arguments: list[str]) -> int:
    """Print an error for whoever asked, and give the exit code."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    wants_traceback = "--traceback" in flags or os.environ.get(TRACEBACK_VARIABLE, "0") not in {"", "0"}
    hint = ""
    if isinstance(error, UwsError):
        kind, message, problems = error.kind, error.message, error.problems
        text = str(error)
    elif isinstance(error, click.ClickException):
        kind, problems = "invalid-input/usage", ()
        text = message = error.format_message()
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"see: {context.command_path} --help" if context is not None else "see: uws-store --help"
    else:
        kind, problems = "internal", ()
        text = message = f"{type(error).__name__}: {error}"
        hint = "this is a bug in uws-store; please report it with what you typed"
        if not wants_traceback:
            hint += " and what --traceback shows"
    try:
        if wants_traceback:
            error_console().print(Text(printable("".join(traceback.format_exception(error)))), end="")
        console = error_console()
        line = Text.assemble(("error", "bold red"), f" [{kind}]: ", printable(text))
        console.print(line, soft_wrap=True)
        if hint:
            console.print(Text(printable(hint)), soft_wrap=True)
        if "--json" in flags:
            document = {"error": {"kind": kind, "message": message, "problems": problems}}
            Output(as_json=True, quiet=True).document(document)
    except (PipeClosedError, StorageError):
        # Nobody is there to be told.
        drop(sys.stdout, sys.stderr)
    # Damage that ends a verification early (in the log, say) is what was asked about, not a failure to ask.
    return _WRONG if isinstance(error, FormatError) and arguments[:1] == ["verify"] else _ERROR


def _allow_any_text() -> None:
    """Let names that a terminal's encoding has not be shown escaped, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
