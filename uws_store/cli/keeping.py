"""``gc``: what was removed, and what waits to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uws_store.api import cache_contents, card, check_signature, clear_cache, gc, publish_card, sign
from uws_store.cli.output import Output, columns, counted, facts, size
from uws_store.errors import AlreadyExistsError, StorageError
from uws_store.registry import Registry, Removal

__all__ = ["run_cache", "run_card", "run_check_signature", "run_gc", "run_sign"]


def run_gc(
    *,
    dry_run: bool,
    keep_last: int | None,
    older_than: str | None,
    grace: str,
    output: Output,
    registry: str | None,
) -> None:
    """Collect garbage."""
    result = gc(registry=registry, dry_run=dry_run, keep_last=keep_last, older_than=older_than, grace=grace)
    if output.as_json:
        output.document(result)
        return
    if output.quiet:
        output.names(removal.prefix for removal in (*result.removed, *result.leftovers))
        return
    would = "would be " if dry_run else ""
    names = [f"{family}/{task}@{version}" for family, task, version in result.withdrawn]
    output.show(
        facts(
            (
                (f"{would}withdrawn", counted(len(names), "version"), ", ".join(names[:5])),
                (f"{would}removed", *_measure(result.removed)),
                (f"temporary files {would}removed", *_measure(result.leftovers)),
                ("unreachable", *_measure(result.marked)),
                ("too young to tell", *_measure(result.young)),
                ("held by a publisher", str(len(result.held)), ""),
            )
        )
    )
    if result.marked and not dry_run:
        output.notice(f"what is unreachable is removed by the next run that is at least {grace} later")
    if result.young:
        output.notice(
            f"nothing reaches what is too young to tell either; it is marked once it is {grace} old"
        )


def run_cache(action: str, *, output: Output) -> None:
    """Look at the cache, or clear it."""
    if action == "clear":
        removed = clear_cache()
        if output.as_json:
            output.document({"removed_bytes": removed})
        elif not output.quiet:
            output.show(f"removed {size(removed)}")
        return
    contents = cache_contents()
    if output.as_json:
        output.document(contents)
    elif output.quiet:
        output.names(file.name for file in contents.files)
    elif action == "ls":
        output.show(
            columns(
                {"object": "name", "size": "number"}, ((f.name, size(f.size_bytes)) for f in contents.files)
            )
        )
    else:
        output.show(
            facts(
                (
                    ("folder", contents.folder, ""),
                    ("kept", size(contents.size_bytes), counted(len(contents.files), "object")),
                    ("limit", size(contents.limit_bytes), ""),
                )
            )
        )


def run_card(
    family: str,
    path: str | None,
    *,
    place: str | None,
    publish: bool,
    overwrite: bool,
    output: Output,
    registry: str | None,
) -> None:
    """Write a family's model card."""
    target = Path(path) if path is not None else None
    if target is not None and target.exists() and not overwrite:
        raise AlreadyExistsError(
            f"{target} is there already; name another file, or give --overwrite", kind="already-exists/file"
        )
    if publish:
        text = publish_card(family, registry=registry, overwrite=overwrite)
    else:
        text = card(family, registry=registry, repository=place)
    if target is not None:
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error}", kind="storage/io") from error
    if output.as_json:
        output.document({"family": family, "path": target, "card": text})
    elif publish:
        output.notice("wrote the card into the repository")
    elif target is None:
        output.names(text.splitlines())
    else:
        output.notice(f"wrote {target}")


def run_sign(family: str | None, *, key: str, output: Output, registry: str | None) -> None:
    """Sign a registry."""
    result = sign(family, key=key, registry=registry)
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names([str(result.number)])
    else:
        output.show(f"signed {family or result.registry} at commit {result.number}, key {result.key}")


def run_check_signature(family: str, *, key: str, output: Output, registry: str | Registry | None) -> None:
    """Hold a family to a signature, before anything else is looked at."""
    result = check_signature(family, key=key, registry=registry)
    since = (
        f"; {counted(result.commits_since, 'commit')} since are not covered" if result.commits_since else ""
    )
    output.notice(f"signed at commit {result.number} by {result.key}{since}")
    output.notices(
        "published since, and not signed",
        [f"{name}/{task}@{version}" for name, task, version in result.unsigned],
    )


def _measure(removals: Sequence[Removal]) -> tuple[str, str]:
    objects = sum(removal.objects for removal in removals)
    return size(sum(removal.size_bytes for removal in removals)), counted(objects, "object")
