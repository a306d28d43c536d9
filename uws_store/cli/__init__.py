"""The command line: arguments in, calls to the API, results out as tables, names or JSON.

``command.py`` says what a command is, ``commands.py`` is the table of them, ``publish.py``, ``look.py`` and
``restore.py`` do what they say. Knows nothing about formats, bytes or numerics.
"""

from __future__ import annotations

from uws_store.cli.program import PROGRAM, main

__all__ = ["PROGRAM", "main"]
