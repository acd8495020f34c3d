"""Accuracy against latency, and figures by data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from edgeseg.reporting.charts import Axis, Line, Mark, chart, legend
from edgeseg.reporting.compressed import Compression
from edgeseg.reporting.curves import no_evaluation
from edgeseg.reporting.documents import Evaluation, Profile, ProfileRow
from edgeseg.reporting.markup import (
    UNKNOWN,
    Html,
    count,
    counted,
    details,
    join,
    number,
    paragraph,
    percent,
    table,
    tag,
)
from edgeseg.reporting.series import colour_of, shape_of
from edgeseg.reporting.speed import spoken

__all__ = ["Point", "accuracy_section", "front", "pareto_section", "points"]

_MAX_CHARTS: Final = 24
_USUAL_PROTOCOL: Final = "paper"
_FX: Final = "torch-fx"


@dataclass(frozen=True, slots=True)
class Point:
    """A network in one form on one device, judged on one data set."""

    panel: tuple[str, str, str]
    """Data set with the split and the protocol that chose its frames, figure, device."""
    network: str
    form: str
    title: str
    ms: float
    percent: float
    estimated: bool
    range_ms: tuple[float, float] | None
    matched: str
    """How latency and accuracy were brought together."""


def points(
    profiles: Sequence[Profile],
    evaluations: Sequence[Evaluation],
    tables: Sequence[Compression],
) -> list[Point]:
    """Every pair of a latency and an accuracy that belong together."""
    rows = [row for profile in profiles for row in profile.rows]
    found = [p for row in rows for e in evaluations if (p := _pair(row, e)) is not None]
    for document in tables:
        found += _of_table(document)
    return list(dict.fromkeys(found))


def _pair(row: ProfileRow, judged: Evaluation) -> Point | None:
    if judged.shard or judged.name != row.name:
        return None
    # What torch FX quantized shares network, precision and size with the INT8 bundle, no more.
    if _FX in (row.backend, judged.backend) and row.backend != judged.backend:
        return None
    named = row.artefact and judged.artefact and not judged.backend.startswith("torch")
    if named and row.artefact != judged.artefact:
        return None  # two bundles of the same form
    if judged.miou is not None:
        figure, value = "mIoU %", judged.miou
        protocol = ""  # labelled sets have the same frames under each
    else:
        plain = [s for s in judged.scored if s.auprc is not None and s.temperature == 1]
        chosen = next((s for s in plain if s.scorer == row.scorer), plain[0] if plain else None)
        if chosen is None or chosen.auprc is None:
            return None
        figure, value = f"AuPRC % of {chosen.scorer}", chosen.auprc
        protocol = "" if judged.protocol == _USUAL_PROTOCOL else f", protocol {judged.protocol}"
    every = f", every {judged.every:.0f}th frame" if judged.every > 1 else ""
    return Point(
        panel=(f"{judged.data}{protocol}{every}", figure, row.place),
        network=row.network,
        form=row.precision,
        title=f"{row.name}, {row.backend}",
        ms=row.latency["p50"],
        percent=value,
        estimated=row.estimated,
        range_ms=row.range_ms,
        matched="same bundle" if named else f"by name, {judged.file}",
    )


def _of_table(document: Compression) -> Iterable[Point]:
    trial = f", every {document.every:.0f}th frame" if document.every > 1 else ""
    machine = document.machine.partition(" (")[0] or document.file
    place = f"{machine}, quickest engine"
    for form in document.forms:
        if not form.speed:
            continue
        engine, ms = min(form.speed.items(), key=lambda item: item[1])
        figures = {(s, "mIoU %"): v for s, v in form.miou.items()}
        for name, scorers in form.auprc.items():
            scorer = next((s for s in ("void", "msp") if s in scorers), None)
            if scorer is not None:
                figures[name, f"AuPRC % of {scorer}"] = scorers[scorer]
        for (name, figure), value in figures.items():
            yield Point(
                panel=(f"{name}{trial}", figure, place),
                network=form.network,
                form=form.form,
                title=f"{form.network} {form.title}, {engine}",
                ms=ms,
                percent=value,
                estimated=False,
                range_ms=None,
                matched=document.file,
            )


def front(found: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both, from quick to slow; measured ones alone, if any are."""
    best: list[Point] = []
    measured = [p for p in found if not p.estimated]
    for point in sorted(measured or found, key=lambda p: (p.ms, -p.percent)):
        if not best or point.percent > best[-1].percent:
            best.append(point)
    return best


