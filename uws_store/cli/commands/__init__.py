"""The table of commands: what each is called, takes and says about itself.

Help, the list of commands in README.md and shell completion are made from :data:`COMMANDS`. What a command does is
imported when it runs, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

from uws_store.cli.command import Command
from uws_store.cli.commands.growing import extend, rebase
from uws_store.cli.commands.keeping import cache, card, gc, sign
from uws_store.cli.commands.looking import analyze, list_, report, show
from uws_store.cli.commands.making import add, build, init
from uws_store.cli.commands.moving import mirror, pull, push
from uws_store.cli.commands.naming import alias, delete, diff, log
from uws_store.cli.commands.restoring import export, verify
from uws_store.cli.commands.tending import doctor

__all__ = ["COMMANDS"]

COMMANDS: tuple[Command, ...] = (
    init,
    analyze,
    build,
    add,
    list_,
    show,
    log,
    diff,
    alias,
    delete,
    push,
    pull,
    mirror,
    card,
    sign,
    gc,
    cache,
    extend,
    rebase,
    verify,
    report,
    export,
    doctor,
)
"""Every command, in the order of their use."""
