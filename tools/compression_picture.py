"""The Pareto picture of the compression table: AuPRC against milliseconds, a panel per set.

Its background is opaque and nearly white, so that it reads the same on light and dark pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from compression_measures import MIOU_SETS
from compression_print import SCORER_TITLES, figure
from edgeseg.networks.zoo import ZOO

# Okabe and Ito's colours, which colour-blind readers tell apart; darkened for small text.
COLOURS = {"enet": "#0072B2", "erfnet": "#B34700", "bisenet": "#00785A", "midenet": "#9A4C7D"}
MARKERS = {
    "float32": "o",
    "pruned": "v",
    "int8": "s",
    "int8-plain": "P",
    "pruned-int8": "D",
    "masked": "X",
    "fx": "^",
    "masked-fx": "<",
    "distilled": "*",
    "timed": "h",
}
SHORT = {
    "float32": "float",
    "pruned": "pruned",
    "int8": "INT8",
    "int8-plain": "INT8, no gate",
    "pruned-int8": "pruned INT8",
    "masked": "masked",
    "fx": "FX",
    "masked-fx": "masked FX",
    "distilled": "distilled",
    "timed": "pruned to time",
}
DPI = 140
INK, FAINT, PAPER = "#24292f", "#8c959f", "#fbfbfa"
# Where a label may stand, in points from its marker: right, left, above, below, and further off.
PLACES = (
    (7, 0), (-7, 0), (0, 9), (0, -9), (7, 8), (7, -8), (-7, 8), (-7, -8),
    (14, 15), (14, -15), (-14, 15), (-14, -15), (0, 19), (0, -19), (24, 24), (24, -24),
    (-24, 24), (-24, -24), (0, 30), (0, -30), (34, 10), (34, -10), (-34, 10), (-34, -10),
    (20, 36), (20, -36), (-20, 36), (-20, -36), (50, 20), (50, -20), (-50, 20), (-50, -20),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """A network in one form."""

    network: str
    form: str
    ms: float
    """On its quickest engine."""
    auprc: float
    """Percent."""


def points(document: Mapping[str, Any], name: str, scorer: str) -> list[Point]:
    """Every row that has a time and this figure."""
    found = []
    for network, entry in document["networks"].items():
        for row in entry["rows"]:
            auprc = figure(row, name, scorer) if "counts" in row else None
            if auprc is not None and row["speed"]:
                ms = min(s["ms"] for s in row["speed"].values())
                found.append(Point(network, row["form"], ms, auprc))
    return found


def front(found: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both, from quick to slow."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.ms, -p.auprc)):
        if not best or point.auprc > best[-1].auprc:
            best.append(point)
    return best


def draw(document: Mapping[str, Any], path: Path, scorer: str = "void") -> None:
    """Write the picture; the suffix of ``path`` says in which format.

    Raises:
        ValueError: no row has a time and an AuPRC of this scorer.
    """
    panels = {
        name: found
        for name in document["sets"]
        if name not in MIOU_SETS and (found := points(document, name, scorer))
    }
    if not panels:
        raise ValueError(f"no row has both a time and an AuPRC of {scorer}; nothing to draw")
    style = {
        "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
        "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "edgeseg",
    }  # fmt: skip
    with plt.rc_context(style):
        size = (9.0, 3.5 * len(panels) + 0.9)
        figure_, axes = plt.subplots(
            len(panels), 1, figsize=size, squeeze=False, sharex=True, dpi=DPI
        )
        figure_.set_facecolor(PAPER)
        for axis, (name, found) in zip(axes[:, 0], panels.items(), strict=True):
            _panel(axis, name, found)
        axes[-1, 0].set_xlabel("milliseconds a frame on the quickest engine (FX: torch), log scale")
        title = f"AuPRC of {SCORER_TITLES.get(scorer, scorer)} against time: up and left is better"
        figure_.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        cpu, _, rest = document["machine"]["cpu"].rpartition(" (")
        cores = f"{cpu} with {rest.split(',')[0].rstrip(')')}"
        trial = f"; trial on every {document['every']}th frame" if document["every"] > 1 else ""
        note = f"Dashed: nothing is both quicker and better. Measured on {cores}"
        note += f", frames of {document['settings']['size']}{trial}"
        figure_.text(0.01, 0.004, note, fontsize=7.5, color="#57606a")
        figure_.tight_layout(rect=(0, 0.015, 1, 0.985))
        for axis, found in zip(axes[:, 0], panels.values(), strict=True):
            _label(axis, found)
        figure_.savefig(path, dpi=DPI, facecolor=PAPER)
        plt.close(figure_)


def _panel(axis: Axes, name: str, found: Sequence[Point]) -> None:
    axis.set_facecolor(PAPER)
    axis.set_xscale("log")
    slow, quick = max(p.ms for p in found), min(p.ms for p in found)
    axis.set_xlim(quick / 1.6, slow * 1.6)
    low, high = min(p.auprc for p in found), max(p.auprc for p in found)
    room = 0.18 * ((high - low) or 1)
    axis.set_ylim(max(low - room, -room / 4), high + room)
    best = front(found)
    axis.step(
        [*(p.ms for p in best), axis.get_xlim()[1]], [*(p.auprc for p in best), best[-1].auprc],
        where="post", color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1,
    )  # fmt: skip
    for point in found:
        axis.plot(
            point.ms, point.auprc, MARKERS[point.form], color=COLOURS[point.network],
            markersize=9 if point.form == "distilled" else 6, markeredgecolor=PAPER,
            markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
    axis.set_title(name, loc="left", fontsize=9.5)
    axis.set_ylabel("AuPRC %")
    axis.grid(True, which="major", color="#e4e6e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _label(axis: Axes, found: Sequence[Point]) -> None:
    """A label beside each point, where it covers neither a marker nor another label."""
    canvas = axis.figure.canvas
    renderer = canvas.get_renderer()
    pixels = axis.figure.dpi / 72
    spots = [axis.transData.transform((p.ms, p.auprc)) for p in found]
    radius = 4 * pixels
    taken = [(Bbox([[x - radius, y - radius], [x + radius, y + radius]]), 1) for x, y in spots]
    best = front(found)
    for near, far in zip(best, [*best[1:], None], strict=True):
        x, y = axis.transData.transform((near.ms, near.auprc))
        end = axis.transData.transform((far.ms if far else axis.get_xlim()[1], near.auprc))[0]
        # Thin, but a text that is struck through is hard to read.
        taken.append((Bbox([[x, y - pixels], [end, y + pixels]]), 6))
    inside = axis.get_window_extent(renderer)
    # Those in a crowd first: they have the fewest places.
    order = sorted(range(len(found)), key=lambda i: -_crowd(spots[i], spots))
    for i in order:
        point = found[i]
        text = f"{ZOO[point.network].title.split(' ')[0]} {SHORT[point.form]}"
        chosen, least = PLACES[0], float("inf")
        for place in PLACES:
            label = _annotate(axis, point, text, place)
            box = _text_box(label, renderer)
            label.remove()
            overlap = sum(w * _common(box, other) for other, w in taken)
            overlap += 3 * _outside(box, inside) + _crossed(spots[i], place, pixels, taken)
            if overlap < least - 1e-6:
                chosen, least = place, overlap
            if least == 0:
                break
        label = _annotate(axis, point, text, chosen)
        taken.append((_text_box(label, renderer), 1))


def _crowd(spot: Any, spots: Sequence[Any]) -> float:
    return sum(1 / (10 + float(np.hypot(*(spot - other)))) for other in spots)


def _crossed(
    spot: Any, place: tuple[int, int], pixels: float, taken: Sequence[tuple[Bbox, int]]
) -> float:
    """How much of the line to a label that stands further off runs over something."""
    offset = pixels * np.array(place)
    if not _is_far(place):
        return 0.0
    # Not from the marker itself, which is taken.
    steps = [spot + share * offset for share in np.linspace(0.35, 1, 12)]
    return 30.0 * sum(box.contains(*step) for step in steps for box, _ in taken)


def _is_far(place: tuple[int, int]) -> bool:
    return max(map(abs, place)) > 10


def _text_box(label: Any, renderer: Any) -> Bbox:
    """Of the text alone; an annotation's own extent has its line in it."""
    label.update_positions(renderer)
    return Text.get_window_extent(label, renderer)


def _annotate(axis: Axes, point: Point, text: str, place: tuple[int, int]) -> Any:
    dx, dy = place
    line = {"arrowstyle": "-", "color": COLOURS[point.network], "linewidth": 0.6, "shrinkA": 0}
    return axis.annotate(
        text, (point.ms, point.auprc), xytext=place, textcoords="offset points", fontsize=7,
        color=COLOURS[point.network], ha="center" if not dx else "left" if dx > 0 else "right",
        va="center" if not dy else "bottom" if dy > 0 else "top",
        arrowprops={**line, "shrinkB": 3} if _is_far(place) else None, zorder=4,
    )  # fmt: skip


def _common(one: Bbox, other: Bbox) -> float:
    overlap = Bbox.intersection(one, other)
    return 0.0 if overlap is None else overlap.width * overlap.height


def _outside(box: Bbox, frame: Bbox) -> float:
    return box.width * box.height - _common(box, frame)
