"""``python -m uws_store``: the command line."""

from __future__ import annotations

from uws_store.cli import main

main()
