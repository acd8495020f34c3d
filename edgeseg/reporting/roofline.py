"""Where the time goes: layers by arithmetic intensity, under the roof of their device.

Williams, Waterman and Patterson 2009, "Roofline".
"""

from collections.abc import Sequence
from typing import Final

from edgeseg.errors import EdgesegError
from edgeseg.profiling.devices import device_names, load_device
from edgeseg.reporting.charts import Axis, Line, Mark, chart, legend
from edgeseg.reporting.documents import Layer, Peaks, Profile, ProfileRow
from edgeseg.reporting.markup import (
    UNKNOWN,
    Html,
    counted,
    details,
    join,
    number,
    paragraph,
    table,
    tag,
)

__all__ = ["roofline_section"]

_MAX_CHARTS: Final = 8
_BOUNDS: Final = {"compute": (0, "circle"), "memory": (1, "square"), "launch": (3, "up")}
_OTHER: Final = (4, "diamond")
_BY: Final = {
    "compute": "bound by arithmetic",
    "memory": "bound by memory",
    "launch": "bound by launches",
    "": "in the head",
}
_WHOLE: Final = (5, "hexagon")


def roofline_section(profiles: Sequence[Profile]) -> Html:
    """A roofline per network whose document has layers."""
    rows = [row for profile in profiles for row in profile.rows if row.layers]
    if not rows:
        return paragraph(
            "Nothing here. ",
            tag("code", "edgeseg profile --device jetson --layers --json > layers.json"),
            " writes what every layer computes and moves, and how long it should take.",
            class_="none",
        )
    # A row without times or peaks has only a table, and stands at the end.
    rows.sort(key=lambda r: all(_mark(layer, _peaks(r), r) is None for layer in r.layers))
    left = len(rows) - _MAX_CHARTS
    return join(
        paragraph(
            "Operations are two per multiply-accumulate, and one for everything else. Left of the "
            "bend memory is the limit, right of it the arithmetic. Times of single layers are "
            "always estimated."
        ),
        tag("div", *(_figure(row) for row in rows[:_MAX_CHARTS]), class_="charts"),
        paragraph(f"{counted(left, 'more network')} left out.") if left > 0 else "",
    )


def _figure(row: ProfileRow) -> Html:
    peaks = _peaks(row)
    title = f"{row.name} on {row.place}"
    drawn = [(la, m) for la in row.layers if (m := _mark(la, peaks, row)) is not None]
    marks = [mark for _, mark in drawn]
    whole = _whole(row)
    share = _shares(row.layers)
    tabled = details(
        f"In figures: {counted(len(row.layers), 'layer')}", _layers_table(title, row.layers)
    )
    if not marks:
        note = f"No roof is known for {row.place} and no layer has a time, so nothing is drawn."
        return tag("figure", tag("figcaption", title), paragraph(note, class_="note"), tabled)
    shown = [*marks, *([whole] if whole else [])]
    tera = _roofs(row, peaks)
    bends = [1e3 * t / peaks.bandwidth_gbs for _, t in tera] if peaks else []
    x = Axis.around("operations per byte moved", [m.x for m in shown] + bends, log=True)
    y = Axis.around(
        "10⁹ operations a second", [m.y for m in shown] + [1e3 * t for _, t in tera], log=True
    )
    lines = _lines(peaks, tera, x, y) if peaks else []
    picture = chart(
        title,
        f"{counted(len(marks), 'layer')}. {share}",
        x,
        y,
        lines=lines,
        marks=shown,
        height=300,
    )
    key = list({_told_of(layer): mark for layer, mark in drawn}.items())
    if whole is not None:
        key.append(("the whole network, " + ("estimated" if whole.hollow else "measured"), whole))
    roof = "" if peaks else f" No roof is drawn: the peaks of {row.place} are not in the file."
    return tag(
        "figure",
        tag("figcaption", title),
        picture,
        legend(key),
        paragraph(f"{share}{roof}", class_="note"),
        tabled,
    )


def _mark(layer: Layer, peaks: Peaks | None, row: ProfileRow) -> Mark | None:
    """At the speed that its estimated time gives; without one at its roof."""
    if layer.operations <= 0 or layer.moved_bytes <= 0:
        return None
    intensity = layer.operations / layer.moved_bytes
    colour, shape = _BOUNDS.get(layer.bound, _OTHER)
    what = " ".join(part for part in (layer.op, layer.shape) if part)
    told = f"{layer.name} ({what}): {number(intensity)} operations per byte"
    if layer.ms is not None:
        told += f", estimated {number(layer.ms)} ms"
        told += f", bound by {layer.bound}" if layer.bound else ""
        speed = layer.operations / layer.ms / 1e6
    elif peaks is not None and peaks.tera:
        tera = _peak_of(_computed_in(layer, row), peaks)
        speed = min(1e3 * tera, peaks.bandwidth_gbs * intensity)
        told += ", at the roof; its time is not known"
    else:
        return None
    return Mark(intensity, speed, told, colour, shape, hollow=True, small=True)