def pareto_section(found: Sequence[Point], *, judged: bool, timed: bool) -> Html:
    """A chart per data set, protocol, figure and device."""
    if not found:
        lacks = "Latencies and accuracies are there, but of no network in the same form and size. "
        if not (judged and timed):
            lacks = "Nothing here. "
        return paragraph(
            lacks,
            "It takes both ",
            tag("code", "edgeseg profile NETWORK --json > profile.json"),
            " and ",
            tag(
                "code", "edgeseg eval NETWORK --data DIR --dataset anomaly:NAME --json > eval.json"
            ),
            " of the same networks.",
            class_="none",
        )
    panels = dict.fromkeys(p.panel for p in found)
    # A single network has nothing to be compared with, unless that is all there is.
    several = [p for p in panels if len({(q.network, q.form) for q in found if q.panel == p}) > 1]
    drawn = (several or list(panels))[:_MAX_CHARTS]
    left = len(panels) - len(drawn)
    rows = [
        [
            p.title,
            p.panel[2],
            _kind(p),
            p.panel[0],
            p.panel[1],
            number(p.ms),
            f"{p.percent:.2f}",
            p.matched,
        ]
        for p in found
    ]
    heads = ["network", "device", "kind", "data set", "figure", "p50 ms", "%", "matched"]
    return join(
        paragraph(
            "Up and left is better; on the dashed line lies what nothing else beats in both, of "
            "measured networks where there are any. "
            "Hollow marks are estimated, with their range. Where no file names the bundle, "
            "accuracy and latency are matched by network, precision and size, those of torch FX "
            "with each other alone. Anomaly sets are under protocol paper where none is named."
        ),
        tag("div", *(_panel(p, found) for p in drawn), class_="charts"),
        paragraph(
            f"{counted(left, 'more pair')} of data set and device stand in the table alone: a "
            "single network has nothing to be compared with, and the page is kept short."
        )
        if left > 0
        else "",
        details(
            f"In figures: {counted(len(found), 'point')}",
            table(
                "Accuracy against latency",
                heads,
                rows,
                left=5,
                classes=["estimated" if p.estimated else None for p in found],
            ),
        ),
    )


def _kind(point: Point) -> str:
    return "estimated" if point.estimated else "measured"


def _panel(panel: tuple[str, str, str], every: Sequence[Point]) -> Html:
    found = [p for p in every if p.panel == panel]
    forms = [p.form for p in every]
    best = front(found)
    x = Axis.around(
        "ms a frame, log scale", [v for p in found for v in (p.ms, *(p.range_ms or ()))], log=True
    )
    y = Axis.around(panel[1], [p.percent for p in found])
    y = Axis(y.label, y.low, min(max(100.0, *(p.percent for p in found)), y.high))
    marks = [
        Mark(
            p.ms,
            p.percent,
            f"{p.title}: {'estimated ' if p.estimated else ''}{number(p.ms)} ms, {p.percent:.2f}%",
            colour_of(p.network),
            shape_of(p.form, forms),
            hollow=p.estimated,
            label=f"{p.network} {p.form}",
            range_x=p.range_ms,
        )
        for p in found
    ]
    steps = []
    for near, far in zip(best, [*best[1:], None], strict=True):
        end = x.high if far is None else far.ms
        steps += [(near.ms, near.percent), (end, near.percent)]
    told = spoken(f"{p.title} {number(p.ms)} ms {p.percent:.1f}%" for p in best)
    title = f"{panel[0]} on {panel[2]}"
    key = {(p.network, p.form, p.estimated): m for p, m in zip(found, marks, strict=True)}
    return tag(
        "figure",
        tag("figcaption", title),
        chart(
            f"{panel[1]} against latency, {title}",
            f"On the front: {told}",
            x,
            y,
            lines=[Line(steps, "nothing is both quicker and better", dash="5 4")],
            marks=marks,
        ),
        legend(
            (f"{network} {form}{', estimated' if guess else ''}", mark)
            for (network, form, guess), mark in key.items()
        ),
    )


def accuracy_section(evaluations: Sequence[Evaluation]) -> Html:
    """Every figure of every evaluation, a table per data set."""
    if not evaluations:
        return no_evaluation("")
    parts = []
    for name in dict.fromkeys(_set(e) for e in evaluations if e.scored):
        parts.append(_scores_table(name, [e for e in evaluations if _set(e) == name]))
    semantic = [e for e in evaluations if e.miou is not None]
    if semantic:
        heads = ["network", "on", "data set", "mIoU %", "frames", "file"]
        rows = [
            [e.name, e.backend, _set(e), percent(e.miou), count(e.frames), e.file] for e in semantic
        ]
        parts.append(table("Segmentation", heads, rows, left=3))
    components = [(e, s) for e in evaluations for s in e.scored if s.components]
    if components:
        keys = ("siou_percent", "ppv_percent", "mean_f1_percent")
        heads = ["network", "data set", "scorer", "sIoU %", "PPV %", "mean F1 %"]
        rows = [
            [e.name, _set(e), s.called, *(percent(s.components.get(k)) for k in keys)]
            for e, s in components
        ]
        parts.append(details("Component metrics", table("Components", heads, rows, left=3)))
    return join(*parts)


def _scores_table(name: str, judged: Sequence[Evaluation]) -> Html:
    scorers = list(dict.fromkeys(s.called for e in judged for s in e.scored))
    rows = []
    for e in judged:
        found = {s.called: f"{percent(s.auprc)} / {percent(s.fpr95)}" for s in e.scored}
        cells = [e.name, e.backend, *(found.get(scorer, UNKNOWN) for scorer in scorers)]
        rows.append([*cells, count(e.frames), e.file])
    heads = ["network", "on", *scorers, "frames", "file"]
    return table(f"{name}: AuPRC / FPR95, %", heads, rows, left=2)


def _set(judged: Evaluation) -> str:
    parts = [judged.data, f"protocol {judged.protocol}"]
    parts += [f"every {judged.every:.0f}th"] if judged.every > 1 else []
    parts += [f"shard {judged.shard} only"] if judged.shard else []
    return ", ".join(parts)
