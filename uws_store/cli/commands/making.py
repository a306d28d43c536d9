"""Commands that make: a registry, a family, a model of a family."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from uws_store.cli.command import Example, command
from uws_store.cli.evaluation import evaluation_options
from uws_store.cli.options import plan_options
from uws_store.cli.output import Output
from uws_store.cli.work import device_option, work_options, zoo_option

if TYPE_CHECKING:
    from uws_store.cli.options import AddOptions, BuildOptions

__all__ = ["add", "build", "init"]

_rename = click.option(
    "--rename",
    metavar="FILE",
    help="A JSON file with names of tensors: from a checkpoint's to the family's, or such a map per task.",
)
_exact_overhead = click.option(
    "--exact-overhead",
    type=float,
    metavar="NUMBER",
    help="With --exact: how much larger, as a share, a model may get for a small compact tier. Default: 0.005, or what the "
    "family was built with.",
)


@command(
    "init",
    Example("uws-store init /srv/models", "a folder that a team shares"),
    Example("uws-store init s3://bucket/models", "a bucket that exists"),
    Example("uws-store init", "the default registry"),
)
@click.argument("url", required=False)
@click.option(
    "--single-writer",
    is_flag=True,
    help="For a storage that ignores conditions: only one process publishes at a time, which is up to you.",
)
def init(*, url: str | None, single_writer: bool, output: Output, registry: str | None) -> None:
    """Make an empty registry.

    URL is the path of a new or empty folder, a file:// URL, or a bucket's: s3://, gs://, az://. `uws-store build` makes
    a registry by itself where there is none. A storage that does not keep writers apart is refused; `uws-store doctor`
    shows what it does.
    """
    from uws_store.cli.publish import run_init

    if url is not None and registry is not None:
        raise click.UsageError("URL and --registry both name the registry; give one")
    run_init(url if url is not None else registry, single_writer=single_writer, output=output)


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
    Example("uws-store build zoo/ --family vit-digits --plan-only", "what it would store, and why"),
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
@_exact_overhead
@click.option(
    "--expect-models",
    type=int,
    metavar="COUNT",
    help="Models the family will have one day; plans a larger basis. Default: those in ZOO.",
)
@click.option(
    "--base",
    type=click.Path(),
    metavar="PATH",
    help="For adapters: the checkpoint of their base model, whose digest then stands in the family's record.",
)
@click.option(
    "--max-decode-flops-per-weight",
    type=float,
    metavar="NUMBER",
    help="The most that decoding a tensor may take per weight; wide factors take more. Default: about a second a model.",
)
@click.option("--plan-only", is_flag=True, help="Plan and print the plan; store nothing.")
@click.option("-o", "--output-plan", metavar="FILE", help="With --plan-only: save the plan too.")
@click.option("--plan", metavar="FILE", help="Follow a saved plan instead of planning.")
@click.option(
    "--skip-mismatched",
    is_flag=True,
    help="Leave out members of another architecture; without it they are refused.",
)
@_rename
@zoo_option
@device_option
@work_options
def build(
    *,
    zoo: str,
    family: str,
    plan_only: bool,
    output_plan: str | None,
    plan: str | None,
    zoo_option: tuple[str, ...],
    output: Output,
    registry: str | None,
    **options: Unpack[BuildOptions],
) -> None:
    """Build a family from a zoo: one basis, and every model stored in it.

    ZOO is a folder with one checkpoint file or folder per task (safetensors, or a file that torch.load can read with
    weights_only=True), a manifest (.json), or a URL with safetensors objects (s3://, https://, hf://org/name@revision). A file's stem is the task's name. How close the models are
    kept is said by one of --bits, --rel-error, --change-error and --max-drop.

    FUNCTION is called with a dict of tensors and the task's name. It returns a dict with metric, value,
    higher_is_better, n and, if it can, a list `correct` with a result per example; or None where it cannot score.
    """
    from uws_store.cli.planning import run_plan
    from uws_store.cli.publish import run_build

    if output_plan is not None and not plan_only:
        raise click.UsageError("--output-plan goes with --plan-only")
    if plan is not None and plan_only:
        raise click.UsageError("--plan and --plan-only exclude each other")
    if plan_only:
        run_plan(zoo, save=output_plan, zoo_option=zoo_option, output=output, **plan_options(options))
        return
    run_build(
        zoo, family=family, plan=plan, zoo_option=zoo_option, output=output, registry=registry, **options
    )


@command(
    "add",
    Example("uws-store add new.safetensors --family vit-digits", "as task new"),
    Example(
        "uws-store add run-12/ --family vit-digits --task digits-bold --exact",
        "under another name, bit-exact",
    ),
    Example("uws-store add hf://org/name@main --family vit-digits", "from the Hub, as task name"),
)
@click.argument("checkpoint")
@click.option("--family", required=True, metavar="NAME", help="The family to add to.")
@click.option(
    "--task", metavar="NAME", help="The model's name. Default: the file's stem, or the folder's name."
)
@evaluation_options
@click.option("--exact", is_flag=True, help="Also store what makes every tensor bit-identical.")
@_exact_overhead
@_rename
@zoo_option
@device_option
def add(
    *,
    checkpoint: str,
    family: str,
    zoo_option: tuple[str, ...],
    output: Output,
    registry: str | None,
    **options: Unpack[AddOptions],
) -> None:
    """Add a checkpoint to a family, onto its basis.

    CHECKPOINT is a file, a folder, or a URL with one safetensors object (s3://, https://, hf://org/name@revision). A task that exists gets its next version. No stored byte changes. A family that
    was built with --max-drop keeps that promise for the new model when --eval is given.
    """
    from uws_store.cli.publish import run_add

    run_add(checkpoint, family=family, zoo_option=zoo_option, output=output, registry=registry, **options)
