"""The options of commands that do much work: where it runs, in how much memory, and how the zoo it is done on is reached.

Must not know what the work is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["device_option", "work_options", "workers_option", "zoo_option"]

device_option = click.option(
    "--device",
    default="cpu",
    metavar="NAME",
    help="Where tensors are fitted and models encoded, such as cuda (every GPU) or cuda:1. What does not fit there is done "
    "in pieces or on the CPU. Default: cpu.",
)
"""Where the arithmetic is done."""

zoo_option = click.option(
    "--zoo-option",
    multiple=True,
    metavar="KEY=VALUE",
    help="For the storage of a zoo's URLs, such as endpoint_url=http://host:9000; may be given again. Never shown.",
)
"""How the checkpoints' own storage is opened."""

workers_option = click.option(
    "--workers",
    type=int,
    metavar="COUNT",
    help="Pieces of work that run at once. Default: the cores at hand.",
)
"""How many pieces at once."""


def work_options(body: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--executor``, ``--workers``, ``--memory`` and ``--restart``."""
    options = (
        click.option(
            "--executor",
            metavar="NAME",
            help="Where the work runs: threads, serial, processes, dask (a cluster on this machine) or dask://HOST:PORT. "
            "The stored bytes do not depend on it. Default: threads.",
        ),
        workers_option,
        click.option(
            "--memory",
            metavar="SIZE",
            help="The most memory the work may take, such as 8GiB; what cannot fit is refused before anything is read. "
            "Default: four fifths of what is free.",
        ),
        click.option(
            "--restart",
            is_flag=True,
            help="Begin anew, instead of going on where the same work was killed.",
        ),
    )
    for option in reversed(options):
        body = option(body)
    return body
