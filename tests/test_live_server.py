"""The live view's server: whom it answers, the token, health, state and metrics."""

import contextlib
import json
import re
import socket

import pytest

pytest.importorskip("cv2")

from edgeseg.errors import UsageError
from edgeseg.runtime.live.server import LiveServer, parse_address
from edgeseg.runtime.live.view import LiveView
from tests.live_server import ABOUT, ask, attached_view, line, opened, painters

TOKEN = "a-token-of-many-letters"


@pytest.fixture
def view():
    with contextlib.closing(attached_view()) as made:
        yield made


@pytest.fixture
def server(view):
    with opened(view) as running:
        yield running


# --- addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "8080", ":8080", "host", "host:", "host:99999", "::1:80", "a b:1"]
)
def test_addresses_that_are_none(text):
    with pytest.raises(UsageError, match="--serve"):
        parse_address(text)


def test_an_address_in_use_is_one_sentence(view, server):
    other = LiveView(painters, ABOUT)
    with pytest.raises(UsageError, match="cannot be had"):
        LiveServer(("127.0.0.1", server.port), other, environment={})


# --- who is answered, and how


@pytest.mark.parametrize("path", ["/", "/state", "/healthz", "/metrics", "/nothing", "/app.js"])
def test_every_answer_carries_the_guards(server, path):
    answer, _ = ask(server, path)
    policy = answer.getheader("Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    assert "Python" not in (answer.getheader("Server") or "")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (None, 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("LOCALHOST", 200),
        ("attacker.example", 403),
        ("127.0.0.1.attacker.example:8080", 403),
        ("localhost@attacker.example", 403),
        ("attacker.example#localhost", 403),
        ("", 403),
    ],
)
def test_names_that_are_not_ours_are_refused(server, host, status):
    assert ask(server, "/state", host)[0].status == status


def test_other_sites_may_neither_read_nor_take_a_viewer_s_place(server):
    for path in ("/stream.mjpg", "/state", "/"):
        assert ask(server, path, Sec_Fetch_Site="cross-site")[0].status == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
    assert ask(server, "/", **link)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(server, method):
    answer, _ = ask(server, "/state", method=method)
    assert answer.status == 405
    assert answer.getheader("Allow") == "GET, HEAD"


def test_head_gives_the_headers_alone(server):
    answer, content = ask(server, "/", method="HEAD")
    assert (answer.status, content) == (200, "")
    assert ask(server, "/stream.mjpg", method="HEAD")[0].status == 200


def test_rubbish_is_refused(server):
    for request in (
        b"\x00\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 70000,
    ):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        with connection, contextlib.suppress(OSError):
            connection.sendall(request + b"\r\n\r\n")
            connection.recv(100)
    assert ask(server, "/healthz")[0].status == 503


# --- the token


def test_on_the_loopback_no_token_is_needed(server):
    assert server.loopback
    assert server.url == f"http://127.0.0.1:{server.port}/"


@pytest.fixture
def guarded(view):
    with opened(view, EDGESEG_TOKEN=TOKEN) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/state", "/healthz", "/metrics", "/stream.mjpg", "/app.js"])
def test_with_a_token_nothing_is_seen_without_it(guarded, path):
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Cookie": "edgeseg=1"},
        {"Cookie": ";;=\x7f"},
    ):
        answer, content = ask(guarded, path, **headers)
        assert answer.status == 401
        assert "erfnet" not in content
    assert ask(guarded, f"{path}?token=")[0].status == 401


def test_the_token_opens_by_header_by_query_and_by_cookie(guarded):
    assert ask(guarded, "/state", Authorization=f"Bearer {TOKEN}")[0].status == 200
    assert ask(guarded, f"/state?token={TOKEN}")[0].status == 200
    answer, _ = ask(guarded, f"/?token={TOKEN}")
    assert (answer.status, answer.getheader("Location")) == (303, "/")
    cookie = answer.getheader("Set-Cookie")
    assert cookie is not None
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask(guarded, "/state", Cookie=cookie.partition(";")[0])[0].status == 200


