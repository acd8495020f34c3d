"""Rows of the papers' tables: what they say, where it was read, and how a row is printed.

``tools/results/paper_figures.json`` holds the rows and every figure with its source. A cell is a
tuple of percentages, a word that says why there are none, or absent: a dash.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeseg.evaluation.state import ScorerSpec
from make_readme import markdown
from reproduce_figures import CITYSCAPES, CITYSCAPES256, PUBLISHED, PUBLISHED_MIOU, SETS, SPECS

FIGURES = Path(__file__).resolve().parent / "results" / "paper_figures.json"
SAME_FILE = "same-file"
NO_WEIGHTS = "no weights"
MIOU, MIOU256 = CITYSCAPES[0], CITYSCAPES256[0]
COLUMNS = {
    MIOU: "mIoU %",
    MIOU256: "mIoU % 256x512",
    **{name: f"{name} AuPRC / FPR95 %" for name in SETS},
}

Cell = tuple[float, ...] | str
Cells = Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: a network, how it was made, and how it scores."""

    label: str
    network: str
    spec: ScorerSpec
    weights: tuple[str, ...] = ()
    """Names of the files, without suffix, that the row can be measured with."""
    bundle: str = ""
    """Name in ``--bundle NAME=FOLDER``."""
    shipped: bool = False
    """Whether the shipped weights of the network are a match."""
    how: str = ""
    """Where weights would come from."""
    missing: str = NO_WEIGHTS
    """What the cells say where there is nothing to measure the row with."""
    figures: tuple[tuple[str, Cells], ...] = ()
    """Source and what it says, of every source."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the papers."""

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A printed line: whose figures, and the cells."""

    whose: str
    cells: Cells
    source: str = ""
    empty: str = "-"
    """What stands where there is no cell."""


@dataclass(slots=True)
class Printed:
    """A table ready to print: every row with its lines."""

    table: Table
    rows: list[tuple[Row, list[Line]]] = field(default_factory=list)


def load_tables(path: Path = FIGURES) -> tuple[dict[str, dict[str, str]], list[Table]]:
    """Sources by key, and the tables."""
    document = json.loads(path.read_text(encoding="utf-8"))
    tables = [
        Table(t["id"], t["title"], tuple(_row(r) for r in t["rows"]), t.get("note", ""))
        for t in document["tables"]
    ]
    return document["sources"], tables


def _row(values: Mapping[str, Any]) -> Row:
    figures = []
    for given in values["figures"]:
        cells: dict[str, Cell] = {k: tuple(given[k]) for k in SETS if k in given}
        if "miou" in given:
            cells[MIOU] = (given["miou"],)
        figures.append((given["source"], cells))
    return Row(
        values["label"],
        values["network"],
        ScorerSpec(values["scorer"], values.get("temperature", 1.0)),
        tuple(values.get("weights", ())),
        values.get("bundle", ""),
        values.get("shipped", False),
        values.get("how", ""),
        values.get("missing", NO_WEIGHTS),
        tuple(figures),
    )


def select(tables: Sequence[Table], only: Sequence[str]) -> list[Table]:
    """The rows whose table, label or network has one of ``only`` in its name; all without any."""
    if not only:
        return list(tables)
    words = [word.lower() for word in only]
    kept = []
    for table in tables:
        rows = tuple(
            row
            for row in table.rows
            if any(
                w in text for w in words for text in (table.name, row.label.lower(), row.network)
            )
        )
        if rows:
            kept.append(Table(table.name, table.title, rows, table.note))
    return kept


def reproduced(row: Row, stem: str) -> Cells | None:
    """The figures to reproduce of a checkpoint of the data folder, or ``None`` without any."""
    name = next((name for name, spec in SPECS.items() if spec == row.spec), "")
    figures = PUBLISHED.get(stem, {}).get(name)
    if figures is None:
        return None
    miou = {key: (v,) for key, v in zip((MIOU, MIOU256), PUBLISHED_MIOU[stem], strict=True)}
    return {**miou, **dict(zip(SETS, figures, strict=True))}


def lines_of(
    row: Row, measured: Iterable[tuple[str, str, Cells]], sources: Mapping[str, Mapping[str, str]]
) -> list[Line]:
    """The lines of a row: the papers', then those of this checkout.

    Args:
        row: the row.
        measured: name of what was measured, stem of its file, cells.
        sources: of the papers' figures.
    """
    lines = [Line(sources[key]["whose"], cells, key) for key, cells in row.figures]
    found = list(measured)
    for whose, stem, cells in found:
        same = reproduced(row, stem)
        if same is not None:
            lines.append(Line(f"{sources[SAME_FILE]['whose']} as below", same, SAME_FILE))
        lines.append(Line(f"here: {whose}", cells))
    if not found:
        lines.append(Line(f"here: {row.how}" if row.how else "here", {}, empty=row.missing))
    return lines


def to_markdown(printed: Sequence[Printed], sources: Mapping[str, Mapping[str, str]]) -> str:
    """Every table, then where the figures were read."""
    used = dict.fromkeys(
        line.source for p in printed for _, lines in p.rows for line in lines if line.source
    )
    letters = {key: chr(ord("a") + i) for i, key in enumerate(used)}
    parts = []
    for p in printed:
        body = []
        for row, lines in p.rows:
            for i, line in enumerate(lines):
                mark = f" [{letters[line.source]}]" if line.source else ""
                cells = (_text(line.cells.get(key, line.empty)) for key in COLUMNS)
                body.append((row.label if i == 0 else "", line.whose + mark, *cells))
        parts.append(f"## {p.table.title}")
        parts.append(markdown(("row", "whose", *COLUMNS.values()), body, (0, 1)))
        if p.table.note:
            parts.append(p.table.note)
    parts.append("\n".join(f"- [{letters[key]}] {_source(sources[key])}" for key in used))
    return "\n\n".join(part for part in parts if part)


def to_document(
    printed: Sequence[Printed], sources: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The same as JSON types; a cell without figures is ``null`` or says why."""
    tables = []
    for p in printed:
        rows = []
        for row, lines in p.rows:
            said = [
                {
                    "whose": line.whose,
                    "source": line.source or None,
                    "cells": {k: line.cells.get(k, _absent(line)) for k in COLUMNS},
                }
                for line in lines
            ]
            rows.append(
                {
                    "label": row.label,
                    "network": row.network,
                    "scorer": row.spec.name,
                    "temperature": row.spec.temperature,
                    "lines": said,
                }
            )
        tables.append({"id": p.table.name, "title": p.table.title, "rows": rows})
    return {"schema": "edgeseg.paper-tables/1", "sources": dict(sources), "tables": tables}


def _absent(line: Line) -> str | None:
    return None if line.empty == "-" else line.empty


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else " / ".join(f"{value:.2f}" for value in cell)


def _source(source: Mapping[str, str]) -> str:
    where = f"`{source['path']}`"
    if source["repository"]:
        where += f" of {source['repository']} at {source['commit'][:12]}"
    return f"{source['whose']}: {where}; {source['what']}"
