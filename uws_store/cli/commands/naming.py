"""Commands about names and versions: what stands for what, what was withdrawn, who did what when."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

import click

from uws_store.cli.command import Example, command, split_model
from uws_store.cli.output import Output

__all__ = ["alias", "delete", "diff", "log"]


@command(
    "alias",
    Example("uws-store alias vit-digits/task-07 prod", "prod is the newest version"),
    Example("uws-store alias vit-digits/task-07@3 prod", "prod is version 3, whatever it was"),
    Example("uws-store alias vit-digits/task-07 prod --remove", "there is no prod any more"),
)
@click.argument("model", metavar="FAMILY/TASK")
@click.argument("alias")
@click.option("--remove", is_flag=True, help="Remove the alias; the version stays.")
def alias(*, model: str, alias: str, remove: bool, output: Output, registry: str | None) -> None:
    """Let a name such as prod stand for a version of a task.

    FAMILY/TASK may be task@3 for a version; without one the alias stands for the newest. An alias that exists is
    moved. A model is then loaded and shown as task@prod.
    """
    from uws_store.cli.names import run_alias

    family, task = _model(model)
    run_alias(family, task, alias, remove=remove, output=output, registry=registry)


@command(
    "delete",
    Example("uws-store delete vit-digits/task-07@2", "one version"),
    Example("uws-store delete vit-digits/task-07 --with-aliases", "all versions of a task"),
)
@click.argument("model", metavar="FAMILY/TASK[@VERSION]")
@click.option("--with-aliases", is_flag=True, help="Remove aliases that stand for what is withdrawn.")
def delete(*, model: str, with_aliases: bool, output: Output, registry: str | None) -> None:
    """Withdraw a version, or all versions of a task.

    It is an entry in the log: the number is never used again, and no object is removed before garbage collection.
    """
    from uws_store.cli.names import run_delete

    family, task = _model(model)
    run_delete(family, task, with_aliases=with_aliases, output=output, registry=registry)


@command(
    "log",
    Example("uws-store log", "the last commits"),
    Example("uws-store log vit-digits/task-07", "what happened to one task"),
    Example("uws-store log --limit 0 --json", "the whole history"),
)
@click.argument("name", required=False, metavar="[FAMILY[/TASK]]")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="COUNT",
    help="At most so many commits; 0 for all.",
)
def log(*, name: str | None, limit: int, output: Output, registry: str | None) -> None:
    """Show the commits of a registry, newest first."""
    from uws_store.cli.names import run_log

    family, task = (None, None) if name is None else split_model(name)
    run_log(family, task, limit=limit or None, output=output, registry=registry)


@command(
    "diff",
    Example("uws-store diff vit-digits/task-07@1 vit-digits/task-07@2", "two versions"),
    Example("uws-store diff vit-digits/task-07 vit-digits/task-08 --tier compact", "two tasks"),
)
@click.argument("first", metavar="FAMILY/TASK")
@click.argument("second", metavar="FAMILY/TASK")
@click.option(
    "--tier",
    type=click.Choice(("compact", "exact")),
    help="At which tensors are compared. Default: exact where both have it.",
)
def diff(*, first: str, second: str, tier: str | None, output: Output, registry: str | None) -> None:
    """Compare two models: bytes, the distance of every tensor, scores.

    A distance is ||A - B|| / ||A||. Names may be task@3 or task@prod.
    """
    from uws_store.cli.names import run_diff

    run_diff(_model(first), _model(second), tier=tier, output=output, registry=registry)


def _model(name: str) -> tuple[str, str]:
    family, task = split_model(name)
    if not task:
        raise click.UsageError(f"{name!r} names no task; write FAMILY/TASK")
    return family, task