def test_a_query_cannot_put_headers_into_the_answer(server):
    answer, _ = ask(server, "/?token=x%0d%0aX-Evil:%201")
    assert answer.getheader("X-Evil") is None
    assert answer.getheader("Set-Cookie") is None


def test_beyond_the_loopback_a_token_is_made_up(view):
    server = LiveServer(("0.0.0.0", 0), view, environment={})
    with server:
        assert not server.loopback
        token = re.search(r"token=([\w-]+)$", server.url)
        assert token is not None
        assert len(token[1]) >= 32
        assert ask(server, "/state")[0].status == 401
        assert ask(server, f"/state?token={token[1]}")[0].status == 200


@pytest.mark.parametrize("token", ["short", "with spaces and so on", "semicolon;in;the;token"])
def test_weak_tokens_are_refused(token):
    with pytest.raises(UsageError, match="EDGESEG_TOKEN"):
        LiveServer(
            ("127.0.0.1", 0), LiveView(painters, ABOUT), environment={"EDGESEG_TOKEN": token}
        )


# --- health, state, metrics


def health(server):
    answer, content = ask(server, "/healthz")
    return answer.status, json.loads(content)["state"]


def test_health_follows_the_state(view, server):
    assert health(server) == (503, "starting")
    view.notice(line(), None, None)
    assert health(server) == (200, "ok")
    view.notice(line(1, "dropped"), None, None)
    assert health(server) == (200, "dropped")
    guard = view.run.supervisor
    for _ in range(2):
        guard.judge("#1", 99.0, None)
    assert health(server) == (503, "safe")
    for _ in range(3):
        guard.judge("#2", 1.0, None)
    view.notice(line(2), None, None)
    assert health(server) == (200, "ok")
    view.notice(line(3, "self_test_failed"), None, None)
    assert health(server) == (503, "self_test_failed")


def test_results_that_stop_coming_are_no_health():
    now = [100.0]
    view = LiveView(painters, ABOUT, clock=lambda: now[0])
    view.notice(line(), None, None)
    now[0] += 4.9
    assert view.health()[0]
    now[0] += 0.2
    assert view.health() == (False, "silent", 5100.0)
    view.notice(line(1, "dropped"), None, None)
    assert view.health()[:2] == (False, "no_result")
    view.close()


def test_the_state_for_the_page_is_json_of_bounded_size(view, server):
    for index in range(1000):
        view.notice(line(index, "ok" if index % 2 else "dropped"), None, None)
    _, content = ask(server, "/state")
    state = json.loads(content)
    assert len(state["latency_ms"]) == len(state["states"]) == 240
    assert state["counts"] == {"ok": 500, "dropped": 500}
    assert state["about"]["threshold"] == 0.3
    assert state["deadline_ms"] == 50
    assert state["score_range"] == [0, 1]
    assert len(content) < 20_000


def test_the_metrics_are_prometheus_text(view, server):
    for index, latency in enumerate([4, 40, 400, 4000]):
        view.notice(line(index, latency=float(latency)), None, None)
    view.run.supervisor.problems["late"] += 3
    answer, content = ask(server, "/metrics")
    assert answer.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    pattern = r'[a-z_]+(\{([a-z]+="(\\.|[^"\\])*",?)*\})? -?[0-9.e+-]+'
    samples = [row for row in content.splitlines() if not row.startswith("#")]
    for row in samples:
        assert re.fullmatch(pattern, row), row
    values = dict(row.rsplit(" ", 1) for row in samples)
    assert values['edgeseg_frames_total{state="ok"}'] == "4"
    assert values['edgeseg_latency_seconds_bucket{le="0.005"}'] == "1"
    assert values['edgeseg_latency_seconds_bucket{le="0.5"}'] == "3"
    assert values['edgeseg_latency_seconds_bucket{le="+Inf"}'] == "4"
    assert float(values["edgeseg_latency_seconds_sum"]) == pytest.approx(4.444)
    assert values['edgeseg_problems_total{kind="late"}'] == "3"
    assert values["edgeseg_skipped_frames_total"] == "4"
    assert r"weights=\"a \"" not in content
    assert r'weights="a \"b\"\\c"' in content
    named = re.findall(r"# TYPE (\S+)", content)
    assert len(named) == len(set(named))
