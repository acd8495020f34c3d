"""Downloading one pinned file over HTTP: resumable, bounded, verified before it has its name.

Only the standard library. The proxies of the environment (``https_proxy``, ``no_proxy``) and
``SSL_CERT_FILE`` hold, as urllib has it. What a broken download leaves is a ``.part`` file beside
the destination, named after its pin; the next call goes on from there.
"""

import contextlib
import fcntl
import hashlib
import http.client
import ipaddress
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from edgeseg import __version__
from edgeseg.errors import ArtefactError, InputError

__all__ = ["MAX_BYTES", "fetch_verified", "git_blob_id", "has_blob", "is_acceptable", "remote_size"]

MAX_BYTES: Final = 512 << 20
"""Nothing larger is downloaded; BiSeNet's parameters in float32 are a tenth of it."""
_TIMEOUT_S: Final = 30.0
_CLOSED: Final = "the server closed the connection"
_CHUNK: Final = 1 << 16
_LENGTH: Final = re.compile(r"\d{1,18}", re.ASCII)
_SPAN: Final = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes of the whole file, where that is known."""


def is_acceptable(address: str) -> bool:
    """Whether an address is https, or http that does not leave this machine; without a login."""
    try:
        parts = urlsplit(address)
        if not parts.hostname or parts.port == 0 or parts.username is not None:
            return False
        return parts.scheme == "https" or _is_loopback(address)
    except ValueError:
        return False


def git_blob_id(file: IO[bytes]) -> str:
    """What git calls the content of ``file``: sha1 of ``blob <size>``, a zero byte and the content.

    Nobody is known to be able to make another file with a given sha1 (collisions are of two files
    that one attacker makes), and checkpoints are read without running what they hold.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = hashlib.sha1(f"blob {size}\0".encode())
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def has_blob(path: Path, blob: str) -> bool:
    """Whether there is a file at ``path`` whose content has the git blob id ``blob``."""
    try:
        with path.open("rb") as file:
            return git_blob_id(file) == blob
    except OSError:
        return False


def remote_size(address: str) -> int | None:
    """Bytes of the file at ``address``, or ``None`` where the server does not say.

    Raises:
        InputError: the server cannot be reached, or does not have the file.
        ArtefactError: the file is larger than :data:`MAX_BYTES`.
    """
    try:
        with _request(address, "HEAD") as response:
            size = _content_length(response)
    except _RefusedError as error:
        # Some mirrors sign or serve GET only.
        if error.code in (403, 405, 501):
            return None
        raise
    _check_size(address, size)
    return size


