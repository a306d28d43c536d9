"""Commands that give models back, and check that they can be."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

from typing import Any

import click

from uws_store.cli.command import Example, command, split_model
from uws_store.cli.output import Output
from uws_store.cli.work import zoo_option
from uws_store.storage import parse_options

__all__ = ["export", "verify"]


@command(
    "verify",
    Example("uws-store verify vit-digits", "every object and every tensor's digest"),
    Example("uws-store verify vit-digits --against zoo/", "and the distance to the originals"),
    Example("uws-store verify vit-digits --against s3://bucket/zoo", "to originals in a bucket"),
    Example("uws-store verify vit-digits --against zoo/ --eval score.py:f", "and the scores, side by side"),
    Example("uws-store verify vits --eval accuracy --data test.npz", "accuracy on labelled examples"),
    Example("uws-store verify llamas --eval logits", "agreement with the original, without labels"),
    Example("uws-store verify vits --signature jo.pem", "that the log is the one which Jo signed, first"),
    Example("uws-store verify vits --record --signed-off-by Jo", "and what was found, kept with the family"),
)
@click.argument("family")
@click.argument("task", required=False)
@click.option(
    "--against",
    metavar="ZOO",
    help="The zoo of originals, as a path or a URL; or for one task its checkpoint.",
)
@zoo_option
@click.option(
    "--rename", metavar="FILE", help="With --against: the map of names that the family was built with."
)
@click.option(
    "--eval",
    "evaluate",
    metavar="FUNCTION",
    help="Score original, compact tier, mean alone and a basis-free control: accuracy, logits, package.module:function "
    "or file.py:function. It is imported and run.",
)
@click.option(
    "--data",
    metavar="PATH",
    help="For accuracy and logits: a .safetensors or .npz file with the arguments of forward() and `labels`, or a folder "
    "with one such file per task. Default for logits: random inputs.",
)
@click.option(
    "--module",
    metavar="FUNCTION",
    help="For accuracy and logits: a function from a task to its torch module. Default: made from the stored "
    "configuration.",
)
@click.option(
    "--metric", metavar="NAME", help="Which number counts, where FUNCTION returns a plain dict of numbers."
)
@click.option(
    "--higher-is-better/--lower-is-better",
    default=None,
    help="The direction of --metric, where FUNCTION does not say it.",
)
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    metavar="COUNT",
    help="Models checked at a time, in threads. Evaluations run one at a time.",
)
@click.option(
    "--log",
    is_flag=True,
    help="Also read the registry's log from its first commit, and hold every snapshot to it.",
)
@click.option(
    "--signature",
    metavar="PATH",
    help="Hold the family to its signature first: a PEM file with the Ed25519 public key of whoever is trusted.",
)
@click.option(
    "--record", is_flag=True, help="Publish what was found, whatever it is, as a record of the family."
)
@click.option(
    "--signed-off-by", metavar="NAME", help="With --record: who stands for it. Nobody is asked to prove it."
)
def verify(
    *,
    family: str,
    task: str | None,
    signature: str | None,
    zoo_option: tuple[str, ...],
    against: str | None,
    output: Output,
    registry: str | None,
    **options: Any,  # noqa: ANN401 - passed on as they are
) -> None:
    """Check what is stored: every object, every tensor's digest, and the originals and scores where asked.

    The exit code is 1 when anything is wrong or a promise on record is broken. With --against, each model's relative
    error is measured anew and shown beside that of the zoo's mean alone, which is the control; and the originals are
    listed that are safe to delete because the registry gives them back bit-identical. With --eval, the original is
    taken from --against, else from the exact tier. With --record, `show`, `log` and `report` tell what was found.
    """
    from uws_store.cli.verification import open_source, run_verify

    family, task = _one_model(family, task)
    if zoo_option and against is None:
        raise click.UsageError("--zoo-option is for originals; name them with --against")
    opened = open_source(registry)
    if signature is not None:
        from uws_store.cli.keeping import run_check_signature

        run_check_signature(family, key=signature, output=output, registry=opened)
    zoo_options = parse_options(zoo_option)
    if not run_verify(
        family, task, against=against, zoo_options=zoo_options, output=output, opened=opened, **options
    ):
        click.get_current_context().exit(1)


@command(
    "export",
    Example("uws-store export vit-digits task-07 -o task-07.safetensors", "one model"),
    Example("uws-store export vit-digits task-07 -o old.safetensors --revision 1", "an older version"),
    Example("uws-store export bert-reviews shoes -o shoes/", "a folder that from_pretrained opens"),
    Example("uws-store export vit-digits --all -o restored/ --tier exact", "the whole zoo, bit-identical"),
)
@click.argument("family")
@click.argument("task", required=False)
@click.option(
    "--all", "all_tasks", is_flag=True, help="Every task of the family, each as its own file or folder."
)
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    metavar="PATH",
    help="The file or folder to write; with a bare file's model, a folder names it by its task.",
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

    A model that was stored with a configuration or a tokenizer comes back as a folder with these, which from_pretrained
    opens; a PATH that ends in .safetensors gets its weights alone.

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
