"""The table of commands: what each is called, takes and says about itself.

Help, the list of commands in README.md and shell completion are made from :data:`COMMANDS`. What a command does is
imported when it runs, so that ``--help`` does not wait for torch.
"""
# ruff: noqa: PLC0415 - for the reason above

from __future__ import annotations

from typing import Any

import click

from uws_store.cli.command import Command, Example, command, split_model
from uws_store.cli.evaluation import evaluation_options
from uws_store.cli.output import Output

__all__ = ["COMMANDS"]


@command(
    "init",
    Example("uws-store init /srv/models", "a folder that a team shares"),
    Example("uws-store init", "the default registry"),
)
@click.argument("url", required=False)
def init(*, url: str | None, output: Output, registry: str | None) -> None:
    """Make an empty registry.

    URL is the path of a new or empty folder, or a file:// URL. `uws-store build` makes a registry by itself where
    there is none.
    """
    from uws_store.cli.publish import run_init

    if url is not None and registry is not None:
        raise click.UsageError("URL and --registry both name the registry; give one")
    run_init(url if url is not None else registry, output=output)


@command(
    "build",
    Example("uws-store build zoo/ --family vit-digits", "with the default fidelity"),
    Example("uws-store build zoo/ --family vit-digits --bits 0.8", "with a number of bits"),
    Example(
        "uws-store build zoo/ --family vit-digits --max-drop 0.01 --eval score.py:f",
        "with at most 0.01 lost by an evaluation",
    ),
    Example("uws-store build zoo/ --family vit-digits --exact", "and be able to restore every bit"),
    Example("uws-store build zoo/ --family vit-digits --expect-models 500", "when many more will be added"),
)
@click.argument("zoo")
@click.option("--family", required=True, metavar="NAME", help="Name of the new family, such as vit-digits.")
@click.option(
    "--bits",
    type=float,
    metavar="NUMBER",
    help="Bits per basis-coded parameter, mean over models, metadata counted. Above 0, at most 64.",
)
@click.option(
    "--rel-error",
    type=float,
    metavar="NUMBER",
    help="Largest relative error ||W - W'|| / ||W|| of any model. Above 0, at most 1.",
)
@click.option(
    "--change-error",
    type=float,
    metavar="NUMBER",
    help="Largest error relative to the change, ||W - W'|| / ||W - mean||. Above 0, at most 1. Default: 0.05.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="NUMBER",
    help="The most that any model's score may get worse, absolute, by --eval. At least 0.",
)
@evaluation_options
@click.option(
    "--per-model",
    is_flag=True,
    help="With --max-drop: each model its own largest step, not only a finer one where it needs it.",
)
@click.option("--exact", is_flag=True, help="Also store what makes every tensor bit-identical.")
@click.option(
    "--expect-models",
    type=int,
    metavar="COUNT",
    help="Models the family will have one day; plans a larger basis. Default: those in ZOO.",
)
@click.option(
    "--skip-mismatched",
    is_flag=True,
    help="Leave out members of another architecture; without it they are refused.",
)
def build(
    *,
    zoo: str,
    family: str,
    bits: float | None,
    rel_error: float | None,
    change_error: float | None,
    max_drop: float | None,
    per_model: bool,
    exact: bool,
    expect_models: int | None,
    skip_mismatched: bool,
    output: Output,
    registry: str | None,
    **evaluation: Any,  # noqa: ANN401 - see evaluation_options
) -> None:
    """Build a family from a zoo: one basis, and every model stored in it.

    ZOO is a folder with one checkpoint file or folder per task (safetensors, or a file that torch.load can read with
    weights_only=True), or a manifest (.json). A file's stem is the task's name. How close the models are
    kept is said by one of --bits, --rel-error, --change-error and --max-drop.

    FUNCTION is called with a dict of tensors and the task's name. It returns a dict with metric, value,
    higher_is_better, n and, if it can, a list `correct` with a result per example; or None where it cannot score.
    """
    from uws_store.cli.publish import run_build

    run_build(
        zoo,
        family=family,
        bits=bits,
        rel_error=rel_error,
        change_error=change_error,
        max_drop=max_drop,
        per_model=per_model,
        exact=exact,
        expect_models=expect_models,
        skip_mismatched=skip_mismatched,
        output=output,
        registry=registry,
        **evaluation,
    )


@command(
    "add",
    Example("uws-store add new.safetensors --family vit-digits", "as task new"),
    Example(
        "uws-store add run-12/ --family vit-digits --task digits-bold --exact",
        "under another name, bit-exact",
    ),
)
@click.argument("checkpoint")
@click.option("--family", required=True, metavar="NAME", help="The family to add to.")
@click.option(
    "--task", metavar="NAME", help="The model's name. Default: the stem of the file, or the folder's name."
)
@evaluation_options
@click.option("--exact", is_flag=True, help="Also store what makes every tensor bit-identical.")
def add(
    *,
    checkpoint: str,
    family: str,
    task: str | None,
    exact: bool,
    output: Output,
    registry: str | None,
    **evaluation: Any,  # noqa: ANN401 - see evaluation_options
) -> None:
    """Add a checkpoint to a family, onto its basis.

    CHECKPOINT is a file or a folder. A task that exists gets its next version. No stored byte changes. A family that
    was built with --max-drop keeps that promise for the new model when --eval is given.
    """
    from uws_store.cli.publish import run_add

    run_add(checkpoint, family=family, task=task, exact=exact, output=output, registry=registry, **evaluation)


@command(
    "list",
    Example("uws-store list", "the families"),
    Example("uws-store list vit-digits", "the models of one"),
    Example("uws-store list 'vit-*/task-0?' --quiet", "names for a script"),
)
@click.argument("pattern", required=False)
def list_(*, pattern: str | None, output: Output, registry: str | None) -> None:
    """List the families of a registry, or the models that match a pattern.

    PATTERN is a shell pattern for a family or for family/task. The newest version of each task is listed.
    """
    from uws_store.cli.look import run_list

    run_list(pattern, output=output, registry=registry)


@command(
    "show",
    Example("uws-store show vit-digits", "a family and its models"),
    Example("uws-store show vit-digits/task-07", "one model"),
    Example("uws-store show vit-digits/task-07@1 vit-digits/task-07@2", "two versions of it"),
)
@click.argument("names", nargs=-1, required=True, metavar="FAMILY[/TASK]...")
def show(*, names: tuple[str, ...], output: Output, registry: str | None) -> None:
    """Show sizes, errors and versions, from the records alone.

    TASK may be task@3 for a version or task@prod for an alias.
    """
    from uws_store.cli.look import run_show

    run_show(names, output=output, registry=registry)


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


COMMANDS: tuple[Command, ...] = (init, build, add, list_, show, verify, export)
"""Every command, in the order of their use."""
