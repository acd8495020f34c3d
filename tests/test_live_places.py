"""What keeps the live view's places free for those who ask."""

import contextlib
import http.client
import socket
import time

import pytest

from edgeseg.runtime.live import server as served
from edgeseg.runtime.live.pictures import MAX_VIEWERS
from edgeseg.runtime.live.server import LiveServer
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.taxonomy import PALETTE

pytest.importorskip("cv2")


def painters(view, threshold):
    return Painter(PALETTE, HeatScale("void", 19, threshold or 0.3), view)


@pytest.fixture
def view():
    made = LiveView(painters, {"scorer": "void"})
    yield made
    made.close()


@pytest.fixture
def server(view):
    with LiveServer(("127.0.0.1", 0), view, environment={}) as running:
        yield running


def status(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def test_connections_that_say_nothing_keep_nobody_from_asking(server, view):
    with contextlib.ExitStack() as stack:
        for _ in range(3 * 48):
            idle = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            stack.enter_context(idle).sendall(b"GET / HTTP/1.1\r\n")
            if not _ % 16:
                assert status(server, "/healthz") == 503  # an answer: nothing runs here
        assert status(server, "/metrics") == 200


def test_connections_that_say_nothing_take_no_viewer_s_place(server, view):
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_VIEWERS):
            viewer = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            stack.enter_context(contextlib.closing(viewer)).request("GET", "/stream.mjpg")
            assert viewer.getresponse().status == 200
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        assert status(server, "/healthz") == 503
        assert view.gallery.viewers == MAX_VIEWERS


def test_a_request_that_drips_in_has_an_end(server, monkeypatch):
    monkeypatch.setattr(served, "_REQUEST_S", 0.5)
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 5:
                slow.sendall(b"x")
                slow.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(1):
                        break
        assert time.monotonic() - start < 3
