"""Charts as inline SVG, drawn for a width of 360 so that their text is legible on a phone.

Colours are the page's variables, so a chart follows its colour scheme; what a colour tells, a
shape or a dash tells too. Every chart has a name and a description for those who do not see it, and
every mark its values when pointed at.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

from edgeseg.reporting.markup import Html, tag

__all__ = [
    "COLOURS",
    "DASHES",
    "SHAPES",
    "Axis",
    "Line",
    "Mark",
    "Span",
    "chart",
    "legend",
    "spans",
]

COLOURS: Final = 8
"""Series colours of the page, ``--s0`` and on."""
SHAPES: Final = ("circle", "square", "diamond", "up", "down", "cross", "plus", "hexagon")
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "4 2 1 2 1 2")

_WIDTH: Final = 360
_NAME, _RIGHT, _TOP, _BOTTOM = 24, 14, 10, 42
"""Room at the edges; at the left the ticks take more."""
_LETTER: Final = 6.3
"""Width of a letter of the labels."""
_LINE: Final = 13


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from ``low`` to ``high``, of which a logarithmic one is above zero."""

    label: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def around(
        cls, label: str, values: Iterable[float], *, log: bool = False, zero: bool = False
    ) -> "Axis":
        """With some room around all values; from zero on where ``zero``."""
        found = [v for v in values if not log or v > 0] or [1.0]
        low, high = min(found), max(found)
        if log:
            room = max((high / low) ** 0.12, 1.25)
            return cls(label, low / room, high * room, True)
        room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(label, 0.0 if zero else max(low - room, min(low, 0.0)), high + room)

    def share(self, value: float) -> float:
        """Where a value lies, 0 .. 1; beyond the ends it is cut."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers within, some five of them, and how they are written."""
        values = self._ticks()
        if self.log:
            return [(v, _written(v, max(0, -math.floor(math.log10(v) + 1e-9)))) for v in values]
        step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
        # 2.5 has one decimal more than 2.
        decimals = next((d for d in range(9) if abs(round(step, d) - step) < 1e-6 * step), 9)
        return [(v, _written(v, decimals)) for v in values]

    def _ticks(self) -> list[float]:
        if not self.log:
            raw = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            count = int((self.high - first * step) / step + 1e-9)
            return [(first + i) * step for i in range(count + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**p for p in powers for d in digits]
            found = [v for v in found if self.low <= v <= self.high]
            if len(found) <= 6:
                break
        # Where there are still too many: every second power, or third.
        return found[:: -(-len(found) // 6)] if found else [self.low, self.high]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve through points, as ``(x, y)``."""

    points: Sequence[tuple[float, float]]
    name: str = ""
    colour: int | None = None
    """Of the series; ``None``: faint."""
    dash: str = ""
    label: str = ""
    """Written along its end."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point; hollow with a dashed edge where it is an estimate."""

    x: float
    y: float
    told: str
    """Its values, shown when it is pointed at."""
    colour: int = 0
    shape: str = "circle"
    hollow: bool = False
    small: bool = False
    label: str = ""
    range_x: tuple[float, float] | None = None


def chart(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    *,
    lines: Sequence[Line] = (),
    marks: Sequence[Mark] = (),
    height: int = 270,
) -> Html:
    """Lines and marks between two axes."""
    plot = _Plot(x, y, height)
    parts = [plot.grid()]
    parts += [plot.line(line) for line in lines]
    parts += [plot.mark(mark) for mark in marks]
    parts.append(plot.labels(lines, marks))
    return _svg(title, description, height, parts)


class _Plot:
    """Places values of two axes on the drawing."""

    def __init__(self, x: Axis, y: Axis, height: int) -> None:
        self.x, self.y, self.height = x, y, height
        self.left = _NAME + _LETTER * max(len(text) for _, text in y.ticks())

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = self.left + self.x.share(x) * (_WIDTH - self.left - _RIGHT)
        down = self.height - _BOTTOM - self.y.share(y) * (self.height - _TOP - _BOTTOM)
        return across, down

    def grid(self) -> Html:
        left, bottom = self.at(self.x.low, self.y.low)
        right, top = self.at(self.x.high, self.y.high)
        parts = []
        for value, text in self.y.ticks():
            _, down = self.at(self.x.low, value)
            parts.append(_segment(left, down, right, down, "grid"))
            parts.append(_text(left - 5, down + 4, text, "tick end"))
        end = 0.0
        for value, text in self.x.ticks():
            across, _ = self.at(value, self.y.low)
            parts.append(_segment(across, top, across, bottom, "grid"))
            half = _LETTER * len(text) / 2
            if across - half > end and across + half <= _WIDTH:
                parts.append(_text(across, bottom + 16, text, "tick middle"))
                end = across + half + 4
        parts.append(_segment(left, bottom, right, bottom, "axis"))
        parts.append(_segment(left, top, left, bottom, "axis"))
        middle = (left + right) / 2
        parts.append(_text(middle, self.height - 6, self.x.label, "name middle"))
        upright = f"translate(12 {(top + bottom) / 2:.0f}) rotate(-90)"
        parts.append(tag("text", self.y.label, class_="name middle", transform=upright))
        return tag("g", *parts, aria_hidden="true")

    def line(self, line: Line) -> Html:
        points = [self.at(*p) for p in line.points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        colour = "c-dim" if line.colour is None else f"c{line.colour % COLOURS}"
        title = tag("title", line.name) if line.name else ""
        return tag(
            "path", title, d=path, class_=f"line {colour}", stroke_dasharray=line.dash or None
        )

    def mark(self, mark: Mark) -> Html:
        across, down = self.at(mark.x, mark.y)
        parts = []
        if mark.range_x is not None:
            low, high = (self.at(v, mark.y)[0] for v in mark.range_x)
            parts.append(_segment(low, down, high, down, "range"))
        parts.append(_shape(mark.shape, across, down, 3.2 if mark.small else 5.5))
        kind = " hollow" if mark.hollow else ""
        colour = mark.colour % COLOURS
        return tag("g", tag("title", mark.told), *parts, class_=f"mark c{colour}{kind}")

    def labels(self, lines: Sequence[Line], marks: Sequence[Mark]) -> Html:
        """Each where it covers no mark and no other label; where there is no such place, none."""
        taken = [(a - 6, b - 6, a + 6, b + 6) for a, b in (self.at(m.x, m.y) for m in marks)]
        wanted = [(self.at(m.x, m.y), m.label) for m in marks if m.label]
        wanted += [(self.at(*line.points[-1]), line.label) for line in lines if line.label]
        for one, two in ((one, two) for line in lines for one, two in pairwise(line.points)):
            # Of lines only the level parts are kept free: a label on a slope can be read.
            (a, b), (c, d) = self.at(*one), self.at(*two)
            if abs(b - d) < 1:
                taken.append((min(a, c), b - 1, max(a, c), b + 1))
        parts = []
        for (across, down), label in wanted:
            width = _LETTER * len(label)
            for right, shift in product((True, False), (4, -8, 16, -20)):
                left = across + 9 if right else across - 9 - width
                box = (left, down + shift - _LINE + 3, left + width, down + shift + 3)
                inside = box[0] >= self.left and box[2] <= _WIDTH and box[1] >= 0
                if inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    parts.append(_text(left, down + shift, label, "label"))
                    break
        return tag("g", *parts, aria_hidden="true")


@dataclass(frozen=True, slots=True)
class Span:
    """A row of a chart of spans: a bar from ``low`` to ``high`` with ticks in it."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[str, float]]
    told: str
    colour: int = 0
    estimated: bool = False
    limit: float | None = None
    """A budget, drawn across the bar."""


def spans(title: str, description: str, label: str, rows: Sequence[Span]) -> Html:
    """Rows under each other on a common axis; logarithmic where they lie far apart."""
    top = max([r.high for r in rows] + [r.limit for r in rows if r.limit is not None])
    low = min(r.low for r in rows)
    log = low > 0 and top > 30 * low
    axis = Axis.around(label + (", log scale" if log else ""), [low, top], log=log, zero=True)
    left, right, step = 8, _WIDTH - 14, 40
    height = step * len(rows) + 46

    def at(value: float) -> float:
        return left + axis.share(value) * (right - left)

    parts = []
    for value, text in axis.ticks():
        parts.append(_segment(at(value), 4, at(value), height - 38, "grid"))
        parts.append(_text(at(value), height - 23, text, "tick middle"))
    parts.append(_text((left + right) / 2, height - 6, axis.label, "name middle"))
    for index, row in enumerate(rows):
        y = step * index + 27
        parts.append(_text(left, y - 11, row.label, "label"))
        kind = " hollow" if row.estimated else ""
        bar = tag("rect", x=at(row.low), y=y - 5.0, height=10,
                  width=max(at(row.high) - at(row.low), 1.0), class_="bar")  # fmt: skip
        ticks = [_segment(at(v), y - 8, at(v), y + 8, "level") for _, v in row.ticks]
        inner = [tag("title", row.told), bar, *ticks]
        parts.append(tag("g", *inner, class_=f"mark c{row.colour % COLOURS}{kind}"))
        if row.limit is not None:
            parts.append(_segment(at(row.limit), y - 9, at(row.limit), y + 9, "limit"))
    return _svg(title, description, height, parts)


def legend(entries: Iterable[tuple[str, Mark | Line]]) -> Html:
    """What colours, shapes and dashes stand for; a list under a chart."""
    items = []
    for text, key in entries:
        if isinstance(key, Line):
            colour = "c-dim" if key.colour is None else f"c{key.colour % COLOURS}"
            drawn = tag(
                "path", d="M1 7H25", class_=f"line {colour}", stroke_dasharray=key.dash or None
            )
        else:
            kind = " hollow" if key.hollow else ""
            shape = _shape(key.shape, 13, 7, 5)
            drawn = tag("g", shape, class_=f"mark c{key.colour % COLOURS}{kind}")
        picture = tag("svg", drawn, viewBox="0 0 26 14", width=26, height=14, aria_hidden="true")
        items.append(tag("li", picture, tag("span", text)))
    return tag("ul", *items, class_="legend")


def _written(value: float, decimals: int) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and value % unit == 0 and unit > 1e3):
            return f"{value / unit:g}{letter}"
    return f"{value:,.{decimals}f}"


def _svg(title: str, description: str, height: int, parts: Iterable[Html]) -> Html:
    # Not as <title>, which would pop up over every chart.
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {height}",
        role="img",
        aria_label=f"{title}. {description}",
        class_="chart",
    )


def _shape(name: str, x: float, y: float, r: float) -> Html:
    if name == "circle":
        return tag("circle", cx=x, cy=y, r=r)
    corners: dict[str, list[tuple[float, float]]] = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
        "up": [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
        "down": [(0, 1.2), (1.1, -0.9), (-1.1, -0.9)],
        "hexagon": [(-0.6, -1.1), (0.6, -1.1), (1.2, 0), (0.6, 1.1), (-0.6, 1.1), (-1.2, 0)],
    }
    if name in corners:
        return tag("polygon", points=" ".join(f"{x + a * r:.1f},{y + b * r:.1f}"
                                              for a, b in corners[name]))  # fmt: skip
    a = r if name == "cross" else 0.0
    b = r if name == "cross" else 1.3 * r
    arms = f"M{x - b:.1f} {y - a:.1f}L{x + b:.1f} {y + a:.1f}M{x - a:.1f} {y + b:.1f}"
    return tag("path", d=f"{arms}L{x + a:.1f} {y - b:.1f}", class_="stroke")


def _segment(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def _text(x: float, y: float, text: str, class_: str) -> Html:
    return tag("text", text, x=float(x), y=float(y), class_=class_)


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
