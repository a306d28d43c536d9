"""What every command has: its usage line, examples, the options they all share, the output these make.

Must not know any one command.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import click

from uws_store.cli.output import Output
from uws_store.config import OFFLINE_VARIABLE, REGISTRY_VARIABLE, default_registry_url, working_offline
from uws_store.storage import StorageUrl, parse_options

__all__ = ["Command", "CommandRow", "Example", "command", "command_rows", "split_model"]

TRACEBACK_VARIABLE = "UWS_STORE_TRACEBACK"
"""Set to anything but 0, it shows where in the code an error comes from."""


@dataclass(frozen=True, slots=True)
class Example:
    """A line to type, and what it is for."""

    line: str
    what: str


@dataclass(frozen=True, slots=True)
class CommandRow:
    """A command as it stands in lists of commands.

    Attributes
    ----------
    usage : str
        With what it needs: ``uws-store build ZOO --family NAME``.
    summary : str
        One sentence.
    """

    usage: str
    summary: str


class Command(click.Command):
    """A command that shows what it needs in its usage line, and examples below its options.

    Parameters
    ----------
    examples : sequence of Example
        At least one.
    **options
        What :class:`click.Command` takes.
    """

    def __init__(self, *, examples: Sequence[Example], **options: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(**options)
        self.examples = tuple(examples)

    @property
    def summary(self) -> str:
        """The first sentence of the help."""
        return (self.help or "").split("\n", 1)[0]

    def needs(self) -> Iterator[str]:
        """What must be given, as it is typed: arguments, then options."""
        context = click.Context(self)
        for parameter in self.params:
            if isinstance(parameter, click.Argument):
                yield parameter.make_metavar(context)
        for parameter in self.params:
            if isinstance(parameter, click.Option) and parameter.required:
                # The shortest name of an option is the one that is typed.
                yield f"{min(parameter.opts, key=len)} {parameter.make_metavar(context)}"

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Put what must be given before what may be."""
        del ctx
        return [*self.needs(), "[OPTIONS]"]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        del ctx
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write_text(f"# {example.what}")
                # Not wrapped: it is to be copied.
                formatter.write(f"{'':{formatter.current_indent}}{example.line}\n")


class _Body(Protocol):
    def __call__(self, *, output: Output, registry: str | None, **options: Any) -> None: ...  # noqa: ANN401 - each has its own


def command(name: str, *examples: Example) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function.

    The function is called with its own options by name, ``registry`` (None for the default) and ``output``. Its
    docstring is the help.
    """

    def make(body: Callable[..., None]) -> Command:
        return click.command(name, cls=Command, examples=examples)(_with_shared_options(body))

    return make


def _with_shared_options(body: _Body) -> Callable[..., None]:
    # Whether to show tracebacks is decided where errors are shown, in ``program.py``.
    @functools.wraps(body)
    def run(
        *,
        registry: str | None,
        storage_options: tuple[str, ...],
        as_json: bool,
        quiet: bool,
        traceback: bool,
        offline: bool,
        **options: object,
    ) -> None:
        del traceback
        if registry is not None and not registry.strip():
            raise click.BadParameter(
                "it is empty; give a path or URL, or leave it out", param_hint="--registry"
            )
        url = options.get("url")
        if storage_options and isinstance(url, str):
            options["url"] = StorageUrl(url, parse_options(storage_options))
        elif storage_options:
            registry = StorageUrl(registry or default_registry_url(), parse_options(storage_options))
        with working_offline(offline=offline):
            body(output=Output(as_json=as_json, quiet=quiet), registry=registry, **options)

    # click lists parameters from the last decorator to the first.
    shared = (
        click.option(
            "--traceback",
            is_flag=True,
            help=f"Show where in the code an error comes from; {TRACEBACK_VARIABLE}=1 does the same.",
        ),
        click.option(
            "--offline",
            is_flag=True,
            help=f"Ask nothing of a registry behind a network; {OFFLINE_VARIABLE}=1 does the same.",
        ),
        click.option(
            "-q", "--quiet", is_flag=True, help="Print names only, one per line; no progress, no notices."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document; sizes are in bytes."),
        click.option(
            "--storage-option",
            "storage_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="Option of the storage at URL, such as endpoint_url, key or anon; as fsspec names them. Repeatable.",
        ),
        click.option(
            "--registry",
            metavar="URL",
            help=f"Path or URL of the registry. Default: ${REGISTRY_VARIABLE}, else the user's data folder.",
        ),
    )
    own = list(getattr(run, "__click_params__", ()))
    run.__dict__["__click_params__"] = []
    wrapped: Callable[..., None] = run
    for option in shared:
        wrapped = option(wrapped)
    wrapped.__dict__["__click_params__"] += own
    return wrapped


def command_rows(commands: Sequence[Command]) -> tuple[CommandRow, ...]:
    """List commands as the documentation shows them."""
    return tuple(
        CommandRow(" ".join(["uws-store", str(entry.name), *entry.needs()]), entry.summary)
        for entry in commands
    )


def split_model(name: str) -> tuple[str, str | None]:
    """Take ``FAMILY/TASK`` apart; a family's name holds no slash, a task's may."""
    family, slash, task = name.partition("/")
    return family, task if slash else None
