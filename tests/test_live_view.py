import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time

import numpy as np
import pytest

from edgeseg.errors import UsageError
from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import Frame, now_utc
from edgeseg.runtime.live.page import PAGE, SCRIPT, STYLE
from edgeseg.runtime.live.pictures import MAX_VIEWERS, Gallery, Picture, TooManyViewersError
from edgeseg.runtime.live.server import LiveServer, parse_address
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.runtime.report import Report
from edgeseg.runtime.shots import Shot
from edgeseg.runtime.supervisor import Supervisor
from edgeseg.taxonomy import PALETTE

cv2 = pytest.importorskip("cv2")
SIZE = (64, 128)
TOKEN = "a-token-of-many-letters"
ABOUT = {
    "network": "erfnet",
    "weights": 'a "b"\\c',
    "precision": "int8",
    "size": "64x128",
    "scorer": "void",
    "backend": "fake",
    "threshold": 0.3,
}


def painters(view, threshold):
    limit = 0.3 if threshold is None else threshold
    return Painter(PALETTE, HeatScale("void", 19, limit), view)


def shot(seed=0, state="ok", reason=""):
    rng = np.random.default_rng(seed)
    return Shot(
        f"f{seed}",
        rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        rng.integers(0, 19, SIZE, dtype=np.uint8),
        rng.random(SIZE).astype(np.float16),
        "3 ms",
        state,
        reason,
    )


def line(index=0, state="ok", latency=12.0, age=20.0):
    return {
        "frame": index,
        "latency_ms": latency,
        "age_ms": age,
        "anomaly_max": 0.9,
        "anomaly_fraction": 0.01,
        "state": state,
    }


class FakeRun:
    """What a view asks of a pipeline."""

    def __init__(self, deadline=None):
        self.supervisor = Supervisor(deadline, live=True)
        self.report = Report()
        self.skipped = 4
        self.machine = None


@pytest.fixture
def view():
    made = LiveView(painters, ABOUT)
    run = FakeRun(Deadline(50, "safe", recover_after=3))
    made.attach(run, run, EventLog())
    made.run = run
    yield made
    made.close()


@pytest.fixture
def server(view):
    with LiveServer(("127.0.0.1", 0), view, environment={}) as running:
        yield running