def fetch_verified(
    address: str, destination: Path, blob: str, progress: Progress | None = None
) -> None:
    """Download ``address`` to ``destination``, which appears whole and verified or not at all.

    Args:
        address: where the raw content is; see :func:`is_acceptable`.
        destination: the file; it stays if it is right already, and is deleted if not.
        blob: the git blob id that the content must have.
        progress: told now and then how far it is.

    Raises:
        InputError: no connection, an HTTP error, a broken download (a ``.part`` file stays, to go
            on from), or a folder that cannot be written to.
        ArtefactError: the content is another than pinned, or larger than :data:`MAX_BYTES`;
            nothing of it stays.
    """
    part = destination.with_name(f"{destination.name}.{blob[:8]}.part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _opened_alone(part) as file:
            if has_blob(destination, blob):
                part.unlink(missing_ok=True)
                return
            destination.unlink(missing_ok=True)
            try:
                _complete(address, file, blob, progress)
                os.fsync(file.fileno())
                part.replace(destination)
            except ArtefactError:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InputError(
            f"'{destination}' cannot be written ({error.strerror or error}); free some space or "
            "set XDG_CACHE_HOME to another folder"
        ) from None


def _complete(address: str, file: IO[bytes], blob: str, progress: Progress | None) -> None:
    found = git_blob_id(file)
    while found != blob:
        resumed = _receive(address, file, progress)
        found = git_blob_id(file)
        if found == blob:
            return
        if not resumed:
            raise ArtefactError(
                f"what {address} sent is not the published file (git blob {found[:12]}, not "
                f"{blob[:12]}) and was deleted; a proxy or mirror may have answered in its place, "
                "so open the address in a browser to see"
            )
        # What an earlier call left may be at fault: once more, from the start.
        file.truncate(0)


@contextlib.contextmanager
def _opened_alone(part: Path) -> Iterator[IO[bytes]]:
    """The ``.part`` file, open to read and write, for one process at a time."""
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems have no locks.
            alone = not isinstance(error, BlockingIOError)
        else:
            # Whoever held the lock until now may have given the file its final name.
            alone = part.exists() and os.path.samefile(part, file.fileno())
        if not alone:
            raise InputError(f"'{part}' is being written by another process; wait until it is done")
        yield file


def _receive(address: str, file: IO[bytes], progress: Progress | None) -> bool:
    """Bring ``file`` to its full length; what it holds is kept where the server allows.

    Returns:
        Whether what the file held before counts: content that is wrong may then be its fault.
    """
    have = file.seek(0, os.SEEK_END)
    with _request(address, "GET", have if have < MAX_BYTES else 0) as response:
        start, total = 0, _content_length(response)
        if have and response.status == 206:
            span = _SPAN.fullmatch(response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != have:
                file.truncate(0)
                return True
            start, total = have, None if span[2] == "*" else int(span[2])
        _check_size(address, total)
        done = file.seek(start)
        file.truncate()
        while chunk := _read(response, address, done, total):
            done += len(chunk)
            _check_size(address, done)
            file.write(chunk)
            if progress is not None:
                progress(done, total)
    file.flush()
    if total is not None and done < total:
        raise _broke_off(address, done, total, _CLOSED)
    return start > 0


def _read(response: HTTPResponse, address: str, done: int, total: int | None) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _broke_off(address, done, total, _reason(error)) from None


def _broke_off(address: str, done: int, total: int | None, reason: str) -> InputError:
    of = "" if total is None else f" of {total:,}"
    return InputError(
        f"the download of {address} broke off after {done:,}{of} bytes ({reason}); run the "
        "command again to go on from there"
    )


def _request(address: str, method: str, start: int = 0) -> HTTPResponse:
    """The server's answer, headers read; ``start`` asks for the bytes from there on."""
    host = urlsplit(address).netloc
    headers = {"User-Agent": f"edgeseg/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    handlers: list[urllib.request.BaseHandler] = [_Redirects()]
    if _is_loopback(address):
        # A proxy's localhost is another machine.
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        request = urllib.request.Request(address, headers=headers, method=method)
        response: HTTPResponse = opener.open(request, timeout=_TIMEOUT_S)
        return response
    except urllib.error.HTTPError as error:
        with error:
            code, phrase = error.code, error.reason
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(
            f"{host} cannot be reached ({_reason(error)}); check the connection and the "
            "environment's https_proxy, or download the file elsewhere and give it with --weights"
        ) from None
    if code == 416 and start:
        # There is nothing after what we hold, and that is not the file.
        return _request(address, method)
    raise _RefusedError(code, f"{address} cannot be downloaded: {_refusal(code, phrase)}")


def _refusal(code: int, phrase: str) -> str:
    told = f"the server answers {code} {phrase}".strip()
    if code in (404, 410):
        return (
            f"{told}, so the file is not there any more; get it elsewhere and give it with "
            "--weights"
        )
    if code == 407:
        return f"{told}; put the proxy's user and password into https_proxy"
    if 300 <= code < 400:
        return f"{told}; follow it in a browser and give the file with --weights"
    return f"{told}; try again later"


class _RefusedError(InputError):
    """The server answered, and not with the file."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none from https to http, and keeps HEAD as HEAD."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not is_acceptable(newurl) or (req.type == "https" and not newurl.startswith("https:")):
            raise urllib.error.HTTPError(
                req.full_url, code, "and sends on to an address without https", headers, fp
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
        return request


def _is_loopback(address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme != "http":
        return False
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def _content_length(response: HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if _LENGTH.fullmatch(text) else None


def _check_size(address: str, size: int | None) -> None:
    if size is not None and size > MAX_BYTES:
        raise ArtefactError(
            f"{address} is larger than {MAX_BYTES >> 20} MiB, which no published file is; nothing "
            "of it was kept, check the mirror or proxy"
        )


def _reason(error: BaseException) -> str:
    """What went wrong, without error numbers."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted: {error.verify_message}; SSL_CERT_FILE names other "
            "authorities"
        )
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT_S:.0f} s"
    if isinstance(error, http.client.IncompleteRead):
        return _CLOSED
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or type(error).__name__
