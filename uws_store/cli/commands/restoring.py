"""Commands that give models back, and check that they can be."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

import click

from uws_store.cli.command import Example, command, split_model
from uws_store.cli.output import Output

__all__ = ["export", "verify"]


@command(
    "verify",
    Example("uws-store verify vit-digits", "every object and every tensor's digest"),
    Example("uws-store verify vit-digits --against zoo/", "and the distance to the originals"),
)
@click.argument("family")
@click.argument("task", required=False)
@click.option("--against", metavar="ZOO", help="The zoo of originals, or for one task its checkpoint.")
def verify(
    *, family: str, task: str | None, against: str | None, output: Output, registry: str | None
) -> None:
    """Check what is stored: every object, every tensor's digest, and the originals where given.

    The exit code is 1 when anything is wrong. With --against, each model's relative error is measured anew and shown
    beside that of the zoo's mean alone, which is the control; and the originals are listed that are safe to delete
    because the registry gives them back bit-identical.
    """
    from uws_store.cli.restore import run_verify

    family, task = _one_model(family, task)
    if not run_verify(family, task, against=against, output=output, registry=registry):
        click.get_current_context().exit(1)


@command(
    "export",
    Example("uws-store export vit-digits task-07 -o task-07.safetensors", "one model"),
    Example("uws-store export vit-digits task-07 -o old.safetensors --revision 1", "an older version"),
    Example("uws-store export vit-digits --all -o restored/ --tier exact", "the whole zoo, bit-identical"),
)
@click.argument("family")
@click.argument("task", required=False)
@click.option("--all", "all_tasks", is_flag=True, help="Every task of the family, each as its own file.")
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    metavar="PATH",
    help="The file to write; a folder names it by its task.",
)
@click.option(
    "--tier",
    type=click.Choice(("compact", "exact", "mean")),
    default="compact",
    show_default=True,
    help="compact: what every model has; exact: bit-identical, where it was stored so; mean: the control.",
)
@click.option("--revision", metavar="REVISION", help="A version or an alias. Default: the newest version.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def export(
    *,
    family: str,
    task: str | None,
    all_tasks: bool,
    path: str,
    tier: str,
    revision: str | None,
    overwrite: bool,
    output: Output,
    registry: str | None,
) -> None:
    """Write a model, or all of a family, as safetensors files.

    Each tensor is checked against its SHA-256 on record before anything is written.
    """
    from uws_store.cli.restore import run_export, run_export_all

    family, task = _one_model(family, task)
    if all_tasks:
        if task is not None or revision is not None:
            raise click.UsageError(
                "--all exports the newest version of every task; give no TASK and no --revision"
            )
        run_export_all(family, path, tier=tier, overwrite=overwrite, output=output, registry=registry)
    elif task is None:
        raise click.UsageError("give a TASK, or --all for every task of the family")
    else:
        run_export(
            family,
            task,
            path,
            tier=tier,
            revision=revision,
            overwrite=overwrite,
            output=output,
            registry=registry,
        )


def _one_model(family: str, task: str | None) -> tuple[str, str | None]:
    """Take ``FAMILY/TASK`` as it is listed for ``FAMILY TASK``."""
    return (family, task) if task is not None else split_model(family)
