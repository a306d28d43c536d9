"""Commands that look: what a registry holds, from its records alone."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

import click

from uws_store.cli.command import Example, command
from uws_store.cli.output import Output
from uws_store.cli.work import zoo_option

__all__ = ["analyze", "list_", "report", "show"]


@command(
    "analyze",
    Example("uws-store analyze zoo/", "is there anything to share, and how much?"),
    Example("uws-store analyze zoo/ --plot zoo.svg", "and draw it"),
    Example("uws-store analyze zoo/ --json", "every tensor's figures"),
)
@click.argument("zoo")
@click.option(
    "--plot", metavar="FILE", help="Also draw it: an .svg, .png or .pdf file. Needs the extra `report`."
)
@click.option(
    "--rename-out",
    metavar="FILE",
    help="Write the map for build --rename that shapes and order suggest, as JSON.",
)
@click.option(
    "--plan/--no-plan",
    default=True,
    help="Predict the bytes that build would store; it costs what the basis of a build costs.",
)
@click.option("--overwrite", is_flag=True, help="Replace a plot or map that is there.")
@zoo_option
def analyze(
    *,
    zoo: str,
    plot: str | None,
    rename_out: str | None,
    plan: bool,
    overwrite: bool,
    zoo_option: tuple[str, ...],
    output: Output,
    registry: str | None,
) -> None:
    """Tell what a zoo is: architectures, kinship of its models, and what they share beyond chance.

    Everything is measured on models kept out of the fit and stands beside two nulls: Gaussian numbers of the same
    variance, and each model's own numbers shuffled. What nulls have as well is no shared subspace. The bytes of a model,
    of the basis and of a family are predicted as `build --plan-only` does for the default fidelity.
    """
    from uws_store.cli.analysis import run_analyze

    if registry is not None:
        raise click.UsageError("analyze reads a zoo and no registry; leave out --registry")
    run_analyze(
        zoo,
        plot=plot,
        rename_out=rename_out,
        plan=plan,
        overwrite=overwrite,
        zoo_option=zoo_option,
        output=output,
    )


@command(
    "list",
    Example("uws-store list", "the families"),
    Example("uws-store list vit-digits", "the models of one"),
    Example("uws-store list 'vit-*/task-0?' --quiet", "names for a script"),
    Example("uws-store list '*' --where licence=mit --where 'rel_error<=0.05'", "by what the records say"),
)
@click.argument("pattern", required=False)
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="KEY=VALUE, also with != < <= > >=; may be repeated, all must hold.",
)
def list_(*, pattern: str | None, where: tuple[str, ...], output: Output, registry: str | None) -> None:
    """List the families of a registry, or the models that match a pattern.

    PATTERN is a shell pattern for a family or for family/task. The newest version of each task is listed. KEY is
    version, basis, exact (yes or no), size_bytes, alias, dtype, rel_error, source (a SHA-256 or its beginning),
    score.METRIC, drop.METRIC, or a key of the checkpoint's own metadata.
    """
    from uws_store.cli.look import run_list

    run_list(pattern, where=where, output=output, registry=registry)


@command(
    "show",
    Example("uws-store show vit-digits", "a family and its models"),
    Example("uws-store show vit-digits/task-07", "one model"),
    Example("uws-store show vit-digits/task-07@1 vit-digits/task-07@2", "two versions of it"),
)
@click.argument("names", nargs=-1, required=True, metavar="FAMILY[/TASK]...")
def show(*, names: tuple[str, ...], output: Output, registry: str | None) -> None:
    """Show sizes, errors and versions, from the records alone.

    TASK may be task@3 for a version or task@prod for an alias. Of a family, models whose records are missing or damaged
    are named below the others, and the exit code is 1.
    """
    from uws_store.cli.look import run_show

    if not run_show(names, output=output, registry=registry):
        click.get_current_context().exit(1)


@command(
    "report",
    Example("uws-store report vit-digits -o vit-digits.html", "one page, to open in a browser"),
)
@click.argument("family")
@click.option("-o", "--output", "path", required=True, metavar="FILE", help="The HTML file to write.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def report(*, family: str, path: str, overwrite: bool, output: Output, registry: str | None) -> None:
    """Write one HTML page by which a family is judged.

    It shows bytes, rate and distortion, scores before and after, what the models share beside what chance would give,
    errors by tensor, growth and provenance, from the records alone. It needs the extra: pip install 'uws-store[report]'.
    Models and bases whose records are missing or damaged are named on it, and the exit code is 1.
    """
    from uws_store.cli.report import run_report

    if not run_report(family, path, overwrite=overwrite, output=output, registry=registry):
        click.get_current_context().exit(1)
