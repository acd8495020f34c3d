"""What keeps the live view's places free for those who ask."""

import contextlib
import http.client
import socket
import threading
import time

import pytest

pytest.importorskip("cv2")

import cv2

from edgeseg.runtime.live import server as served
from edgeseg.runtime.live.pictures import MAX_VIEWERS, Gallery, TooManyViewersError
from edgeseg.runtime.shots import Shot
from tests.live_server import ask, attached_view, line, opened, painters, shot, streaming, wait


@pytest.fixture
def view():
    with contextlib.closing(attached_view()) as made:
        yield made


@pytest.fixture
def server(view):
    with opened(view) as running:
        yield running


# --- viewers


def test_only_so_many_viewers_are_let_in_and_places_are_freed():
    gallery = Gallery(painters)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_VIEWERS):
            stack.enter_context(gallery.watch("overlay", None))
        with pytest.raises(TooManyViewersError), gallery.watch("overlay", None):
            pass
        assert (gallery.viewers, gallery.refused) == (MAX_VIEWERS, 1)
    assert gallery.viewers == 0
    with gallery.watch("overlay", None):
        pass
    gallery.close()


def test_a_viewer_for_whom_is_no_place_is_told(view, server):
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_VIEWERS):
            stack.enter_context(streaming(server))
        answer, _ = ask(server, "/stream.mjpg")
        assert answer.status == 503
        assert answer.getheader("Retry-After") == "5"
        # The figures stay open to those who must know.
        assert ask(server, "/healthz")[0].status == 503
        assert ask(server, "/metrics")[0].status == 200
    view.notice(line(), None, shot())
    assert wait(lambda: view.gallery.viewers == 0)


def test_a_viewer_who_leaves_while_nothing_comes_frees_the_place(view, server):
    with streaming(server):
        assert wait(lambda: view.gallery.viewers == 1)
    assert wait(lambda: view.gallery.viewers == 0)


def test_a_viewer_who_does_not_read_keeps_nobody_waiting(view, server):
    big = shot()
    big = Shot("b", cv2.resize(big.image, (960, 720)), big.class_map, big.score, "")
    with streaming(server):
        assert wait(lambda: view.wants_pictures)
        with socket.create_connection(("127.0.0.1", server.port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(
                f"GET /stream.mjpg HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
            )
            assert wait(lambda: view.gallery.viewers == 2)
            longest = 0.0
            for index in range(300):
                start = time.thread_time()
                view.notice(line(index), None, big)
                longest = max(longest, time.thread_time() - start)
                time.sleep(0.001)
            assert view.gallery.replaced > 100
            assert longest < 0.05  # of this thread's own CPU: nothing is drawn in it


# --- connections that say nothing


def status(server, path):
    return ask(server, path)[0].status


def test_connections_that_say_nothing_are_bounded(server):
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        alive = [t for t in threading.enumerate() if "process_request" in t.name]
        assert len(alive) <= 48
    assert wait(lambda: _answers(server))


def _answers(server):
    try:
        return ask(server, "/healthz")[0].status == 503
    except OSError:
        return False


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
