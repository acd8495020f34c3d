"""What the accuracy gate found, as a document, as tables and as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from edgeseg.compression.gate import Figure
from edgeseg.compression.gated import Gated, Measured, Outcome
from edgeseg.compression.label_free import PERCENTILE, ScoreChange
from edgeseg.compression.noise import noise_equivalent
from edgeseg.compression.sensitivity import GroupCost

__all__ = ["GATE", "SCHEMA", "document_of", "markdown", "print_gate", "summary_of"]

SCHEMA: Final = "edgeseg.gate/1"
GATE: Final = "gate.json"
"""Name of the document in a bundle."""

_NAMES: Final = {"auprc_percent": "AuPRC", "fpr95_percent": "FPR95", "miou_percent": "mIoU"}
_FILE_WIDTH: Final = 130

Key = tuple[str, str | None, str]


def document_of(gated: Gated) -> dict[str, Any]:
    """The whole report: JSON types, percentages and milliseconds in full precision."""
    measured = gated.measured
    options = measured.options
    floating, whole, final = measured.times_ms
    return {
        "schema": SCHEMA,
        "max_drop_points": options.max_drop,
        "max_noise_grey_levels": options.max_noise,
        "max_give_back_percent": options.max_give_back,
        "engine": {
            key: measured.engine[key]
            for key in ("backend", "engine_version", "threads", "compute_precision")
            if key in measured.engine
        },
        "data": _data(measured.judged),
        "figures": _figures(measured.judged),
        "held_out_data": _data(measured.held_out),
        "held_out": _figures(measured.held_out),
        "label_free": _label_free(measured),
        "groups": [_group(c, measured) for c in measured.costs],
        "kept_float": [g.name for g in measured.keep],
        "compute_precision": measured.compute_precision,
        "body_ms": {"float32": floating, "int8": whole, "bundle": final},
        "given_back_percent": measured.given_back_percent,
        "gate_looks": measured.looks,
        "recovery": None if gated.recovery is None else gated.recovery.document(),
    }


def summary_of(gated: Gated) -> dict[str, Any]:
    """What stands in ``bundle.json``: figures before and after, and what it took; the rest is in
    the report.
    """
    document = document_of(gated)
    keys = ["max_drop_points", "engine", "data", "figures", "held_out_data", "held_out"]
    keys += ["kept_float", "compute_precision", "body_ms", "given_back_percent", "recovery"]
    return {"report": GATE, **{key: document[key] for key in keys}}


def markdown(document: dict[str, Any], title: str) -> str:
    """The document as tables for people, ``title`` above them."""
    lines = [f"# {title}", "", _sentence(document)]
    for head, table in _tables(document).items():
        lines += ["", f"## {head}", "", *_markdown_table(*table)]
    return "\n".join(lines) + "\n"


def print_gate(document: dict[str, Any]) -> None:
    """Print the document for people."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_FILE_WIDTH)
    console.print(_sentence(document))
    for title, (heads, rows) in _tables(document).items():
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for index, head in enumerate(heads):
            table.add_column(head, justify="right" if index else "left", no_wrap=not index)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _tables(document: dict[str, Any]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Heads and rows by title, those that have any."""
    tables = {
        "Gate data": _figure_rows(document["figures"]),
        "Held out: measured after the search, no part of the decision": _figure_rows(
            document["held_out"]
        ),
        "Without labels: change of scores on unlabelled frames": _label_free_rows(
            document["label_free"]
        ),
        "What INT8 costs and buys": _group_rows(document["groups"]),
    }
    return {title: table for title, table in tables.items() if table[1]}


def _data(outcome: Outcome | None) -> list[dict[str, Any]]:
    return [{"dataset": k, "frames": n} for k, n in outcome.frames.items()] if outcome else []


def _figures(outcome: Outcome | None) -> list[dict[str, Any]]:
    if outcome is None:
        return []
    whole = {_key(f): f.after for f in outcome.whole.figures}
    rank = {name: i for i, name in enumerate(outcome.frames)}
    rows = []
    for figure in sorted(outcome.final.figures, key=lambda f: rank[f.dataset]):
        key = _key(figure)
        drops = {k: d[key] for k, d in outcome.noise_drops.items() if key in d}
        rows.append(
            {
                **_what(figure),
                "float32_percent": figure.before,
                "int8_percent": whole.get(key),
                "bundle_percent": figure.after,
                "drop_points": figure.drop,
                "noise_drop_points": {str(k): v for k, v in drops.items()},
                "noise_equivalent_grey_levels": noise_equivalent(drops, figure.drop),
            }
        )
    return rows


def _key(figure: Figure) -> Key:
    return figure.dataset, figure.scorer, figure.name


def _label_free(measured: Measured) -> dict[str, Any]:
    without, corrected = measured.bias
    limit = measured.judged.whole.limit
    return {
        "percentile": PERCENTILE,
        "frames": measured.label_free_frames,
        "int8": _change(measured.judged.whole.change, measured),
        "bundle": _change(measured.judged.final.change, measured),
        "limit": None if limit is None else limit.values,
        "noise": {str(k): c.values for k, c in measured.ladder.items()},
        "int8_without_bias_correction": _change(without, measured),
        "int8_with_bias_correction": _change(corrected, measured),
    }


def _group(cost: GroupCost, measured: Measured) -> dict[str, Any]:
    why = None
    if any(g.name == cost.group.name for g in measured.keep):
        why = "INT8 is slower here" if cost.faster is False else "holds the gate"
    alone, time = cost.alone, cost.time
    worst = None if alone is None else alone.worst_figure
    return {
        "group": cost.group.name,
        "convolutions": list(cost.group.convolutions),
        "int8_alone": None
        if alone is None
        else {
            "worst_drop_points": None if worst is None else worst.drop,
            "worst_figure": None if worst is None else _what(worst),
            **_change(alone.change, measured),
        },
        "bought_ms": None if time is None else time.difference_ms,
        "bought_at_least_ms": None if time is None else time.least_ms,
        "bought_at_most_ms": None if time is None else time.most_ms,
        "faster": cost.faster,
        "kept_float": why is not None,
        "why_float": why,
    }


def _what(figure: Figure) -> dict[str, Any]:
    return {"dataset": figure.dataset, "scorer": figure.scorer, "figure": figure.name}


def _change(change: ScoreChange, measured: Measured) -> dict[str, Any]:
    return {
        "change": change.values,
        "noise_equivalent_grey_levels": measured.noise_equivalents(change),
    }


def _sentence(document: dict[str, Any]) -> str:
    kept, groups = document["kept_float"], document["groups"]
    times, engine = document["body_ms"], document["engine"]
    what = "INT8 throughout"
    if kept:
        what = f"{len(kept)} of {len(groups)} groups in {document['compute_precision']}"
    back = document["given_back_percent"]
    given = "" if back is None or not kept else f"; {back:.0f}% of the gain given back"
    points = document["max_drop_points"]
    return (
        f"The gate holds at {points:g} {'point' if points == 1 else 'points'} with {what}. "
        f"The body takes {times['bundle']:.1f} ms on {engine['backend']} with {engine['threads']} "
        f"threads (float32 {times['float32']:.1f}, INT8 throughout {times['int8']:.1f}{given})."
    )


def _figure_rows(figures: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    heads = ["percent", "float32", "INT8", "bundle", "drop", "drop by noise +-1", "equals noise +-"]
    rows = []
    for row in figures:
        keys = ("float32_percent", "int8_percent", "bundle_percent", "drop_points")
        noise = row["noise_drop_points"]
        cells = [_called(row), *(_number(row[k]) for k in keys), _number(noise.get("1"))]
        rows.append([*cells, _levels(row["noise_equivalent_grey_levels"], noise)])
    return heads, rows


def _label_free_rows(label_free: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = list(label_free["int8"]["change"])
    heads = [f"percentile {label_free['percentile']:g}, logits"]
    for name in names:
        heads += [name.replace("_", " "), "equals noise +-"]
    rows = []
    for label, key in (
        ("INT8 throughout", "int8"),
        ("the same, biases corrected", "int8_with_bias_correction"),
        ("the same, biases as they were", "int8_without_bias_correction"),
        ("bundle", "bundle"),
    ):
        entry = label_free[key]
        if key != "int8" and key != "bundle" and entry == label_free["int8"]:
            continue
        cells = [label]
        for name in names:
            cells += [_number(entry["change"][name], 3)]
            cells += [_levels(entry["noise_equivalent_grey_levels"][name], label_free["noise"])]
        rows.append(cells)
    if label_free["limit"] is not None:
        cells = ["limit"]
        for name in names:
            cells += [_number(label_free["limit"][name], 3), ""]
        rows.append(cells)
    return heads, rows


def _group_rows(groups: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    heads = ["group", "INT8 alone costs, points", "of", "equals noise +-"]
    heads += ["INT8 buys, ms", "99% sure", "kept in float"]
    rows = []
    for row in groups:
        alone = row["int8_alone"]
        cells = [row["group"], "-", "", "-"]
        if alone is not None:
            what = alone["worst_figure"]
            levels = list(alone["noise_equivalent_grey_levels"].values())
            cells[1] = _number(alone["worst_drop_points"])
            cells[2] = "" if what is None else _called(what)
            cells[3] = "more" if None in levels else _number(max(levels))
        sure = "-"
        if row["bought_ms"] is not None:
            sure = f"{_number(row['bought_at_least_ms'])} .. {_number(row['bought_at_most_ms'])}"
        rows.append([*cells, _number(row["bought_ms"]), sure, row["why_float"] or ""])
    return heads, rows


def _called(what: dict[str, Any]) -> str:
    parts = (what["dataset"], what["scorer"], _NAMES[what["figure"]])
    return " ".join(p for p in parts if p)


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("| --- |" + " ---: |" * (len(heads) - 1))
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _levels(value: float | None, measured: Iterable[str]) -> str:
    """A noise equivalent, or that it is beyond the levels that were measured."""
    return f"> {max(map(int, measured))}" if value is None else f"{value:.2f}"
