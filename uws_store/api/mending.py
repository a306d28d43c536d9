"""Packs that a registry names and that are gone or damaged there, made again from another registry.

A pack is named by the digest of its bytes, and a version's place in it never changes: so it is the same pack that is
put back, or none. Must not know how objects are transferred otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from uws_store import layout
from uws_store.api.packing import SourceModels
from uws_store.errors import FormatError, NotFoundError
from uws_store.metadata.log import ModelAction, PackPlace
from uws_store.registry import FamilyState, ModelEntry, Registry
from uws_store.storage import Storage

__all__ = ["damaged_packs", "make_again"]

Packs = Mapping[str, Mapping[str, PackPlace]]


def damaged_packs(
    target: Storage, family: FamilyState, entries: Sequence[ModelEntry], *, check: bool
) -> Iterator[str]:
    """Tell which packs are gone, cut off or, with a check, hold other bytes than their name says.

    Parameters
    ----------
    target : Storage
        Where they should be.
    family : FamilyState
        The family there.
    entries : sequence of ModelEntry
        The models that are wanted, by any registry's state.
    check : bool
        Read each pack and compare its digest; otherwise one request for each asks for its length.

    Yields
    ------
    str
        Digests of packs.
    """
    wanted = {entry.digest for entry in entries}
    for pack, places in _packs_of(family.models()).items():
        if not wanted & places.keys():
            continue
        path = layout.pack_path(family.name, pack)
        if check:
            try:
                is_whole = hashlib.sha256(target.read(path)).hexdigest() == pack
            except NotFoundError:
                is_whole = False
        else:
            is_whole = (target.size(path) or 0) >= max(
                place.offset + place.length for place in places.values()
            )
        if not is_whole:
            yield pack


def make_again(pack: str, source: Registry, target: Registry, family: str) -> bytes:
    """Give the bytes of a pack that the target names, from what the source has.

    The source's own pack is taken where it has the same one. Otherwise its models are laid end to end as the target's
    log says, those that were withdrawn since among them; only then the whole log of the target is read.

    Raises
    ------
    FormatError
        When the source has not all of its models (``format/missing-object``), or its objects are damaged.
    """
    ours = {entry.digest: entry for entry in source.state().family(family).models()}
    for entry in ours.values():
        if entry.pack is not None and entry.pack.digest == pack:
            try:
                data = source.storage.read(layout.pack_path(family, pack))
            except NotFoundError:
                break
            if hashlib.sha256(data).hexdigest() == pack:
                return data
            break
    laid = _laid_out(pack, _packs_of(target.state().family(family).models())[pack], source, ours)
    if laid is None:
        held = {
            action.digest: action.pack
            for commit, _ in target.history()
            for action in commit.actions
            if isinstance(action, ModelAction)
            and action.family == family
            and action.pack is not None
            and action.pack.digest == pack
        }
        laid = _laid_out(pack, held, source, ours)
        if laid is None:
            missing = sorted(digest[:12] for digest in held.keys() - ours.keys())
            raise FormatError(
                f"{target.url}/{layout.pack_path(family, pack)}: is missing or damaged, and {source.url} cannot make it "
                f"again: it has not {len(missing)} of its {len(held)} models ({', '.join(missing[:5])}); push from a "
                "registry that has them",
                kind="format/missing-object",
            )
    return laid


def _packs_of(entries: Iterator[ModelEntry]) -> dict[str, dict[str, PackPlace]]:
    packs: dict[str, dict[str, PackPlace]] = {}
    for entry in entries:
        if entry.pack is not None:
            packs.setdefault(entry.pack.digest, {})[entry.digest] = entry.pack
    return packs


def _laid_out(
    pack: str, places: Mapping[str, PackPlace], source: Registry, ours: Mapping[str, ModelEntry]
) -> bytes | None:
    """Lay models end to end; None when one is not at hand, or the result is another pack."""
    if not places.keys() <= ours.keys():
        return None
    ordered = sorted(places.items(), key=lambda item: item[1].offset)
    read = SourceModels(source, [ours[digest] for digest, _ in ordered])
    parts: list[bytes] = []
    at = 0
    for digest, place in ordered:
        if place.offset != at:
            return None
        parts += read.whole(ours[digest], any_length=True) or ()
        at += place.length
    data = b"".join(parts)
    return data if hashlib.sha256(data).hexdigest() == pack else None
