"""HTTP for the live view, with the standard library alone: reading only, bounded, guarded."""

import contextlib
import hmac
import io
import ipaddress
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isfinite
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

from edgeseg.errors import UsageError
from edgeseg.runtime.live.page import ICON, PAGE, SCRIPT, STYLE
from edgeseg.runtime.live.pictures import TooManyViewersError
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.overlay import VIEWS

__all__ = ["Address", "LiveServer", "parse_address"]

Address = tuple[str, int]

_MAX_CONNECTIONS: Final = 48
_REQUEST_S: Final = 10.0
_SEND_S: Final = 5.0
_FREED_S: Final = 0.5
_SEND_BUFFER: Final = 1 << 17
_TOKEN_LENGTH: Final = 16
_TOKEN_CHARS: Final = re.compile(r"[A-Za-z0-9._~-]+")
_BOUNDARY: Final = "edgeseg-frame"
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def parse_address(text: str) -> Address:
    """``HOST:PORT`` (``[::1]:8080`` for IPv6; port 0 takes a free one) as host and port.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s/]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise UsageError(f"--serve '{text}' is not HOST:PORT; write 127.0.0.1:8080")
    return match[1] or match[2], int(match[3])


class LiveServer:
    """Serves a live view from entering to leaving the ``with`` block.

    Only who can reach this machine's loopback may watch without a token; anybody else needs the
    one from ``EDGESEG_TOKEN`` (16 characters or more), or the one that is made up and stands in
    :attr:`url`. It travels as clear text: beyond a trusted network, put a TLS proxy before it.

    Raises:
        UsageError: the address cannot be had, or the token is too weak.
    """

    def __init__(
        self, address: Address, view: LiveView, *, environment: Mapping[str, str] | None = None
    ) -> None:
        env = os.environ if environment is None else environment
        host, port = address
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _Server(found[0], found[4], view)
        except (OSError, UnicodeError) as error:
            view.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"--serve '{host}:{port}' cannot be had ({reason}); choose another address"
            ) from None
        bound = str(self._server.server_address[0])
        self.loopback = ipaddress.ip_address(bound.partition("%")[0]).is_loopback
        token = env.get("EDGESEG_TOKEN", "")
        if token and not (len(token) >= _TOKEN_LENGTH and _TOKEN_CHARS.fullmatch(token)):
            self._server.server_close()
            view.close()
            raise UsageError(
                f"EDGESEG_TOKEN must have {_TOKEN_LENGTH} or more letters, digits or -._~; "
                "unset it to get one made up"
            )
        made_up = not token and not self.loopback
        self._server.token = secrets.token_urlsafe(24) if made_up else token
        self._server.hosts = _hosts(host, bound)
        self.port = int(self._server.server_address[1])
        shown = f"[{host}]" if ":" in host else host
        query = f"/?token={self._server.token}" if made_up else "/"
        self.url = f"http://{shown}:{self.port}{query}"
        """What to open; with the token only where it was made up."""
        self._view = view
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="live", daemon=True
        )

    def __enter__(self) -> "LiveServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._view.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, family: int, address: Any, view: LiveView) -> None:
        self.address_family = cast(socket.AddressFamily, family)
        self.view = view
        self.token = ""
        self.hosts: frozenset[str] = frozenset()
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._asking: dict[Any, None] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the look-up of our own name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "edgeseg", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread per connection, as far as there are places.

        Where there is none, the oldest connection that has no answer yet has to go: whoever asks
        is answered in milliseconds, so that connections kept open to fill the places, by however
        many and from wherever, keep nobody from ``/healthz``.
        """
        if not self._places.acquire(blocking=False):
            self._end_oldest()
            if not self._places.acquire(timeout=_FREED_S):
                self.shutdown_request(request)
                return
        with self._lock:
            self._asking[request] = None
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.stays(request)
            self._places.release()
            raise

    def stays(self, request: Any) -> None:
        """Nobody who comes later takes this connection's place from here on."""
        with self._lock:
            self._asking.pop(request, None)

    def _end_oldest(self) -> None:
        with self._lock:
            oldest = next(iter(self._asking), None)
            if oldest is not None:
                del self._asking[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the place back at the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.stays(request)
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Viewers that go away are no news."""


class _Hurried(io.RawIOBase):
    """Reads a socket up to a moment: a limit per read could be renewed with every byte."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        """See :class:`io.RawIOBase`."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See :class:`io.RawIOBase`."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "edgeseg"
    sys_version = ""

    def setup(self) -> None:
        """Read the request against the clock."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Hurried(self.connection, _REQUEST_S))

    def do_GET(self) -> None:
        """Answer."""
        self.connection.settimeout(_SEND_S)
        url = urlsplit(self.path)
        query = parse_qs(url.query, max_num_fields=8)
        if not self._host_is_ours():
            self._text(HTTPStatus.FORBIDDEN, "this name is not served here")
        elif self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and (
            url.path != "/" or self.headers.get("Sec-Fetch-Dest") != "document"
        ):
            self._text(HTTPStatus.FORBIDDEN, "other sites may not take anything from here")
        elif not self._may_see(query):
            self._text(HTTPStatus.UNAUTHORIZED, "a token is needed: open /?token=TOKEN")
        elif url.path == "/" and "token" in query:
            self._welcome()
        else:
            self._answer(url.path, query)

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

    def end_headers(self) -> None:
        """Every answer carries the same guards."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Stay silent: stderr belongs to the run."""

    def _answer(self, path: str, query: dict[str, list[str]]) -> None:
        view = self.server.view
        if path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE)
        elif path == "/app.js":
            self._send(HTTPStatus.OK, "text/javascript; charset=utf-8", SCRIPT)
        elif path == "/style.css":
            self._send(HTTPStatus.OK, "text/css; charset=utf-8", STYLE)
        elif path == "/icon.svg":
            self._send(HTTPStatus.OK, "image/svg+xml", ICON)
        elif path == "/state":
            text = json.dumps(view.status(), allow_nan=False)
            self._send(HTTPStatus.OK, "application/json", text)
        elif path == "/healthz":
            healthy, state, gone = view.health()
            status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
            text = json.dumps({"healthy": healthy, "state": state, "since_result_ms": gone})
            self._send(status, "application/json", text + "\n")
        elif path == "/metrics":
            self._send(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", view.metrics())
        elif path == "/stream.mjpg":
            self._stream(query)
        else:
            self._text(HTTPStatus.NOT_FOUND, "nothing is here")

    def _stream(self, query: dict[str, list[str]]) -> None:
        name = query.get("view", ["overlay"])[0]
        chosen = next((view for view in VIEWS if view == name), None)
        text = query.get("threshold", [""])[0]
        try:
            # Three digits: a slider must not make a variant of every pixel it passes.
            threshold = float(f"{float(text):.3g}") if text else None
        except ValueError:
            threshold = float("nan")
        if chosen is None or (threshold is not None and not isfinite(threshold)):
            self._text(HTTPStatus.BAD_REQUEST, f"view is one of {', '.join(VIEWS)}")
            return
        if self.command == "HEAD":
            self._send(HTTPStatus.OK, "multipart/x-mixed-replace", "")
            return
        try:
            with self.server.view.gallery.watch(chosen, threshold) as pictures:
                # Little is buffered: what waits in the kernel is old when it is seen.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                self.server.stays(self.connection)
                self.send_response(HTTPStatus.OK)
                kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(f"--{_BOUNDARY}\r\n".encode())
                for jpeg in pictures:
                    # The boundary follows at once: browsers show a part when it ends. An empty
                    # line between two parts only shows whether somebody is still there.
                    self.wfile.write(_part(jpeg) if jpeg else b"")
                    if not jpeg and self._gone():
                        return
        except TooManyViewersError:
            self.send_response(HTTPStatus.SERVICE_UNAVAILABLE)
            self.send_header("Retry-After", "5")
            self.send_header("Content-Length", "0")
            self.end_headers()
        except OSError:
            pass  # gone, or too slow for five seconds

    def _gone(self) -> bool:
        """Whether the viewer has closed its side."""
        self.connection.setblocking(False)
        try:
            return len(self.connection.recv(1, socket.MSG_PEEK)) == 0
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(_SEND_S)

    def _host_is_ours(self) -> bool:
        # A foreign page whose name was made to resolve to us (DNS rebinding) sends that name.
        # A literal address cannot be made to.
        given = self.headers.get("Host", "")
        name = urlsplit(f"//{given}").hostname if re.fullmatch(r"[\w.:\[\]-]+", given) else None
        if name is None:
            return False
        if name in self.server.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _may_see(self, query: dict[str, list[str]]) -> bool:
        token = self.server.token
        if not token:
            return True
        given = query.get("token", [])[:1]
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given.append(value.strip())
        try:
            morsel = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            morsel = None
        if morsel is not None:
            given.append(morsel.value)
        return any(hmac.compare_digest(one.encode(), token.encode()) for one in given)

    @property
    def _cookie(self) -> str:
        # Cookies know no ports: two runs on one machine must not overwrite each other's.
        return f"edgeseg_{self.server.server_port}"

    def _welcome(self) -> None:
        """Put the token into a cookie and out of the address bar."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        if self.server.token:
            cookie = f"{self._cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _text(self, status: HTTPStatus, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", text + "\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _part(jpeg: bytes) -> bytes:
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return head.encode() + jpeg + f"\r\n--{_BOUNDARY}\r\n".encode()


def _hosts(asked: str, bound: str) -> frozenset[str]:
    names = {asked.lower(), bound.lower()}
    if ipaddress.ip_address(bound.partition("%")[0]).is_loopback:
        return frozenset({*names, "localhost"})
    own = socket.gethostname().lower()
    return frozenset({*names, own, f"{own.partition('.')[0]}.local"})
