"""Ed25519: signing bytes with a private key, checking with a public one. Must not know what is signed.

Owns how keys are read. The package that computes is optional (``uws-store[sign]``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["PublicKey", "SigningKey"]

_MOST_KEY_BYTES = 1 << 14


class PublicKey:
    """Who a signature is by.

    Parameters
    ----------
    path : Path
        A PEM file with an Ed25519 public key, or with a private one, of which the public part is taken.

    Raises
    ------
    NotFoundError
        There is no such file (``not-found/key``).
    InvalidInputError
        It holds no Ed25519 key (``invalid-input/key``), or the package is not installed
        (``invalid-input/missing-package``).
    """

    def __init__(self, path: Path) -> None:
        self._key = _public(path)
        self.raw = self._key.public_bytes_raw()
        self.id = hashlib.sha256(self.raw).hexdigest()

    def check(self, signature: bytes, data: bytes, *, where: str) -> None:
        """Hold a signature to bytes.

        Raises
        ------
        FormatError
            It is not this key's, or of other bytes (``format/signature``).
        """
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - optional

        try:
            self._key.verify(signature, data)
        except InvalidSignature as error:
            raise FormatError(
                f"{where}: the signature is not of this key, or of something else", kind="format/signature"
            ) from error


class SigningKey:
    """What signs.

    Parameters
    ----------
    path : Path
        A PEM file with an Ed25519 private key without a password.

    Raises
    ------
    NotFoundError, InvalidInputError
        See :class:`PublicKey`.
    """

    def __init__(self, path: Path) -> None:
        self._key = _private(path)
        self.id = hashlib.sha256(self._key.public_key().public_bytes_raw()).hexdigest()

    def sign(self, data: bytes) -> bytes:
        """Sign bytes; the same bytes give the same 64 bytes."""
        return self._key.sign(data)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_KEY_BYTES)
    except OSError as error:
        raise NotFoundError(
            f"the key {path} cannot be read: {error.strerror}", kind="not-found/key"
        ) from error


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415
    except ImportError as error:
        raise _missing() from error
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key


def _public(path: Path) -> Ed25519PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    except ImportError as error:
        raise _missing() from error
    data = _read(path)
    if b"PRIVATE KEY" in data:
        return _private(path).public_key()
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path)
    return key


def _missing() -> InvalidInputError:
    return InvalidInputError(
        "signatures need a package that is not installed; install it with: pip install 'uws-store[sign]'",
        kind="invalid-input/missing-package",
    )


def _no_key(path: Path) -> InvalidInputError:
    # What the file holds is not shown.
    return InvalidInputError(
        f"{path} holds no Ed25519 key in PEM without a password; make one with: openssl genpkey -algorithm ed25519",
        kind="invalid-input/key",
    )
