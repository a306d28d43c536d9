"""Commands that keep a registry in order: what is no longer needed is removed."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

import click

from uws_store.cli.command import Example, command
from uws_store.cli.output import Output

__all__ = ["cache", "card", "gc", "sign"]


@command(
    "gc",
    Example("uws-store gc --dry-run", "what would be removed"),
    Example("uws-store gc", "mark what nothing reaches, remove what was marked a day ago"),
    Example("uws-store gc --keep-last 3 --older-than 30d", "and withdraw old versions first"),
)
@click.option("--dry-run", is_flag=True, help="Change nothing, and tell what would be.")
@click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    metavar="COUNT",
    help="Withdraw the versions of each task but the last so many; never one that an alias stands for.",
)
@click.option(
    "--older-than",
    metavar="DURATION",
    help="With --keep-last: only versions published so long ago, such as 30d or 12h.",
)
@click.option(
    "--grace",
    default="1d",
    show_default=True,
    metavar="DURATION",
    help="How long something must have been unreachable; at least 1h, by the storage's clock.",
)
def gc(
    *,
    dry_run: bool,
    keep_last: int | None,
    older_than: str | None,
    grace: str,
    output: Output,
    registry: str | None,
) -> None:
    """Remove what no version of any task reaches any more.

    It takes two runs, a grace period apart: the first marks, the second removes what is still unreachable. What a
    version or an alias reaches is never removed, nor what a publication at work has uploaded. On a disk, temporary
    files of killed writers that are older than the grace period are removed too.
    """
    from uws_store.cli.keeping import run_gc

    run_gc(
        dry_run=dry_run,
        keep_last=keep_last,
        older_than=older_than,
        grace=grace,
        output=output,
        registry=registry,
    )


@command(
    "cache",
    Example("uws-store cache", "how much is kept, and where"),
    Example("uws-store cache ls", "what is kept, what was used longest ago first"),
    Example("uws-store cache clear", "keep nothing of it"),
)
@click.argument(
    "action", type=click.Choice(("size", "ls", "clear")), default="size", metavar="[size|ls|clear]"
)
def cache(*, action: str, output: Output, registry: str | None) -> None:
    """Look at what is kept of registries behind a network, or clear it.

    What was read is kept under its digest in the folder that UWS_STORE_CACHE names, up to UWS_STORE_CACHE_SIZE; what
    was used longest ago goes first. Clearing it costs nothing but reading again.
    """
    from uws_store.cli.keeping import run_cache

    del registry
    run_cache(action, output=output)


@command(
    "card",
    Example("uws-store card vit-digits", "print it"),
    Example(
        "uws-store card vit-digits -o README.md --url hf://org/vit-digits", "for a repository of the Hub"
    ),
    Example(
        "uws-store card vit-digits --publish --registry hf://org/vit-digits", "refresh what the Hub shows"
    ),
)
@click.argument("family")
@click.option("-o", "--output", "path", metavar="PATH", help="Write it to a file.")
@click.option(
    "--url", "place", metavar="URL", help="Where readers will find the family; the card tells how to load it."
)
@click.option(
    "--publish", is_flag=True, help="Write it into the registry's own repository of the Hub, as a push does."
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def card(
    *,
    family: str,
    path: str | None,
    place: str | None,
    publish: bool,
    overwrite: bool,
    output: Output,
    registry: str | None,
) -> None:
    """Write a family's model card: what it is, how many models, sizes, scores, how to load it.

    It is Markdown with the metadata that the Hub indexes, told by the records alone. A push to the root of a repository
    of the Hub writes it too. A README.md that was written by hand is not replaced without --overwrite.
    """
    from uws_store.cli.keeping import run_card

    if publish and (path is not None or place is not None):
        raise click.UsageError(
            "--publish writes to the registry's own repository; leave out --output and --url"
        )
    run_card(
        family, path, place=place, publish=publish, overwrite=overwrite, output=output, registry=registry
    )


@command(
    "sign",
    Example("uws-store sign vit-digits --key key.pem", "what the family is now"),
    Example("uws-store sign --key key.pem", "the whole registry"),
)
@click.argument("family", required=False)
@click.option("--key", required=True, metavar="PATH", help="A PEM file with an Ed25519 private key.")
def sign(*, family: str | None, key: str, output: Output, registry: str | None) -> None:
    """Sign the newest commit of a registry, and so its whole history.

    Whoever has the public key finds out when an older or another log was put in its place. A key is made with
    `openssl genpkey -algorithm ed25519`.
    """
    from uws_store.cli.keeping import run_sign

    run_sign(family, key=key, output=output, registry=registry)
