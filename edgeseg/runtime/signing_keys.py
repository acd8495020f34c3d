"""Key pairs for signatures: ed25519 in PEM, by the package ``cryptography``."""

import hashlib
import os
from pathlib import Path
from typing import Any, Final

from edgeseg.errors import ArtefactError, InputError, MissingDependencyError, UsageError

__all__ = ["key_id", "make_keys", "read_private_key", "read_public_key"]

_MAX_KEY_BYTES: Final = 1 << 16


def make_keys(private: Path, passphrase: bytes | None = None) -> tuple[Path, str]:
    """Write a new key pair: ``private`` (PEM, PKCS #8, mode 0600) and beside it ``*.pub.pem``.

    Returns:
        path of the public key, and the key id.

    Raises:
        UsageError: one of the two files is there already, as keys are never overwritten; or the
            path has no name of a file.
        InputError: the folder cannot be written to.
    """
    ed25519, serialization = _cryptography()
    if not private.name:
        raise UsageError(f"'{private}' names a folder; give the name of the new key's file")
    public = private.with_name(f"{private.name.removesuffix('.pem')}.pub.pem")
    key = ed25519.Ed25519PrivateKey.generate()
    cipher = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher
    )
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for path in (private, public):
        if os.path.lexists(path):
            raise UsageError(f"'{path}' exists and keys are never overwritten; choose another name")
    _write_new(public, shown, 0o644)
    try:
        _write_new(private, secret, 0o600)
    except BaseException:
        public.unlink()
        raise
    return public, key_id(key.public_key())


def key_id(public: Any) -> str:
    """First 16 hexadecimal digits of the sha256 of the raw public key."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise InputError(
            f"key '{path}' cannot be read ({error.strerror}); make one with 'edgeseg bundle keygen'"
        ) from None


def read_private_key(path: Path, passphrase: bytes | None) -> Any:
    """An ``Ed25519PrivateKey``.

    Raises:
        UsageError: the passphrase is missing or wrong.
        InputError: the file is not there.
        ArtefactError: it is no such key.
        MissingDependencyError: ``cryptography`` is not installed.
    """
    ed25519, serialization = _cryptography()
    text = _key_file(path)
    try:
        key = serialization.load_pem_private_key(text, passphrase)
    except TypeError:
        wrong = (
            "needs a passphrase" if passphrase is None else "has no passphrase, but one is given"
        )
        raise UsageError(
            f"key '{path}' {wrong}; see --passphrase-file of 'edgeseg bundle sign --help'"
        ) from None
    except Exception as error:  # ValueError, UnsupportedAlgorithm
        if passphrase is not None and b"ENCRYPTED" in text:
            raise UsageError(f"the passphrase of key '{path}' is wrong") from None
        raise _not_a_key(path, "private") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _not_a_key(path, "private")
    return key


def read_public_key(path: Path) -> Any:
    """An ``Ed25519PublicKey``; errors as of :func:`read_private_key`."""
    ed25519, serialization = _cryptography()
    text = _key_file(path)
    try:
        key = serialization.load_pem_public_key(text)
    except Exception as error:
        raise _not_a_key(path, "public") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _not_a_key(path, "public")
    return key


def _not_a_key(path: Path, kind: str) -> ArtefactError:
    return ArtefactError(
        f"'{path}' is not a {kind} ed25519 key in PEM; make a pair with 'edgeseg bundle keygen'"
    )


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingDependencyError(
            "signatures need cryptography; run \"pip install 'edgeseg[sign]'\""
        ) from None
    return ed25519, serialization


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """A file that was not there, whole or not at all; never readable for others meanwhile."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        raise InputError(
            f"key '{path}' cannot be written ({error.strerror}); choose another place"
        ) from None