def ask(server, path, host=None, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer, content


@contextlib.contextmanager
def streaming(server, query=""):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", f"/stream.mjpg{query}")
        yield connection.getresponse()
    finally:
        connection.close()


def wait(condition):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def next_picture(answer):
    head = {}
    while True:
        row = answer.readline().decode().strip()
        if row.startswith("--") or (not row and not head):
            continue
        if not row:
            break
        name, _, value = row.partition(": ")
        head[name] = value
    assert head["Content-Type"] == "image/jpeg"
    content = answer.read(int(head["Content-Length"]))
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


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


def test_the_page_takes_nothing_from_anywhere_else(server):
    answer, content = ask(server, "/")
    assert answer.status == 200
    assert content == PAGE
    for text in (PAGE, STYLE, SCRIPT):
        assert not re.search(r"https?://|//cdn|@import|url\(", text)
    # The policy forbids what stands in the page itself.
    assert not re.search(r"\son\w+=|<style|style=|<script>", PAGE)
    linked = re.findall(r'(?:src|href)="(/[^"]+)"', PAGE)
    assert {"/app.js", "/style.css", "/icon.svg"} == set(linked)
    for path in linked:
        assert ask(server, path)[0].status == 200


def test_every_control_has_a_name_and_every_id_that_the_script_asks_for_exists():
    ids = set(re.findall(r'id="([^"]+)"', PAGE))
    assert set(re.findall(r'\$\("([^"]+)"\)', SCRIPT)) <= ids
    assert 'lang="en"' in PAGE
    assert 'name="viewport"' in PAGE
    for control in re.findall(r"<input[^>]+>", PAGE):
        assert "aria-label=" in control or 'type="radio"' in control
    assert "prefers-color-scheme: dark" in STYLE
    assert "focus-visible" in STYLE


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


def test_on_the_loopback_no_token_is_needed(server):
    assert server.loopback
    assert server.url == f"http://127.0.0.1:{server.port}/"


@pytest.fixture
def guarded(view):
    with LiveServer(("127.0.0.1", 0), view, environment={"EDGESEG_TOKEN": TOKEN}) as running:
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


def test_the_stream_shows_what_the_painter_draws(view, server):
    with streaming(server) as answer:
        assert answer.getheader("Content-Type").startswith("multipart/x-mixed-replace")
        assert wait(lambda: view.wants_pictures)
        given = shot(1)
        view.notice(line(), None, given)
        picture = next_picture(answer)
    drawn = painters("overlay", None).draw(given.image, given.class_map, given.score, given.note)
    assert picture.shape == drawn.shape
    # JPEG spoils noise; what is left of it in the mean is the same.
    smooth = [cv2.blur(one, (15, 15)).astype(int) for one in (picture, drawn)]
    assert np.abs(smooth[0] - smooth[1]).mean() < 4


def test_view_and_threshold_are_the_viewer_s_own(view, server):
    calm, hot = "?view=overlay&threshold=0.999", "?view=overlay&threshold=0.001"
    with streaming(server, calm) as first, streaming(server, hot) as second:
        assert wait(lambda: view.gallery.viewers == 2)
        view.notice(line(), None, shot(1))
        assert np.abs(next_picture(first).astype(int) - next_picture(second)).mean() > 10


@pytest.mark.parametrize(
    "query", ["?view=magic", "?threshold=nan", "?threshold=x", "?threshold=1e999"]
)
def test_streams_that_cannot_be(server, query):
    assert ask(server, f"/stream.mjpg{query}")[0].status == 400


def test_a_viewer_who_comes_late_sees_the_newest_picture_at_once(view, server):
    view.notice(line(), None, shot(1))
    with streaming(server) as answer:
        assert next_picture(answer).shape == (*SIZE, 3)
    with streaming(server, "?view=score") as answer:
        assert next_picture(answer).shape == (*SIZE, 3)


def frame(seed=0):
    image = np.random.default_rng(seed).integers(90, 110, (*SIZE, 3), dtype=np.uint8)
    return Frame(seed, image, "#0", "f0", now_utc(), 0, 0.1)


def redness(picture):
    wide = picture.astype(int)
    return ((wide[..., 2] - wide[..., 1] > 25) & (wide[..., 2] - wide[..., 0] > 25)).mean()


def test_the_safe_state_is_drawn_even_when_no_frame_comes(view, server):
    with streaming(server) as answer:
        assert wait(lambda: view.wants_pictures)
        view.notice(line(state="safe"), None, None)
        assert redness(next_picture(answer)) > 0.1
        view.notice(line(state="safe"), frame(), shot(1, "safe", "why"))
        assert redness(next_picture(answer)) > 0.1


def test_a_dropped_frame_shows_no_older_result(view, server):
    with streaming(server) as answer:
        assert wait(lambda: view.wants_pictures)
        view.notice(line(state="dropped"), frame(), None)
        picture = next_picture(answer)
    # Darker than the frame, with words on it.
    assert np.median(picture) < 60
    assert picture.max() > 200


def test_a_result_that_nobody_asked_for_in_time_is_no_missing_one(view):
    view.notice(line(), frame(), None)
    with view.gallery.watch("overlay", None) as pictures:
        threading.Timer(0.3, view.close).start()
        assert list(pictures) == []


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


def test_a_painter_that_fails_costs_a_picture(view):
    class Broken(Picture):
        def draw(self, painter):
            raise ValueError("no")

    with view.gallery.watch("overlay", None) as pictures:
        view.gallery.put(Broken(None, None, "ok", ""))
        assert wait(lambda: view.gallery.failures == 1)
        view.gallery.put(Picture(shot(), None, "ok", ""))
        assert next(pictures)[:2] == b"\xff\xd8"


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


CHROMIUM = os.environ.get("EDGESEG_CHROMIUM") or shutil.which("chromium")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (EDGESEG_CHROMIUM)")
def test_the_page_works_in_a_browser(view, server, tmp_path):
    end = threading.Event()

    def feed():
        for index in range(10_000):
            if end.wait(0.05):
                return
            view.notice(line(index), frame(index), shot(index) if view.wants_pictures else None)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--timeout=6000"),
            *("--dump-dom", server.url),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    end.set()
    feeder.join()
    assert 'id="state-text">OK<' in done.stdout
    assert "erfnet" in done.stdout
    assert "0.3 (the run's)" in done.stdout
    assert re.search(r"Frame \d+, 1\.00% of the pixels", done.stdout)
    assert view.gallery.refused == 0
    errors = [row for row in done.stderr.splitlines() if "CONSOLE" in row]
    assert errors == []
