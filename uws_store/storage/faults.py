"""From what a backend's library raises to an error of ours: what kind, in which words, with no credential in it.

Must not import the libraries: they are optional, and their errors are told apart by the codes that they carry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uws_store.errors import StorageError, UwsError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Fault", "as_error", "fault_of", "redact"]

_STATUS_KINDS = {
    401: "storage/permission",
    403: "storage/permission",
    408: "storage/unreachable",
    409: "storage/contention",
    412: "storage/contention",
    429: "storage/throttled",
    502: "storage/unreachable",
    503: "storage/throttled",
    504: "storage/unreachable",
    507: "storage/no-space",
}
_CODE_KINDS = {
    "NoSuchBucket": "storage/no-bucket",
    "ContainerNotFound": "storage/no-bucket",
    "InvalidBucketName": "storage/no-bucket",
    "AccessDenied": "storage/permission",
    "AllAccessDisabled": "storage/permission",
    "AuthenticationFailed": "storage/permission",
    "ExpiredToken": "storage/permission",
    "InvalidAccessKeyId": "storage/permission",
    "RequestTimeTooSkewed": "storage/permission",
    "SignatureDoesNotMatch": "storage/permission",
    "QuotaExceeded": "storage/no-space",
    "EntityTooLarge": "storage/no-space",
    "RequestLimitExceeded": "storage/throttled",
    "RequestTimeout": "storage/unreachable",
    "ServerBusy": "storage/throttled",
    "SlowDown": "storage/throttled",
    "Throttling": "storage/throttled",
}
# By the name of the class, since the libraries need not be installed.
_CLASS_KINDS = {
    "BucketNotFoundError": "storage/no-bucket",
    "ClientAuthenticationError": "storage/permission",
    "ClientConnectionError": "storage/unreachable",
    "ConnectError": "storage/unreachable",
    "ConnectTimeout": "storage/unreachable",
    "ConnectTimeoutError": "storage/unreachable",
    "ConnectionClosedError": "storage/unreachable",
    "DefaultCredentialsError": "storage/permission",
    "EndpointConnectionError": "storage/unreachable",
    "FSTimeoutError": "storage/unreachable",
    "GoogleAuthError": "storage/permission",
    "HTTPClientError": "storage/unreachable",
    "NoAuthTokenError": "storage/permission",
    "NoCredentialsError": "storage/permission",
    "PartialCredentialsError": "storage/permission",
    "ProfileNotFound": "storage/permission",
    "RepositoryNotFoundError": "storage/no-bucket",
    "RevisionNotFoundError": "storage/no-bucket",
    "ServiceRequestError": "storage/unreachable",
    "ServiceResponseError": "storage/unreachable",
    "TransportError": "storage/unreachable",
}
_ADVICE = {
    "storage/permission": "check the credentials (the environment's, or those given as storage options) and what they may do",
    "storage/no-bucket": "make the bucket or repository first, or correct its name; a private one needs credentials",
    "storage/contention": "other writers were first every time; try again when fewer are at work",
    "storage/unreachable": "check the address and the connection, and try again",
    "storage/throttled": "the storage asks for fewer requests; try again later",
    "storage/no-space": "free space or raise the quota, and try again",
    "storage/io": "try again; uws-store doctor shows what the storage does",
}
_LONGEST_REASON = 200
_USER_INFO = re.compile(r"//[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Fault:
    """What a library's error comes down to.

    Attributes
    ----------
    kind : str
        Kind of the :class:`StorageError` it would be.
    status : int
        HTTP status, 0 when there was no answer.
    code : str
        The backend's own word, such as ``SlowDown``; empty when it gave none.
    reason : str
        What the library says, in one short line. It may hold credentials.
    """

    kind: str
    status: int
    code: str
    reason: str


def fault_of(error: BaseException) -> Fault:
    """Find out what a library's error means, looking at its causes too."""
    status, code, by_class = 0, "", ""
    for link in _chain(error):
        status = status or _status_of(link)
        code = code or _code_of(link)
        by_class = by_class or next(
            (_CLASS_KINDS[cls.__name__] for cls in type(link).__mro__ if cls.__name__ in _CLASS_KINDS), ""
        )
        if isinstance(link, PermissionError):
            by_class = by_class or "storage/permission"
        if type(link) is OSError and str(link).startswith(
            "Forbidden: "
        ):  # gcsfs tells a 403 by these words alone
            by_class = by_class or "storage/permission"
        if isinstance(link, ConnectionError | TimeoutError):
            by_class = by_class or "storage/unreachable"
    kind = _CODE_KINDS.get(code) or _STATUS_KINDS.get(status) or by_class or "storage/io"
    # A Hub answers 401 and 404 for a repository that is not there, and for a file 404 too.
    kind = by_class if by_class == "storage/no-bucket" else kind
    reason = " ".join(str(error).split()) or type(error).__name__
    if code and code not in reason:
        reason = f"{code}: {reason}"
    return Fault(kind, status, code, reason[:_LONGEST_REASON])


def as_error(
    error: BaseException, *, action: str, where: str, secrets: Collection[str]
) -> tuple[UwsError, BaseException | None]:
    """Make the error to raise, and its cause, where showing that betrays nothing.

    Parameters
    ----------
    error : BaseException
        What the library raised.
    action : str
        What was attempted: ``read``, ``create``...
    where : str
        URL of the object or the storage.
    secrets : collection of str
        What must not be seen.
    """
    if isinstance(error, UwsError):
        return error, error.__cause__
    fault = fault_of(error)
    reason = redact(fault.reason, secrets)
    made = StorageError(f"cannot {action} {where}: {reason}; {_ADVICE[fault.kind]}", kind=fault.kind)
    shown = "\n".join(f"{link}\n{link!r}" for link in _chain(error))
    return made, (error if redact(shown, secrets) == shown else None)


def redact(text: str, secrets: Collection[str]) -> str:
    """Blot out credentials: those given, and whatever stands before the ``@`` of an address."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USER_INFO.sub("//***@", text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _status_of(error: BaseException) -> int:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None)
    for name in ("status_code", "status", "code"):
        if isinstance(found, int):
            break
        found = getattr(error, name, None)  # one after the other: aiohttp warns of its `code`
    return found if isinstance(found, int) and 300 <= found < 600 else 0


def _code_of(error: BaseException) -> str:
    response = getattr(error, "response", None)
    found = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    for value in (found, getattr(error, "error_code", None)):
        text = getattr(value, "value", value)
        if isinstance(text, str) and not text.isdecimal():
            return text
    return ""
