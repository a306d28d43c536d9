"""From a URL or a plain path to a storage. Must not know what is stored."""

from __future__ import annotations

import importlib
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from uws_store.errors import InvalidInputError, NotFoundError
from uws_store.storage.bucket import BucketBackend, BucketStorage
from uws_store.storage.faults import as_error
from uws_store.storage.hugging import HubBackend, HubStorage
from uws_store.storage.local import LocalStorage
from uws_store.storage.memory import MemoryStorage
from uws_store.storage.protocol import check_path
from uws_store.storage.remote import Backend, RemoteStorage
from uws_store.storage.url import StorageUrl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uws_store.storage.protocol import Storage

__all__ = ["open_storage"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|((?i:file)):")
_MEMORY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")

_memory_lock = threading.Lock()
_memory_storages: dict[str, MemoryStorage] = {}


# Scheme to the module below this package, the class, and the extra that installs what it needs.
_BACKENDS = {
    "s3": ("clouds", "S3Backend", "s3"),
    "s3a": ("clouds", "S3Backend", "s3"),
    "gs": ("clouds", "GcsBackend", "gcs"),
    "gcs": ("clouds", "GcsBackend", "gcs"),
    "az": ("clouds", "AzureBackend", "azure"),
    "abfs": ("clouds", "AzureBackend", "azure"),
    "http": ("web", "WebBackend", "http"),
    "https": ("web", "WebBackend", "http"),
}
_HUB = "hf"
_WEB = frozenset({"http", "https"})
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPOSITORY = re.compile(
    rf"(models/|(?P<kind>datasets)/)?(?P<id>(?!(models|datasets|spaces|buckets)/){_NAME}/{_NAME})"
    r"(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]*))?(/(?P<prefix>[^?#]*?))?/?"
)
_HUB_BUCKET = re.compile(rf"buckets/(?P<id>{_NAME}/{_NAME})(/(?P<prefix>[^?#@]*?))?/?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def open_storage(
    url: str, *, create: bool = False, storage_options: Mapping[str, object] | None = None
) -> Storage:
    """Open the storage a URL names; of those behind a network, nothing is asked yet.

    Parameters
    ----------
    url : str
        A folder's path (``~`` is the home folder), a ``file://`` URL (percent-encoded), ``memory://name``
        (shared within the process), ``s3://``, ``gs://`` or ``az://`` with ``bucket/prefix``, ``hf://org/name`` or ``hf://datasets/org/name`` with
        a branch after ``@`` and a prefix, ``hf://buckets/org/name`` with a prefix, or the ``http(s)://`` URL of a folder that a web server serves, which can
        only be read.
    create : bool, optional
        Make the storage when it does not exist. Buckets of clouds are not made; a repository or a bucket of the Hub is, private unless the
        option ``private`` is False.
    storage_options : Mapping of str to object, optional
        What the backend's fsspec file system takes: ``endpoint_url``, ``key``, ``secret``, ``anon``... They are
        carried by the storage's ``url`` and shown nowhere.

    Raises
    ------
    NotFoundError
        When it does not exist and is not to be made (``not-found/storage``).
    InvalidInputError
        ``invalid-input/storage-scheme`` for a storage that is not supported, ``invalid-input/storage-url`` for a
        URL that cannot be read, ``invalid-input/storage-folder`` when the path is not a folder,
        ``invalid-input/storage-option`` for options that the backend does not take,
        ``invalid-input/missing-package`` when its package is not installed.
    StorageError
        When the folder cannot be made or reached.
    """
    full = StorageUrl(url, storage_options)
    matched = _SCHEME.match(url)
    scheme = (matched[1] or matched[2]).lower() if matched else ""
    if scheme == _HUB:
        assert matched is not None
        return _open_hub(url[matched.end() :], full.options, create=create)
    if scheme in _BACKENDS:
        assert matched is not None
        return _open_remote(scheme, url[matched.end() :], full.options)
    if full.options:
        raise InvalidInputError(
            f"storage options are for storages behind a network, not for {scheme + '://' if scheme else 'a folder'}",
            kind="invalid-input/storage-option",
        )
    if matched is None:
        return _open_folder(url, url, create=create)
    if scheme == "file":
        return _open_folder(_path_of(url), url, create=create)
    if scheme == "memory":
        return _open_memory(url[matched.end() :], create=create)
    # Only the scheme is shown: the rest of a URL may hold credentials.
    raise InvalidInputError(
        f"storage at {scheme}:// is not supported; give the path of a folder, or a URL of one of file, memory, "
        f"{', '.join(_BACKENDS)}, {_HUB}",
        kind="invalid-input/storage-scheme",
    )


def _open_remote(scheme: str, rest: str, options: Mapping[str, object]) -> RemoteStorage:
    place, _, prefix = rest.rstrip("/").partition("/")
    # Nothing of it is shown: it may hold credentials.
    if not (_HOST if scheme in _WEB else _BUCKET).fullmatch(place):
        form = "host/folder" if scheme in _WEB else "bucket/prefix"
        raise InvalidInputError(
            f"this {scheme} URL cannot be used; write {scheme}://{form}, and give credentials as storage options or in "
            "the environment, not in the URL",
            kind="invalid-input/storage-url",
        )
    if "?" in prefix or "#" in prefix:
        raise InvalidInputError(
            f"a {scheme} URL of a storage has neither ? nor #; give what stands there as storage options",
            kind="invalid-input/storage-url",
        )
    if prefix:
        check_path(prefix)
    address = "/".join(part for part in (place, prefix) if part)
    backend = _backend(scheme, options)
    url = StorageUrl(f"{scheme}://{address}", options)
    return RemoteStorage(backend, str(url) if scheme in _WEB else address, url=url)


def _open_hub(rest: str, options: Mapping[str, object], *, create: bool) -> HubStorage | BucketStorage:
    bucket = _HUB_BUCKET.fullmatch(rest)
    matched = bucket or _REPOSITORY.fullmatch(rest)
    if matched is None:
        raise InvalidInputError(
            "this hf URL cannot be used; write hf://org/name, hf://datasets/org/name or hf://buckets/org/name, and /prefix "
            "after the name, for repositories @branch before it; spaces are not supported",
            kind="invalid-input/storage-url",
        )
    prefix = matched["prefix"] or ""
    if prefix:
        check_path(prefix)
    known = {"endpoint", "private", "token"} | (set() if bucket else {"revision"})
    if not known.issuperset(options):
        raise InvalidInputError(
            f"hf:// takes the storage options {', '.join(sorted(known))}, not {', '.join(sorted(set(options) - known))}",
            kind="invalid-input/storage-option",
        )
    given, token = options.get("endpoint"), options.get("token")
    endpoint = None if given is None else str(given)
    token = token if token is None or isinstance(token, bool) else str(token)
    url = StorageUrl(f"{_HUB}://{rest.rstrip('/')}", options)
    storage: HubStorage | BucketStorage
    # The client takes a third of a second to import.
    if bucket:
        try:
            from uws_store.hub.bucket import HubBucket  # noqa: PLC0415
        except ImportError as error:
            raise InvalidInputError(
                "hf://buckets/ needs a huggingface_hub that knows buckets; install a newer one with: "
                "pip install --upgrade huggingface_hub",
                kind="invalid-input/missing-package",
            ) from error

        backend = BucketBackend(HubBucket(matched["id"], endpoint=endpoint, token=token))
        storage = BucketStorage(backend, f"bucket/{prefix}".rstrip("/"), url=url)
    else:
        from uws_store.hub import HubRepo  # noqa: PLC0415

        repo = HubRepo(
            matched["id"],
            repo_type="dataset" if matched["kind"] else "model",
            revision=matched["revision"] or str(options.get("revision", "main")),
            endpoint=endpoint,
            token=token,
        )
        storage = HubStorage(HubBackend(repo), f"repository/{prefix}".rstrip("/"), url=url)
    if create:
        storage.make(private=options.get("private") is not False)
    return storage


def _backend(scheme: str, options: Mapping[str, object]) -> Backend:
    module, name, extra = _BACKENDS[scheme]
    _check_endpoint(options)
    try:
        made = getattr(importlib.import_module(f"uws_store.storage.{module}"), name)(**options)
    except ImportError as error:
        raise InvalidInputError(
            f"{scheme}:// needs a package that is not installed ({error.name}); install it with: "
            f"pip install 'uws-store[{extra}]'",
            kind="invalid-input/missing-package",
        ) from error
    except (TypeError, ValueError, AttributeError):
        # Neither the message nor the cause is shown: either may quote the options.
        raise InvalidInputError(
            f"{scheme}:// cannot be opened with the storage options {', '.join(sorted(options)) or '(none)'}",
            kind="invalid-input/storage-option",
        ) from None
    except Exception as error:  # noqa: BLE001 - what a library raises becomes an error of ours
        # Some look for credentials, or ask what a token may do, before anything is read.
        secrets = StorageUrl("", options).secrets()
        refused, cause = as_error(error, action="open", where=f"{scheme}://", secrets=secrets)
        raise refused from cause
    assert isinstance(made, Backend)
    return made


def _check_endpoint(options: Mapping[str, object]) -> None:
    endpoint = options.get("endpoint_url")
    if isinstance(endpoint, str) and "@" in endpoint:
        raise InvalidInputError(
            "the storage option endpoint_url holds credentials; give them as the options key and secret",
            kind="invalid-input/storage-option",
        )


def _open_folder(path: str, url: str, *, create: bool) -> LocalStorage:
    if not path or "\0" in path:
        raise InvalidInputError(
            f"{url!r} does not name a storage; give the path of a folder", kind="invalid-input/storage-url"
        )
    if path == "~" or path.startswith("~/"):
        path = os.path.expanduser(path)  # noqa: PTH111 - Path() would drop what the rest may mean
    return LocalStorage(Path(path), create=create)


def _path_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInputError(
            f"{url!r} cannot be read as a URL: {error}", kind="invalid-input/storage-url"
        ) from error
    if (
        parts.netloc.lower() not in {"", "localhost"}
        or parts.query
        or parts.fragment
        or url.endswith(("?", "#"))
    ):
        raise InvalidInputError(
            f"{url!r} cannot be read as a file URL: it is file:///absolute/path on this machine, with special "
            "characters percent-encoded (? is %3F, # is %23)",
            kind="invalid-input/storage-url",
        )
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path.startswith("/"):
        raise InvalidInputError(
            f"{url!r} is not absolute; write file:///absolute/path or a plain path",
            kind="invalid-input/storage-url",
        )
    return path


def _open_memory(name: str, *, create: bool) -> MemoryStorage:
    if not _MEMORY_NAME.fullmatch(name):
        raise InvalidInputError(
            f"memory://{name} cannot be used; name it memory://name, with letters, digits, dots and dashes",
            kind="invalid-input/storage-url",
        )
    with _memory_lock:
        found = _memory_storages.get(name)
        if found is None:
            if not create:
                raise NotFoundError(
                    f"there is no memory://{name} in this process; it must be created first",
                    kind="not-found/storage",
                )
            found = _memory_storages[name] = MemoryStorage(name)
        return found
