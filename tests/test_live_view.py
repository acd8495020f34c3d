"""What the live view shows: the page, alone and in a browser, and the pictures of its streams."""

import contextlib
import re
import subprocess
import threading

import numpy as np
import pytest

pytest.importorskip("cv2")

import cv2

from edgeseg.runtime.frames import Frame, now_utc
from edgeseg.runtime.live.page import PAGE, SCRIPT, STYLE
from edgeseg.runtime.live.pictures import Picture
from tests.browser import CHROMIUM, needs_chromium
from tests.live_server import (
    SIZE,
    ask,
    attached_view,
    line,
    opened,
    painters,
    shot,
    streaming,
    wait,
)


@pytest.fixture
def view():
    with contextlib.closing(attached_view()) as made:
        yield made


@pytest.fixture
def server(view):
    with opened(view) as running:
        yield running


# --- the page


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


# --- streams


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


def test_a_painter_that_fails_costs_a_picture(view):
    class Broken(Picture):
        def draw(self, painter):
            raise ValueError("no")

    with view.gallery.watch("overlay", None) as pictures:
        view.gallery.put(Broken(None, None, "ok", ""))
        assert wait(lambda: view.gallery.failures == 1)
        view.gallery.put(Picture(shot(), None, "ok", ""))
        assert next(pictures)[:2] == b"\xff\xd8"


# --- a browser


@pytest.mark.slow
@needs_chromium
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
