"""Reports of the accuracy gate and compression tables: records, and their part of the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgeseg.reporting.fields import Fields, MalformedError
from edgeseg.reporting.markup import (
    UNKNOWN,
    Html,
    count,
    details,
    join,
    number,
    paragraph,
    percent,
    table,
    tag,
)

__all__ = [
    "Compression",
    "Form",
    "Gate",
    "GateFigure",
    "compression_section",
    "read_compression",
    "read_gate",
]

_FIGURES: Final = {"auprc_percent": "AuPRC", "fpr95_percent": "FPR95", "miou_percent": "mIoU"}


@dataclass(frozen=True, slots=True)
class GateFigure:
    """A figure before and after; percent and points."""

    name: str
    floating: float | None
    int8: float | None
    bundle: float | None
    drop: float | None
    held_out: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """A document of the accuracy gate."""

    file: str
    max_drop: float | None
    engine: str
    kept: list[str]
    groups: int
    precision: str
    times_ms: dict[str, float]
    figures: list[GateFigure]


@dataclass(frozen=True, slots=True)
class Form:
    """A network in one form; ``speed`` in milliseconds by engine, accuracy in percent."""

    network: str
    form: str
    title: str
    problem: str
    params: float | None
    macs: float | None
    bytes: float | None
    speed: dict[str, float]
    miou: dict[str, float]
    """By data set."""
    auprc: dict[str, dict[str, float]]
    """By data set and scorer."""
    fpr95: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Compression:
    """A compression table."""

    file: str
    machine: str
    size: str
    every: float
    sets: list[str]
    forms: list[Form]


def read_gate(document: Mapping[str, Any], file: str) -> Gate:
    """An ``edgeseg.gate/1``; MalformedError where it is none."""
    whole = Fields(document)
    engine = whole.object("engine")
    threads = None if engine is None else engine.optional("threads")
    figures = [_gate_figure(f, held) for held in (False, True) for f in _figures_of(whole, held)]
    return Gate(
        file=file,
        max_drop=whole.optional("max_drop_points"),
        engine=""
        if engine is None
        else engine.text("backend", "") + ("" if threads is None else f", {threads:.0f} threads"),
        kept=whole.texts("kept_float", 500),
        groups=len(whole.objects("groups")),
        precision=whole.text("compute_precision", ""),
        times_ms=whole.figures("body_ms"),
        figures=figures,
    )


def _figures_of(whole: Fields, held_out: bool) -> list[Fields]:
    return whole.objects("held_out" if held_out else "figures")


def _gate_figure(figure: Fields, held_out: bool) -> GateFigure:
    kind = figure.text("figure")
    parts = (figure.text("dataset"), figure.text("scorer", ""), _FIGURES.get(kind, kind))
    return GateFigure(
        name=" ".join(p for p in parts if p),
        floating=figure.optional("float32_percent"),
        int8=figure.optional("int8_percent"),
        bundle=figure.optional("bundle_percent"),
        drop=figure.optional("drop_points"),
        held_out=held_out,
    )


def read_compression(document: Mapping[str, Any], file: str) -> Compression:
    """An ``edgeseg.compression-table/1``; MalformedError where it is none."""
    whole = Fields(document)
    machine, settings = whole.object("machine"), whole.object("settings")
    forms = [
        _form(row, network)
        for network, entry in whole.entries("networks")
        for row in entry.objects("rows")
    ]
    if not forms:
        raise MalformedError("the document has no rows")
    return Compression(
        file=file,
        machine="" if machine is None else machine.text("cpu", ""),
        size="" if settings is None else settings.text("size", ""),
        every=whole.optional("every") or 1,
        sets=whole.texts("sets"),
        forms=forms,
    )


def _form(row: Fields, network: str) -> Form:
    counts = row.object("counts") or Fields({})
    speed = {e: ms for e, f in row.entries("speed") if (ms := f.optional("ms")) and ms > 0}
    miou: dict[str, float] = {}
    pairs: dict[str, dict[str, list[float | None]]] = {}
    for dataset, entry in row.entries("accuracy"):
        value = entry.optional("miou_percent")
        if value is not None:
            miou[dataset] = value
        inner = entry.object("scorers")
        if inner is not None:
            pairs[dataset] = {
                scorer: [*inner.numbers(scorer, 2), None, None] for scorer in inner.names()
            }
    return Form(
        network=network,
        form=row.text("form"),
        title=row.text("title", row.text("form")),
        problem=row.text("problem", ""),
        params=counts.optional("params"),
        macs=counts.optional("macs"),
        bytes=counts.optional("bytes"),
        speed=speed,
        miou=miou,
        auprc=_pick(pairs, 0),
        fpr95=_pick(pairs, 1),
    )


def _pick(
    pairs: Mapping[str, Mapping[str, list[float | None]]], index: int
) -> dict[str, dict[str, float]]:
    return {
        dataset: {s: v for s, values in scorers.items() if (v := values[index]) is not None}
        for dataset, scorers in pairs.items()
    }


def compression_section(gates: list[Gate], tables: list[Compression]) -> Html:
    """What INT8 and pruning cost in accuracy."""
    parts = [_gate(g) for g in gates] + [_table(c) for c in tables]
    if not parts:
        return paragraph(
            "Nothing here. ",
            tag("code", "edgeseg export NETWORK --int8 --max-drop 1 --gate-data DIR"),
            " writes gate.json into the bundle; ",
            tag("code", "tools/compression_table.py --json FILE"),
            " measures every network in every compressed form.",
            class_="none",
        )
    return join(*parts)


def _gate(gate: Gate) -> Html:
    kept = "INT8 throughout"
    if gate.kept:
        kept = f"{len(gate.kept)} of {gate.groups} groups in {gate.precision or 'float'}"
    limit = "" if gate.max_drop is None else f"Limit {gate.max_drop:g} points, "
    times = "; ".join(f"{k} {v:.1f} ms" for k, v in gate.times_ms.items())
    rows = [
        [
            f.name,
            "reported only" if f.held_out else "decides",
            *(percent(v) for v in (f.floating, f.int8, f.bundle)),
            UNKNOWN if f.drop is None else f"{f.drop:+.2f}".replace("-0.00", "+0.00"),
        ]
        for f in gate.figures
    ]
    heads = ["figure", "role", "float32 %", "INT8 throughout %", "bundle %", "loss, points"]
    return join(
        tag("h3", f"Accuracy gate: {gate.file}"),
        paragraph(
            f"{limit}{kept}. Body on {gate.engine or 'an unnamed engine'}: {times or UNKNOWN}."
        ),
        table(f"Accuracy before and after, {gate.file}", heads, rows, left=2) if rows else "",
        details("Groups kept in float", paragraph(", ".join(gate.kept))) if gate.kept else "",
    )


def _table(found: Compression) -> Html:
    engines = list(dict.fromkeys(e for f in found.forms for e in f.speed))
    heads = ["network", "form", *(f"{s} %" for s in found.sets), *(f"{e} ms" for e in engines)]
    rows = []
    for form in found.forms:
        cells = [form.network, f"{form.title}: {form.problem}" if form.problem else form.title]
        cells += [_accuracy(form, s) for s in found.sets]
        cells += [number(form.speed.get(e)) for e in engines]
        macs = None if form.macs is None else form.macs / 1e9
        size = None if form.bytes is None else form.bytes / 1e6
        rows.append([*cells, number(macs), count(form.params), number(size)])
    trial = f" A trial on every {found.every:.0f}th frame." if found.every > 1 else ""
    return join(
        tag("h3", f"Compression table: {found.file}"),
        paragraph(
            f"Measured on {found.machine or 'an unnamed machine'}, frames of "
            f"{found.size or 'unknown size'}.{trial} Sets: mIoU, or AuPRC / FPR95 of void, else of "
            "MSP."
        ),
        table(
            f"Networks and forms, {found.file}",
            [*heads, "GMACs", "parameters", "MB"],
            rows,
            left=2,
        ),
    )


def _accuracy(form: Form, dataset: str) -> str:
    if dataset in form.miou:
        return percent(form.miou[dataset])
    scorers = form.auprc.get(dataset, {})
    scorer = next((s for s in ("void", "msp") if s in scorers), None)
    if scorer is None:
        return UNKNOWN
    return f"{percent(scorers[scorer])} / {percent(form.fpr95[dataset].get(scorer))}"
