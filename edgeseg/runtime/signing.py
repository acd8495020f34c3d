"""Signed bundles: ed25519 over the name, size and sha256 of every file in the folder.

``signature.json`` holds the list and the signature over it, in the canonical JSON that
:func:`_payload` makes. Engines that TensorRT builds beside a bundle after it was signed are not
covered, and a run that asks for a signature does not see them: it reads a private copy of the very
bytes that were verified. Its timing cache and its lock are never covered.
"""

import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeseg import __version__
from edgeseg.bundle import MANIFEST, Bundle
from edgeseg.errors import ArtefactError, InputError
from edgeseg.files import is_unfinished, write_whole
from edgeseg.runtime.signing_keys import key_id, read_private_key, read_public_key

__all__ = ["SIGNATURE", "Verified", "sign_bundle", "verified_copy", "verify_bundle"]

SIGNATURE: Final = "signature.json"
SCHEMA: Final = "edgeseg.signature/1"

_ENGINES: Final = ("*.engine", "*.engine.json")
# Rewritten with every build, and nothing that runs.
_SCRATCH: Final = ("tensorrt.timing", ".engines.lock")
_MAX_FILE_BYTES: Final = 512 << 20
_MAX_SIGNATURE_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle whose every file is what was signed."""

    key_id: str
    """See :func:`~edgeseg.runtime.signing_keys.key_id`."""
    files: tuple[str, ...]
    """Names of the files that the signature covers."""
    uncovered: tuple[str, ...]
    """Engines that came later; nothing is known of them."""


def sign_bundle(folder: Path, key: Path, passphrase: bytes | None = None) -> Verified:
    """Write ``signature.json`` over every file that is in the folder now, engines included.

    A signature from before is replaced.

    Raises:
        UsageError: the passphrase is missing or wrong.
        InputError: bundle or key are not there, or the bundle cannot be written to.
        ArtefactError: the bundle is damaged or holds more than plain files; not a private ed25519
            key.
        MissingDependencyError: ``cryptography`` is not installed.
    """
    secret = read_private_key(key, passphrase)
    Bundle.open(folder)
    files = {name: _entry(_read(folder / name)) for name in _names(folder)}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "algorithm": "ed25519",
        "key_id": key_id(secret.public_key()),
        "created_by": f"edgeseg {__version__}",
        "files": files,
    }
    document["signature"] = base64.b64encode(secret.sign(_payload(document))).decode()
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    _replace(folder / SIGNATURE, text.encode())
    return Verified(document["key_id"], tuple(files), ())


def verify_bundle(folder: Path, key: Path) -> Verified:
    """Hold every file of a bundle against its signature and the public ``key``.

    Raises:
        InputError: bundle or key are not there.
        ArtefactError: unsigned, signed with another key, or a file was added, removed or changed.
        MissingDependencyError: ``cryptography`` is not installed.
    """
    found, _ = _verify(folder, key)
    return found


@contextlib.contextmanager
def verified_copy(
    folder: Path, key: Path, *, own_cache: bool = False
) -> Iterator[tuple[Path, Verified]]:
    """A private copy (mode 0700) of the bytes that were verified; gone when the context ends.

    Every file is read once, so a change of the bundle between check and use has no effect. Who may
    write to the copy (this user and root) could as well change this process. Engines are in it
    where the signature covers them.

    Args:
        folder: of the bundle.
        key: the public one.
        own_cache: keep this process from the user's cache, where engines and kernels for GPUs lie
            that no signature covers.

    Raises:
        InputError: as :func:`verify_bundle`, or there is no room for the copy.
        ArtefactError: as :func:`verify_bundle`.
    """
    found, contents = _verify(folder, key)
    with contextlib.ExitStack() as stack:
        try:
            root = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeseg-verified-"))
            # The bundle's own name: messages show it.
            copy = Path(root) / folder.resolve().name
            copy.mkdir(0o700)
            for name, content in contents.items():
                (copy / name).write_bytes(content)
        except OSError as error:
            raise InputError(
                f"the verified bytes of '{folder}' cannot be kept in '{tempfile.gettempdir()}' "
                f"({error.strerror}); free some space or set TMPDIR"
            ) from None
        contents.clear()
        if own_cache:
            stack.enter_context(_cache_in(root))
        yield copy, found


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    name = "XDG_CACHE_HOME"
    before = os.environ.get(name)
    os.environ[name] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _verify(folder: Path, key: Path) -> tuple[Verified, dict[str, bytes]]:
    public = read_public_key(key)
    names = _names(folder)
    path = folder / SIGNATURE
    if not path.is_file():
        raise ArtefactError(
            f"bundle '{folder}' is not signed (it has no {SIGNATURE}); sign it with 'edgeseg "
            "bundle sign' or do not use it"
        )
    document = _document(path)
    signer, wanted = document["key_id"], key_id(public)
    if signer != wanted:
        raise ArtefactError(
            f"bundle '{folder}' is signed with key {signer}, and '{key}' is key {wanted}; use "
            "the right key or do not use the bundle"
        )
    try:
        public.verify(
            base64.b64decode(document.pop("signature"), validate=True), _payload(document)
        )
    except Exception:  # InvalidSignature, or base64 that is none
        raise ArtefactError(
            f"the signature in '{path}' is wrong; the list of files was altered, do not use the "
            "bundle"
        ) from None
    signed: dict[str, dict[str, Any]] = document["files"]
    for name in signed.keys() - set(names):
        raise _altered(folder, name, "is missing")
    uncovered = [name for name in names if name not in signed]
    for name in uncovered:
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _ENGINES):
            raise _altered(folder, name, "was added")
    contents = {}
    for name, entry in signed.items():
        contents[name] = _read(folder / name)
        if _entry(contents[name]) != entry:
            raise _altered(folder, name, "was changed")
    return Verified(wanted, tuple(signed), tuple(uncovered)), contents


def _altered(folder: Path, name: str, what: str) -> ArtefactError:
    return ArtefactError(
        f"bundle '{folder}' is not what was signed: '{name}' {what}; copy the signed bundle again "
        "or do not use it"
    )


def _document(path: Path) -> dict[str, Any]:
    """``signature.json``, of the right form; nothing in it is believed yet."""
    try:
        document = json.loads(_read(path, _MAX_SIGNATURE_BYTES))
        if document["schema"] != SCHEMA or document["algorithm"] != "ed25519":
            raise ValueError("schema")
        if not all(isinstance(document[name], str) for name in ("key_id", "signature")):
            raise TypeError("text")
        for entry in document["files"].values():
            if set(entry) != {"bytes", "sha256"}:
                raise ValueError("entry")
        if MANIFEST not in document["files"]:
            raise ValueError("manifest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtefactError(
            f"'{path}' is not a signature that this version reads ('{SCHEMA}'); sign the bundle "
            "again"
        ) from None
    return dict(document)


def _payload(document: Mapping[str, Any]) -> bytes:
    """What is signed: the document without its signature, sorted keys, no spaces, ASCII."""
    return json.dumps(
        {key: value for key, value in document.items() if key != "signature"},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    ).encode()


def _names(folder: Path) -> list[str]:
    """Sorted names of what a signature is about; plain files alone are taken."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"bundle '{folder}' cannot be read ({error.strerror}); name the folder of one"
        ) from None
    names = []
    for entry in found:
        if not entry.is_file(follow_symlinks=False):
            raise ArtefactError(
                f"bundle '{folder}' holds '{entry.name}', which is not a plain file; a signature "
                "covers plain files only, so take it out"
            )
        # An engine that is being built beside the bundle, or a build that a power failure ended.
        if is_unfinished(entry.name):
            continue
        if entry.name != SIGNATURE and entry.name not in _SCRATCH:
            names.append(entry.name)
    return names


def _read(path: Path, limit: int = _MAX_FILE_BYTES) -> bytes:
    try:
        # Not through a link that took the file's place, and not from a pipe that never ends.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ArtefactError(f"'{path}' is not a plain file; copy the bundle again")
            content = file.read(limit + 1)
    except OSError as error:
        raise ArtefactError(
            f"'{path}' cannot be read ({error.strerror}); copy the bundle again"
        ) from None
    if len(content) > limit:
        raise ArtefactError(f"'{path}' is larger than any file of a bundle; copy it again")
    return content


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _replace(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror}); copy the bundle to where it can be"
        ) from None
