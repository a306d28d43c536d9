"""Commands that tend the place where a registry lies."""
# ruff: noqa: PLC0415 - what a command does is imported when it runs

from __future__ import annotations

import click

from uws_store.cli.command import Example, command
from uws_store.cli.output import Output

__all__ = ["doctor"]


@command(
    "doctor",
    Example("uws-store doctor s3://bucket/models", "before the first model goes there"),
    Example("uws-store doctor --json", "the default registry, for a script"),
)
@click.argument("url", required=False)
def doctor(*, url: str | None, output: Output, registry: str | None) -> None:
    """Try what a storage really does, and say what it may be used for.

    Objects are written below a folder of their own and removed again: 32 MiB of traffic. The exit code is 1 when the
    storage does not keep what its registry relies on, or a registry of many writers would.
    """
    from uws_store.cli.doctor import run_doctor

    if url is not None and registry is not None:
        raise click.UsageError("URL and --registry both name the storage; give one")
    if not run_doctor(url if url is not None else registry, output=output):
        click.get_current_context().exit(1)
