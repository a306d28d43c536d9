"""``doctor``: how what was found about a storage is told."""

from __future__ import annotations

from rich.text import Text

from uws_store.api.doctor import Diagnosis
from uws_store.api.doctor import doctor as api_doctor
from uws_store.cli.hints import storage_command
from uws_store.cli.output import Output, as_plain, columns

__all__ = ["run_doctor"]


def run_doctor(url: str | None, *, output: Output) -> bool:
    """Examine a storage and say what it may be used for.

    Returns
    -------
    bool
        Whether its registry, or the one that would be made there, is safe.
    """
    found = api_doctor(url)
    uses = {use: found.allows(use) for use in ("reading", "publishing", "many writers")}
    if output.as_json:
        document = as_plain(found)
        assert isinstance(document, dict)
        output.document({**document, "allows": uses, "safe": found.safe})
    elif output.quiet:
        output.names(check.name for check in found.checks if not check.kept)
    else:
        output.show(
            f"{found.url}: {_what_is_there(found)}\n",
            columns(
                {"promise": "word", "kept": "word", "needed for": "word", "found": "name"},
                [
                    [
                        check.name,
                        Text("yes", "green") if check.kept else Text("no", "bold red"),
                        check.needed_for,
                        check.found,
                    ]
                    for check in found.checks
                ],
            ),
            f"\n{_verdict(found, uses, url=url)}",
        )
    return found.safe


def _what_is_there(found: Diagnosis) -> str:
    if found.registry is None:
        return "no registry yet"
    return f"registry {found.registry}{', made for a single writer' if found.single_writer else ''}"


def _verdict(found: Diagnosis, uses: dict[str, bool], *, url: str | None) -> str:
    if not uses["reading"]:
        return "unsafe: do not read from it"
    if not found.writable:
        return "safe to read; nothing can be written"
    if not uses["publishing"]:
        return "unsafe: do not publish to it"
    if not uses["many writers"]:
        init = storage_command("init", url or found.url, "--single-writer")
        advice = "" if found.single_writer else f"; make the registry with: {init}"
        return f"safe for a single writer only{advice}"
    return "safe for many writers"
