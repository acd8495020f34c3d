"""The figures of an evaluation as a JSON document and as a table."""

from typing import Any, Final

from edgeseg.evaluation.curves import curve_document
from edgeseg.evaluation.state import EvaluationState
from edgeseg.taxonomy import CLASSES

__all__ = ["SCHEMA", "document", "print_table"]

SCHEMA: Final = "edgeseg.eval/1"


def document(state: EvaluationState, *, curves: bool = False) -> dict[str, Any]:
    """What ``edgeseg eval --json`` prints: JSON types, percentages in full precision.

    Args:
        state: of the evaluation.
        curves: whether each scorer gets its ``curve``.
    """
    identity = state.identity
    results = state.results()
    if curves:
        for row, metric in zip(results, state.metrics, strict=True):
            row["curve"] = curve_document(metric.curve())
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "network": identity.network,
        "precision": identity.precision,
        "backend": identity.backend,
        "dataset": identity.dataset,
        "protocol": identity.protocol,
        "frames": state.frames,
        "results": results,
        "miou_percent": state.miou_percent(),
        "frames_left_out": state.frames_left_out,
        "size": f"{identity.height}x{identity.width}",
        "resize": identity.resize,
        "every": identity.every,
        "score_dtype": identity.score_dtype,
        "artefact": identity.artefact,
    }
    if identity.split:
        content["split"] = identity.split
    if identity.kind == "semantic":
        content["iou_percent"] = {
            name: None if iou is None else 100.0 * iou
            for name, iou in zip(CLASSES, state.confusion.iou(), strict=True)
        }
    if state.missing_shard is not None:
        content["shard"] = f"{state.shards[0]}/{state.num_shards}"
    return content


def print_table(document: dict[str, Any]) -> None:
    """Print a :func:`document` for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{document['network']} {document['precision']} on {document['backend']}, "
        f"{document['dataset']}, protocol {document['protocol']}, {document['frames']} frames at "
        f"{document['size']}"
        + (f", split {document['split']}" if document.get("split", "val") != "val" else "")
        + (f", shard {document['shard']}" if "shard" in document else "")
    )
    if document["results"]:
        components = "components" in document["results"][0]
        table = Table()
        heads = ["T", "AuPRC %", "FPR95 %"]
        heads += ["sIoU %", "PPV %", "mean F1 %"] if components else []
        table.add_column("scorer")
        for head in heads:
            table.add_column(head, justify="right")
        for row in document["results"]:
            values = [row["auprc_percent"], row["fpr95_percent"]]
            if components:
                keys = ("siou_percent", "ppv_percent", "mean_f1_percent")
                values += [row["components"][key] for key in keys]
            table.add_row(row["scorer"], f"{row['temperature']:g}", *map(_cell, values))
        console.print(table)
    if "iou_percent" in document:
        table = Table()
        table.add_column("class")
        table.add_column("IoU %", justify="right")
        for name, value in document["iou_percent"].items():
            table.add_row(name, _cell(value))
        table.add_section()
        table.add_row("mean over the classes that occur", _cell(document["miou_percent"]))
        console.print(table)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