def _computed_in(layer: Layer, row: ProfileRow) -> str:
    """What an INT8 network does not compute in integers it computes in the engine's float."""
    if layer.integer or row.precision != "int8":
        return row.precision
    return "float16" if row.backend == "tensorrt" else "float32"


def _peak_of(precision: str, peaks: Peaks) -> float:
    """What is missing runs in the next wider one."""
    order = ("int8", "float16", "float32")
    wanted = order[order.index(precision) :] if precision in order else ("float32",)
    return next((peaks.tera[p] for p in wanted if p in peaks.tera), max(peaks.tera.values()))


def _whole(row: ProfileRow) -> Mark | None:
    operations = sum(layer.operations for layer in row.layers)
    moved = sum(layer.moved_bytes for layer in row.layers)
    if operations <= 0 or moved <= 0:
        return None
    ms = row.latency["p50"]
    kind = "estimated" if row.estimated else "measured"
    told = f"{row.name}: {kind} {number(ms)} ms, {number(operations / 1e9)} G operations"
    colour, shape = _WHOLE
    return Mark(
        operations / moved, operations / ms / 1e6, told, colour, shape, row.estimated, label="all"
    )


def _told_of(layer: Layer) -> str:
    if layer.ms is None:
        return "layer, placed at its roof"
    return f"layer, estimated, bound by {layer.bound}" if layer.bound else "head, estimated"


def _roofs(row: ProfileRow, peaks: Peaks | None) -> list[tuple[str, float]]:
    """Of the precisions that its layers run in."""
    if peaks is None:
        return []
    used = {_computed_in(layer, row) for layer in row.layers}
    return [(p, tera) for p, tera in peaks.tera.items() if p in used]


def _lines(peaks: Peaks, tera: Sequence[tuple[str, float]], x: Axis, y: Axis) -> list[Line]:
    lines = []
    highest = max((1e3 * t for _, t in tera), default=y.high)
    start = max(x.low, y.low / peaks.bandwidth_gbs)
    end = min(x.high, highest / peaks.bandwidth_gbs)
    if start < end:
        slope = [(v, peaks.bandwidth_gbs * v) for v in (start, end)]
        lines.append(Line(slope, f"{peaks.bandwidth_gbs:g} GB/s"))
    for name, value in tera:
        bend = max(x.low, 1e3 * value / peaks.bandwidth_gbs)
        if bend < x.high:
            told = f"{name}: {value:g} T operations a second"
            lines.append(Line([(bend, 1e3 * value), (x.high, 1e3 * value)], told, dash="6 3"))
    return lines


def _shares(layers: Sequence[Layer]) -> str:
    total = sum(layer.ms for layer in layers if layer.ms is not None)
    if not total:
        return "Times of its layers are not known."
    found: dict[str, float] = {}
    for layer in layers:
        if layer.ms is not None:
            found[layer.bound] = found.get(layer.bound, 0.0) + layer.ms
    parts = sorted(found.items(), key=lambda item: -item[1])
    text = ", ".join(f"{_share(ms / total)} {_BY.get(bound, 'elsewhere')}" for bound, ms in parts)
    return f"Of the estimated {number(total)} ms of its layers: {text}."


def _share(value: float) -> str:
    return f"{100 * value:.0f}%" if value >= 0.01 else "under 1%"


def _layers_table(title: str, layers: Sequence[Layer]) -> Html:
    heads = ["layer", "operator", "shape", "M operations", "MB moved", "op/byte"]
    heads += ["estimated ms", "bound by"]
    rows = [
        [
            layer.name,
            layer.op,
            layer.shape,
            number(layer.operations / 1e6),
            number(layer.moved_bytes / 1e6),
            number(layer.operations / layer.moved_bytes if layer.moved_bytes else None),
            number(layer.ms),
            layer.bound or UNKNOWN,
        ]
        for layer in layers
    ]
    return table(f"Layers of {title}", heads, rows, left=3)


def _peaks(row: ProfileRow) -> Peaks | None:
    """Of the document, else of the shipped profile; a processor's depend on the machine."""
    if row.peaks is not None or row.device == "cpu" or row.device not in device_names():
        return row.peaks
    try:
        hardware = load_device(row.device).in_mode(row.mode or None).hardware
    except EdgesegError:
        return None
    tera = {
        "int8": hardware.int8_tops,
        "float16": hardware.float16_tflops,
        "float32": hardware.float32_tflops,
    }
    return Peaks(hardware.bandwidth_gbs, {k: v for k, v in tera.items() if v})
