"""Tables of the shipped weights' figures, for README.md and the model cards.

The figures: ``tools/results/zoo.json``, from ``tools/measure_zoo.py``.
"""

from collections.abc import Callable, Iterable
from typing import Any

from edgeseg.taxonomy import CLASSES

SETS = ("RoadAnomaly21", "RoadObsticle21", "fs_static")
MIOU_SETS = {"cityscapes256": "256x256 val, every 5th", "cityscapes": "5 sharp val frames"}
SCORERS = {
    "void": "void",
    "msp": "MSP",
    "maxlogit": "MaxLogit",
    "entropy": "max entropy",
    "energy": "energy",
}
Row = dict[str, Any]
Table = Callable[[Iterable[str], Iterable[Iterable[str]], Iterable[int]], str]


def zoo_tables(rows: list[Row], table: Table) -> str:
    """Cityscapes and anomaly figures of all networks, ours beside the published."""
    return f"{miou_table(rows, table)}\n\n{anomaly_table(rows, table)}"


def card_tables(rows: list[Row], network: str, table: Table) -> str:
    """The same of one network, and the IoU of every class."""
    own = [row for row in rows if row["network"] == network]
    if not own:
        return "Not measured yet."
    parts = [miou_table(own, table), anomaly_table(own, table)]
    for row in own:
        if row["weights"] == "edgeseg":
            parts.append(_classes(row))
    return "\n\n".join(parts)


def miou_table(rows: list[Row], table: Table) -> str:
    sizes = list(rows[0]["miou"]["cityscapes"])
    header = ["mIoU %", "weights"]
    header += [f"{title}, {size}" for title in MIOU_SETS.values() for size in sizes]
    body = []
    for row in rows:
        cells = [row["network"], row["weights"]]
        for name in MIOU_SETS:
            values = [row["miou"][name][size]["miou_percent"] for size in sizes]
            best = max(values)
            cells += [f"**{v:.1f}**" if v == best else f"{v:.1f}" for v in values]
        body.append(cells)
    return table(header, body, (0, 1))


def anomaly_table(rows: list[Row], table: Table) -> str:
    body = []
    for row in rows:
        results = [{r["scorer"]: r for r in row["anomaly"][name]} for name in SETS]
        for scorer, title in SCORERS.items():
            cells = [r.get(scorer) for r in results]
            if all(cells):
                figures = [
                    f"{c['auprc_percent']:.2f} / {c['fpr95_percent']:.2f}" for c in cells if c
                ]
                body.append([row["network"], row["weights"], title, *figures])
    return table(["AuPRC / FPR95 %", "weights", "scorer", *SETS], body, (0, 1, 2))


def _classes(row: Row) -> str:
    """One line: where it sees what, at 256x512."""
    iou = row["miou"]["cityscapes256"]["256x512"]["iou_percent"]
    pairs = sorted(
        ((v, name) for v, name in zip(iou, CLASSES, strict=True) if v is not None), reverse=True
    )
    text = ", ".join(f"{name} {value:.0f}" for value, name in pairs)
    return f"IoU by class on the 256x256 set at 256x512: {text}."
