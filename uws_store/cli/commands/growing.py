"""Commands by which a family grows: a new basis revision, and models moved onto it."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

import click

from uws_store.cli.command import Example, command, split_model
from uws_store.cli.output import Output
from uws_store.cli.work import device_option, workers_option, zoo_option

__all__ = ["extend", "rebase"]


@command(
    "extend",
    Example("uws-store extend vit-digits more/", "a basis for the old models and those in more/"),
    Example("uws-store extend vit-digits s3://bucket/more", "with new checkpoints in a bucket"),
    Example("uws-store extend vit-digits", "for those too that were added since the last revision"),
)
@click.argument("family")
@click.argument("zoos", nargs=-1, metavar="[ZOO]...")
@click.option("--exact", is_flag=True, help="Also store what makes the new models bit-identical.")
@click.option("--expect-models", type=int, metavar="COUNT", help="Models the family will have one day.")
@zoo_option
@device_option
@workers_option
@click.option(
    "--memory",
    metavar="SIZE",
    help="The most memory the work may take, such as 8GiB. Default: four fifths of what is free.",
)
def extend(
    *,
    family: str,
    zoos: tuple[str, ...],
    exact: bool,
    expect_models: int | None,
    zoo_option: tuple[str, ...],
    device: str,
    workers: int | None,
    memory: str | None,
    output: Output,
    registry: str | None,
) -> None:
    """Make the next basis revision, from a family's stored models and new ones.

    The old checkpoints are not read: models come out of the registry, bit-identical where they have the exact tier.
    ZOO is what `uws-store build` takes: a folder, a manifest or a URL. The models in ZOO are stored on the new revision; old ones keep theirs.
    """
    from uws_store.cli.growth import run_extend

    run_extend(
        family,
        zoos,
        exact=exact,
        expect_models=expect_models,
        zoo_option=zoo_option,
        device=device,
        workers=workers,
        memory=memory,
        output=output,
        registry=registry,
    )


@command(
    "rebase",
    Example("uws-store rebase vit-digits/task-07", "from its exact tier"),
    Example("uws-store rebase vit-digits/task-07 --source zoo/task-07.safetensors", "from its checkpoint"),
)
@click.argument("model", metavar="FAMILY/TASK")
@click.option("--source", metavar="CHECKPOINT", help="The checkpoint that the model was made from.")
@zoo_option
@device_option
def rebase(
    *,
    model: str,
    source: str | None,
    zoo_option: tuple[str, ...],
    device: str,
    output: Output,
    registry: str | None,
) -> None:
    """Move a model onto the newest basis revision, as the task's next version.

    It is encoded anew from its exact tier or its checkpoint, and refused without either.
    """
    from uws_store.cli.growth import run_rebase

    family, task = split_model(model)
    if task is None:
        raise click.UsageError("name one model: FAMILY/TASK")
    run_rebase(
        family,
        task,
        source=source,
        zoo_option=zoo_option,
        device=device,
        output=output,
        registry=registry,
    )
