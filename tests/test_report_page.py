"""The report in a browser: on a phone, by keyboard, in both colour schemes, on paper.

EDGESEG_SHOTS names a folder to keep the screenshots in.
"""

import os
from pathlib import Path

import cv2
import pytest

from edgeseg.reporting.files import search
from edgeseg.reporting.page import page
from tests.browser import browser, needs_chromium
from tests.report_files import fill

pytestmark = [pytest.mark.slow, needs_chromium]

WIDTHS = {"desktop": 1280, "phone": 360}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = fill(tmp_path_factory.mktemp("report") / "results")
    path = folder.parent / "report.html"
    text = page(search(folder, path), folder.name, max_frames=2, say=pytest.fail)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    kept = os.environ.get("EDGESEG_SHOTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("shots")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_it_fits_the_screen_and_asks_for_nothing(chromium, report, shots, device, scheme):
    width = WIDTHS[device]
    chromium.open(report, width, scheme=scheme)
    assert chromium.run("innerWidth") == width
    assert chromium.run("document.documentElement.scrollWidth") <= width
    asked = [url for url in chromium.requests() if not url.startswith("data:image/jpeg")]
    assert asked == [report.as_uri()]
    assert chromium.complaints() == []
    picture = shots / f"{device}-{scheme}.png"
    chromium.screenshot(picture)
    shown = cv2.imread(str(picture))
    assert shown.shape[1] == width
    brightness = shown.mean()
    assert brightness < 100 if scheme == "dark" else brightness > 180


def test_texts_are_large_enough_on_a_phone(chromium, report):
    chromium.open(report, WIDTHS["phone"])
    heights = chromium.run(
        "[...document.querySelectorAll('svg.chart text')].filter(t => t.textContent)"
        ".map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)"
    )
    assert len(heights) > 50
    # A turned text has its size in another part of its matrix.
    assert min(h for h in heights if h > 1) >= 9


def test_charts_draw_within_their_frames(chromium, report):
    chromium.open(report, WIDTHS["phone"])
    outside = chromium.run(
        "[...document.querySelectorAll('svg.chart')].flatMap(svg => {"
        " const frame = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text, .mark, .line')].filter(e => {"
        "  const box = e.getBoundingClientRect();"
        "  return box.left < frame.left - 2 || box.right > frame.right + 2"
        "   || box.top < frame.top - 2 || box.bottom > frame.bottom + 2; })"
        " .map(e => svg.getAttribute('aria-label').slice(0, 40) + ': ' + e.textContent); })"
    )
    assert outside == []


def test_axis_names_and_ticks_do_not_cover_each_other(chromium, report):
    chromium.open(report, WIDTHS["desktop"])
    covered = chromium.run(
        "[...document.querySelectorAll('svg.chart')].flatMap(svg => {"
        " const boxes = [...svg.querySelectorAll('text.tick, text.name')]"
        "  .map(e => [e.getBoundingClientRect(), e.textContent]);"
        " return boxes.flatMap(([a, s], i) => boxes.slice(i + 1)"
        "  .filter(([b]) => a.left < b.right - 1 && b.left < a.right - 1"
        "   && a.top < b.bottom - 3 && b.top < a.bottom - 3).map(([, t]) => s + ' / ' + t)); })"
    )
    assert covered == []


def test_the_keyboard_reaches_everything(chromium, report):
    chromium.open(report, WIDTHS["desktop"])
    wanted = chromium.run("document.querySelectorAll('a, summary, [tabindex]').length")
    at = "[document.activeElement.tagName, document.activeElement.textContent].join(' ')"
    seen, opened = [], 0
    for _ in range(300):
        chromium.press("Tab")
        found = chromium.run(at)
        if found.startswith("BODY"):
            break
        seen.append(found)
        if found.startswith("SUMMARY"):
            chromium.press("Enter")
            opened += chromium.run("document.activeElement.parentElement.open")
    assert seen[0] == "A Skip to the content"
    assert opened == chromium.run("document.querySelectorAll('details').length") > 3
    assert len(seen) == wanted


def test_focus_is_seen(chromium, report):
    chromium.open(report, WIDTHS["desktop"])
    chromium.press("Tab")
    style = "getComputedStyle(document.activeElement)"
    assert chromium.run(f"{style}.outlineStyle") == "solid"
    assert chromium.run("document.activeElement.getBoundingClientRect().left") >= 0


CONTRAST = """
(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => {
    const [r, g, b] = parts(c).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (parts(c).length === 3 || parts(c)[3] > 0) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  const texts = 'p, td, th, li, a, summary, code, span, small, h2, b';
  for (const e of document.querySelectorAll(texts)) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(back(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([e.tagName, e.textContent.slice(0, 30), ratio]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(chromium, report, scheme):
    chromium.open(report, WIDTHS["desktop"], scheme=scheme)
    assert chromium.run(CONTRAST) == []


def test_it_prints_on_light_paper(chromium, report, shots):
    chromium.open(report, 780, scheme="dark")
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    chromium.screenshot(shots / "print.png")
    assert cv2.imread(str(shots / "print.png")).mean() > 180
    assert chromium.pdf().startswith(b"%PDF")
