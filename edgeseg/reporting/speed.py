"""Networks by devices, and how latency is distributed."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from edgeseg.reporting.charts import Axis, Line, Span, chart, legend, spans
from edgeseg.reporting.documents import LEVELS, Profile, ProfileRow
from edgeseg.reporting.files import RunLines
from edgeseg.reporting.markup import (
    UNKNOWN,
    Content,
    Html,
    count,
    counted,
    details,
    join,
    number,
    paragraph,
    table,
    tag,
)
from edgeseg.reporting.series import colour_of

__all__ = ["devices_section", "latency_section", "spoken"]

_TRUSTED: Final = ("comparable", "estimated", "")
_MAX_CHARTS: Final = 12
_MAX_SPANS: Final = 24
_BINS: Final = 40
_LATENCY, _AGE = 0, 1
_SPANS: Final = (
    "Filled, measured: from the fastest frame to the slowest, lines at p50, p90, p95, p99 and max. "
    "Hollow, estimated: the range, a line at the estimate. Dashed across: the budget."
)


def devices_section(profiles: Sequence[Profile]) -> Html:
    """A table of networks by devices, and below it every row in full."""
    rows = [row for profile in profiles for row in profile.rows]
    if not rows:
        return paragraph(
            "Nothing here. ",
            tag("code", "edgeseg profile --json > profile.json"),
            " measures on this machine; with ",
            tag("code", "--device jetson"),
            " and the like it estimates.",
            class_="none",
        )
    places = list(dict.fromkeys(r.place for r in rows))
    names = list(dict.fromkeys(r.name for r in rows))
    titles = {r.place: r.title for r in rows}
    heads: list[Content] = ["network"]
    heads += [[p, tag("br"), tag("small", titles[p])] for p in places]
    body = []
    for name in names:
        cells: list[Content] = [name]
        for place in places:
            found = [r for r in rows if (r.name, r.place) == (name, place)]
            cells.append([_cell(r) for r in found] or UNKNOWN)
        body.append(cells)
    doubtful = sorted({figure for p in profiles for figure in p.unconfirmed})
    return join(
        paragraph(
            "Milliseconds for one frame, from the frame in memory to class map and score: median, "
            "then the 99th percentile and frames per second. ",
            tag("b", "Estimated"),
            " figures follow from the device's published peaks; the true one should lie in the "
            "range. Nobody measured them.",
        ),
        paragraph(f"No primary source confirms {', '.join(doubtful)}.") if doubtful else "",
        table("Latency of networks by devices, ms", heads, body, left=len(heads)),
        details(f"In full: {counted(len(rows), 'row')}", _full_table(rows)),
    )


def _cell(row: ProfileRow) -> Html:
    parts: list[Content] = [tag("b", f"{number(row.latency['p50'])} ms"), " "]
    if row.estimated:
        parts.append(tag("span", "estimated", class_="guess"))
        if row.range_ms is not None:
            parts += [tag("br"), "range {} to {}".format(*map(number, row.range_ms))]
    else:
        tail = f"p99 {number(row.latency.get('p99'))}"
        parts.append(f"{tail}, {number(row.fps)}/s")
        if row.verdict not in _TRUSTED:
            parts += [tag("br"), tag("span", row.verdict, class_="bad")]
    parts += [tag("br"), tag("small", _how(row))]
    if row.within_budget is False:
        what = "upper end over" if row.estimated else "over"
        text = f"{what} the budget of {number(row.budget)} ms"
        parts += [tag("br"), tag("span", text, class_="bad")]
    return tag("div", *parts, class_="estimated" if row.estimated else "measured")


def _how(row: ProfileRow) -> str:
    threads = "" if row.threads is None else f", {counted(row.threads, 'thread')}"
    return f"{row.scorer} on {row.backend}{threads}"


def _full_table(rows: Sequence[ProfileRow]) -> Html:
    heads = ["network", "device", "kind", "scorer and engine", *(f"{x} ms" for x in LEVELS), "fps"]
    heads += ["body ms", "head ms", "GMACs", "parameters", "file MB", "memory MB", "J a frame"]
    body = []
    for r in rows:
        kind = "estimated" if r.estimated else "measured"
        doubt = "" if r.verdict in _TRUSTED else f": {'; '.join([r.verdict, *r.reasons])}"
        cells: list[Content] = [r.name, r.place, f"{kind}{doubt}", _how(r)]
        cells += [number(r.latency.get(level)) for level in LEVELS] + [number(r.fps)]
        cells += [number(r.stages.get(stage)) for stage in ("body", "head")]
        cells += [_scaled(r.macs, 1e9), count(r.params), _scaled(r.file_bytes, 1e6)]
        cells += [_scaled(r.memory_bytes, 1e6), number(r.energy_joule)]
        body.append([*cells, r.file])
    classes = ["estimated" if r.estimated else None for r in rows]
    return table("Every profiled network", [*heads, "file"], body, left=4, classes=classes)


def _scaled(value: float | None, unit: float) -> str:
    return number(None if value is None else value / unit)


def latency_section(profiles: Sequence[Profile], runs: Sequence[RunLines]) -> Html:
    """Percentiles of every profiled network, and histograms where single frames were kept."""
    rows = [row for profile in profiles for row in profile.rows]
    if not rows and not runs:
        return paragraph(
            "Nothing here. ",
            tag("code", "edgeseg profile --json > profile.json"),
            " gives percentiles, ",
            tag("code", "edgeseg run --input drive.mp4 --jsonl run.jsonl"),
            " the latency and age of every frame.",
            class_="none",
        )
    charts = [_spans_of(place, rows) for place in dict.fromkeys(r.place for r in rows)]
    charts += [_samples_of(row) for row in rows if row.samples]
    charts += [_run(run) for run in runs]
    left = len(charts) - _MAX_CHARTS
    return join(
        tag("div", *charts[:_MAX_CHARTS], class_="charts"),
        paragraph(f"{counted(left, 'more chart')} left out; the tables have all figures.")
        if left > 0
        else "",
        details("Percentiles of runs", _runs_table(runs)) if runs else "",
    )


def _spans_of(place: str, every: Sequence[ProfileRow]) -> Html:
    rows = [r for r in every if r.place == place]
    drawn = []
    for r in rows[:_MAX_SPANS]:
        p50 = r.latency["p50"]
        high = max(r.latency.values())
        low = min(p50, r.fastest or p50)
        ticks = [(str(name), r.latency[name]) for name in LEVELS if name in r.latency]
        if r.estimated:
            low, high = r.range_ms or (p50, high)
            ticks = [("estimate", p50)]
        told = ", ".join(f"{name} {number(v)} ms" for name, v in ticks)
        label = f"{r.network} {r.precision} {r.size}, {r.scorer}"
        label += ", estimated" if r.estimated else f", {r.backend}"
        drawn.append(
            Span(label, low, high, ticks, told, colour_of(r.network), r.estimated, r.budget)
        )
    more = len(rows) - len(drawn)
    note = f" {counted(more, 'more row')} in the table of networks." if more > 0 else ""
    title = f"Latency on {place}"
    return tag(
        "figure",
        tag("figcaption", title),
        spans(title, spoken(f"{s.label}: {s.told}" for s in drawn), "ms a frame", drawn),
        paragraph(f"{_SPANS}{note}", class_="note"),
    )


def _samples_of(row: ProfileRow) -> Html:
    title = f"{row.name} on {row.place}, {len(row.samples)} frames"
    return _histogram(title, {"latency": row.samples}, "")


def _run(run: RunLines) -> Html:
    series = {"latency": run.latency, "age": run.age}
    states = ", ".join(f"{n} {state}" for state, n in run.states.most_common())
    note = f"{counted(run.lines, 'frame')}: {states}." + (
        f" Of this file {run.note}." if run.note else ""
    )
    return _histogram(f"Run {run.file}", {k: v for k, v in series.items() if v}, note)


def _histogram(title: str, series: dict[str, list[float]], note: str) -> Html:
    if not series:
        return tag("figure", tag("figcaption", title), paragraph(f"No times. {note}"))
    top = max(float(np.percentile(values, 99.5)) for values in series.values()) * 1.05 or 1.0
    edges = np.linspace(0, top, _BINS + 1)
    lines, told, highest = [], [], 0.0
    for name, values in series.items():
        # What lies beyond the last edge counts in the last bin.
        counts, _ = np.histogram(np.minimum(values, top), edges)
        shares = 100 * counts / len(values)
        highest = max(highest, float(shares.max()))
        steps = [(float(edges[0]), 0.0)]
        for i, share in enumerate(shares):
            steps += [(float(edges[i]), float(share)), (float(edges[i + 1]), float(share))]
        colour, dash = (_LATENCY, "") if name == "latency" else (_AGE, "6 3")
        median, tail = (number(float(np.percentile(values, q))) for q in (50, 99))
        told.append(f"{name} median {median} ms, 99% {tail} ms, max {number(max(values))} ms")
        lines.append(Line([*steps, (top, 0.0)], told[-1], colour, dash))
    picture = chart(
        title,
        spoken(told),
        Axis("ms (last bin: and more)", 0.0, top),
        Axis("% of frames", 0.0, 1.1 * highest),
        lines=lines,
        height=220,
    )
    key = legend(zip(told, lines, strict=True))
    return tag("figure", tag("figcaption", title), picture, key, paragraph(note, class_="note"))


def _runs_table(runs: Sequence[RunLines]) -> Html:
    heads = ["run", "of", "frames", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "max ms"]
    body = [
        [run.file, name, count(len(values))]
        + [number(float(np.percentile(values, q))) for q in (50, 90, 95, 99, 100)]
        for run in runs
        for name, values in (("latency", run.latency), ("age", run.age))
        if values
    ]
    return table("Latency and age of runs", heads, body, left=2)


def spoken(parts: Iterable[str], limit: int = 6) -> str:
    """The first few of some sentences, for a chart's description."""
    found = list(parts)
    more = f"; and {len(found) - limit} more" if len(found) > limit else ""
    return f"{'; '.join(found[:limit])}{more}."
