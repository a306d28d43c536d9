"""Commands that bring families from one registry to another."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

import click

from uws_store.cli.command import Example, command, split_model
from uws_store.cli.output import Output

__all__ = ["mirror", "pull", "push"]

_pack = click.option(
    "--pack/--no-pack",
    default=None,
    help="Put small models that are new there into few objects, or each into a folder of its own; by default only the "
    "Hub gets packs.",
)
_check = click.option(
    "--check",
    is_flag=True,
    help="Read what is there already, too, and put back what is damaged; without it, what is gone or has another length.",
)


@command(
    "push",
    Example("uws-store push vit-digits s3://team/models", "a family, with all its versions and aliases"),
    Example("uws-store push vit-digits/task-07@prod /mnt/share/models", "one version"),
)
@click.argument("name", metavar="FAMILY[/TASK]")
@click.argument("url")
@_pack
@_check
def push(
    *, name: str, url: str, pack: bool | None, check: bool, output: Output, registry: str | None
) -> None:
    """Bring a family, a task or a version to another registry.

    Only objects that are not there are transferred, and each is checked at the far end; run it again after an
    interruption. What is gone or damaged there is put back. In a registry that has no such task versions keep their integers, in one that has, what is new gets
    its next versions. Aliases that are there already are left.
    """
    from uws_store.cli.moving import run_push

    family, task = split_model(name)
    run_push(family, task, url, output=output, registry=registry, pack=pack, check=check)


@command(
    "pull",
    Example("uws-store pull s3://team/models vit-digits", "a family"),
    Example("uws-store pull https://models.example.org vit-digits/task-07", "a task, from a web server"),
)
@click.argument("url")
@click.argument("name", metavar="FAMILY[/TASK]")
@_pack
@_check
def pull(
    *, url: str, name: str, pack: bool | None, check: bool, output: Output, registry: str | None
) -> None:
    """Bring a family, a task or a version from another registry.

    It is `push` the other way round: from URL to --registry.
    """
    from uws_store.cli.moving import run_pull

    family, task = split_model(name)
    run_pull(url, family, task, output=output, registry=registry, pack=pack, check=check)


@command(
    "mirror",
    Example("uws-store mirror /mnt/backup/models", "everything, again and again"),
)
@click.argument("url")
@_pack
@_check
def mirror(*, url: str, pack: bool | None, check: bool, output: Output, registry: str | None) -> None:
    """Bring every family to another registry, and its aliases to where they stand here.

    What URL has beside stays; nothing is withdrawn there.
    """
    from uws_store.cli.moving import run_mirror

    run_mirror(url, output=output, registry=registry, pack=pack, check=check)
