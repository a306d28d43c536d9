"""Signing what a registry says, and holding it to a signature: whoever puts an older log back is found out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uws_store.api.cache import at_source
from uws_store.api.opening import open_registry
from uws_store.errors import FormatError, InvalidInputError, NotFoundError
from uws_store.layout import signature_path
from uws_store.metadata.signature import SignatureDocument, Statement
from uws_store.registry import Registry
from uws_store.signing import PublicKey, SigningKey

__all__ = ["SignatureResult", "check_signature", "sign"]


@dataclass(frozen=True, slots=True)
class SignatureResult:
    """A signature that is good.

    Attributes
    ----------
    registry : str
        Where.
    family : str or None
        What it is about; None for all families.
    number : int
        The commit that was signed, and with it every one before.
    key : str
        SHA-256 of the public key.
    commits_since : int
        Commits after it, which it does not cover.
    unsigned : tuple of (str, str, int)
        Family, task and version of what was published since.
    """

    registry: str
    family: str | None
    number: int
    key: str
    commits_since: int
    unsigned: tuple[tuple[str, str, int], ...]


def sign(
    family: str | None = None, *, key: str | Path, registry: str | Registry | None = None
) -> SignatureResult:
    """Sign the registry as it is now: its newest commit, and so its whole history.

    Parameters
    ----------
    family : str, optional
        Say it of one family; of all when absent.
    key : str or Path
        A PEM file with an Ed25519 private key.
    registry : str or Registry, optional
        URL or path; by default ``UWS_STORE_REGISTRY``, else the user's data folder.

    Raises
    ------
    NotFoundError
        No such registry, family or key.
    InvalidInputError
        The registry is empty (``invalid-input/empty``), or the file holds no key (``invalid-input/key``).
    """
    opened = at_source(open_registry(registry))
    state = opened.state()
    if family is not None:
        state.family(family)
    if state.sha256 is None:
        raise InvalidInputError(f"{opened.url} has no commit yet to be signed", kind="invalid-input/empty")
    signer = SigningKey(Path(key))
    statement = Statement(
        registry=opened.document.id, number=state.number, sha256=state.sha256, family=family
    )
    signature = signer.sign(statement.signed_bytes()).hex()
    document = SignatureDocument(statement=statement, key=signer.id, signature=signature)
    opened.storage.put(signature_path(signer.id, family), document.to_bytes())
    return SignatureResult(opened.url, family, state.number, signer.id, commits_since=0, unsigned=())


def check_signature(
    family: str | None = None, *, key: str | Path, registry: str | Registry | None = None
) -> SignatureResult:
    """Hold a registry to what was signed: the commit is there, and the log goes on from it.

    Costs one request for the signature and one for each commit since.

    Parameters
    ----------
    family : str, optional
        The family; the registry when absent.
    key : str or Path
        A PEM file with the Ed25519 public key of whoever is trusted.
    registry : str or Registry, optional
        See :func:`sign`.

    Raises
    ------
    NotFoundError
        There is no signature by this key (``not-found/signature``); no such registry, family or key.
    FormatError
        The signature is another's or of something else (``format/signature``); the log is older than what was signed
        or another one (``format/rollback``).
    """
    opened = at_source(open_registry(registry))
    state = opened.state()
    if family is not None:
        state.family(family)
    public = PublicKey(Path(key))
    path = signature_path(public.id, family)
    where = f"{opened.url}/{path}"
    data = opened.storage.read_at_most(path, SignatureDocument.max_bytes)
    if data is None:
        raise NotFoundError(
            f"{where}: there is no signature by this key; make one with: uws-store sign",
            kind="not-found/signature",
        )
    document = SignatureDocument.parse(data, where=where)
    statement = document.statement
    public.check(bytes.fromhex(document.signature), statement.signed_bytes(), where=where)
    if (statement.registry, statement.family) != (opened.document.id, family):
        raise FormatError(
            f"{where}: is about another registry or family; it was copied here", kind="format/signature"
        )
    if state.number < statement.number:
        raise FormatError(
            f"{opened.url}: commit {statement.number} was signed and the log ends at {state.number}; an older log was "
            "put back",
            kind="format/rollback",
        )
    for commit, sha256 in opened.history():
        if commit.number == statement.number:
            if sha256 != statement.sha256:
                raise FormatError(
                    f"{opened.url}: commit {commit.number} is not the one that was signed; the log was rewritten",
                    kind="format/rollback",
                )
            break
    unsigned = tuple(
        (entry.family, entry.task, entry.version)
        for entry in state.models()
        if entry.commit > statement.number and family in {None, entry.family}
    )
    return SignatureResult(
        registry=opened.url,
        family=family,
        number=statement.number,
        key=public.id,
        commits_since=state.number - statement.number,
        unsigned=unsigned,
    )
