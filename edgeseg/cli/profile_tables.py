"""Tables of ``edgeseg profile`` for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from edgeseg.profiling.budgets import Finding

__all__ = ["device_document", "device_table", "finding_tables", "print_document"]

Row = dict[str, Any]
_NAME_WIDTH: Final = 14


def print_document(document: dict[str, Any], console: Console) -> None:
    """The whole document, a few tables and the sentences below them."""
    console.print(_cost_table(document["results"]))
    console.print(_latency_table(document))
    for row in document["results"]:
        if "layers" in row:
            console.print(_layer_table(row))
    for line in _remarks(document):
        # What engines, files and hosts call things is no markup.
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _cost_table(rows: Sequence[Row]) -> Table:
    table = _table(f"What a frame costs{_shared(rows, 'size')}")
    table.add_column("network", no_wrap=True)
    for title in ("parameters", "MACs", "other ops", "peak", "moved", "file"):
        table.add_column(title, justify="right")
    for row in rows:
        counts = row["counts"]
        table.add_row(
            _name(row, rows),
            f"{row['params']:,}",
            f"{row['macs'] / 1e9:.2f} G",
            f"{(counts['flops'] - 2 * counts['macs_float']) / 1e9:.2f} G",
            f"{counts['activation_peak_bytes'] / 1e6:.1f} MB",
            f"{(counts['read_bytes'] + counts['written_bytes']) / 1e6:.0f} MB",
            f"{row['file_bytes'] / 1e6:.2f} MB" if row["file_bytes"] else "-",
        )
    return table


def _latency_table(document: dict[str, Any]) -> Table:
    rows = document["results"]
    mode = f", {document['mode']}" if document["mode"] else ""
    title = f"Estimated for {document['title']}{mode}"
    if document["kind"] == "measured":
        # An address in brackets is no markup.
        where = escape(document["host"]["name"]) if "host" in document else "this machine"
        title = f"Measured on {where}"
    table = _table(f"{title}{_shared(rows, 'backend')}{_shared(rows, 'scorer')}, ms a frame")
    table.add_column("network", no_wrap=True)
    measured = document["kind"] == "measured"
    for name in ("p50", "p90", "p99", "max") if measured else ("estimate", "range"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("frames/s", "budget"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in rows:
        table.add_row(_name(row, rows), *_latency_cells(row, measured=measured))
    return table


def _latency_cells(row: Row, *, measured: bool) -> list[str]:
    latency, budget = row["latency_ms"], f"{row['budget_ms']:g}"
    style = "green" if row["within_budget"] else "red"
    kept = "within" if row["within_budget"] else "over"
    verdict = f"[{style}]{kept}[/{style}]"
    if row["kind"] == "estimated":
        low, high = row["range_ms"]
        figures = [f"{latency['p50']:.1f}", f"{low:.1f} to {high:.1f}"]
        if measured:
            figures = [figures[0], "", f"≤{high:.1f}", ""]
        verdict = f"[cyan]estimated:[/cyan] {verdict}"
        return [*figures, f"{row['fps']:.0f}", budget, verdict]
    if row["verdict"].startswith("throttled"):
        # A number that should not be trusted is not shown; --json has it.
        return ["-", "-", "-", "-", "-", budget, f"[red]{row['verdict']}[/red]"]
    figures = [f"{latency[k]:.1f}" for k in ("p50", "p90", "p99", "max")]
    if row["verdict"] != "comparable":
        verdict = f"[yellow]{row['verdict']}[/yellow], {verdict}"
    return [*figures, f"{row['fps']:.1f}", budget, verdict]


def _name(row: Row, rows: Sequence[Row]) -> str:
    """Network and precision, and what else parts the rows."""
    parts = [row["network"], row["precision"]]
    parts += [str(row[k]) for k in ("size", "scorer") if not _shared(rows, k)]
    return " ".join(parts)


def _shared(rows: Sequence[Row], key: str) -> str:
    """What all rows have in common goes into the title."""
    values = {str(row[key]) for row in rows}
    return f", {values.pop()}" if len(values) == 1 else ""


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )


def _remarks(document: dict[str, Any]) -> list[str]:
    lines = []
    for row in document["results"]:
        name = f"{row['network']} {row['precision']}"
        if row["reasons"]:
            lines.append(f"{name}: {'; '.join(row['reasons'])}")
        if row["kind"] == "measured":
            lines.append(f"{name}: {_details(row)}")
        if row["precision"] == "int8" and row["macs"] > row["macs_network"]:
            lines.append(
                f"{name}: the published graph has {row['macs_network'] / 1e9:.2f} GMAC; INT8 "
                "runs poolings and concatenations as convolutions"
            )
        if row.get("ratio"):
            lines.append(f"{name}: {row['ratio']['median']:.3f} x {row['ratio']['reference']}")
    if document["kind"] == "estimated":
        lines.append(
            "Estimated by a roofline over the layers, not measured. The true figure is expected "
            "within the range; its upper end stands for the tail and is held against the budget."
        )
        if document["unconfirmed"]:
            names = ", ".join(document["unconfirmed"])
            lines.append(f"Not confirmed by a primary source: {names}.")
        if document["estimate_only"]:
            lines.append(f"edgeseg does not run on this device: {document['software_note']}.")
    return lines


def _details(row: Row) -> str:
    parts = [f"{row['threads']} threads, {row['frames']} frames, jitter {row['jitter_ms']:.2f} ms"]
    parts += [f"{k.replace('_', ' ')} {v:.1f} ms" for k, v in row["stages_ms"].items()]
    if row["fps_pipelined"]:
        parts.append(f"{row['fps_pipelined']:.1f} frames/s with decoding beside it")
    if row["memory_bytes"]:
        parts.append(f"peak memory {row['memory_bytes'] / 1e6:.0f} MB")
    if row["energy_joule_per_frame"]:
        parts.append(f"{row['energy_joule_per_frame']:.2f} J a frame ({row['energy_source']})")
    after = {k: v for k, v in (row["after"] or {}).items() if v is not None}
    parts += [f"{k.replace('_', ' ')} {v}" for k, v in after.items() if k != "throttle_count"]
    return ", ".join(parts)


def _layer_table(row: Row) -> Table:
    table = _table(f"{row['network']} {row['precision']} {row['size']}")
    table.padding = (0, 0, 0, 1)
    timed = any("bound" in layer for layer in row["layers"])
    for title in ("layer", "shape"):
        table.add_column(title, no_wrap=True)
    for title in ("MMAC", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    if timed:
        table.add_column("est. ms", justify="right", no_wrap=True)
        table.add_column("bound", no_wrap=True)
    for layer in row["layers"]:
        name = layer["name"].strip("/")
        cells = [
            # The end of a name parts it from its neighbours.
            name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}",
            layer["shape"],
            f"{layer['macs'] / 1e6:.1f}",
            f"{(layer['read_bytes'] + layer['written_bytes']) / 1e6:.2f}",
            "int" if layer["integer"] else "float",
        ]
        if timed:
            ms = layer.get("estimated_ms")
            cells += [f"{ms:.3f}" if ms is not None else "", layer.get("bound", "")]
        table.add_row(*cells)
    return table


def finding_tables(findings: "Sequence[Finding]") -> list[Table]:
    """What was checked, what exceeds its limit, and by how much; a table a row."""
    tables = []
    for key in dict.fromkeys(f.row for f in findings):
        table = _table(f"Check of {escape(key)}")
        table.add_column("figure", no_wrap=True)
        for title in ("value", "limit", "difference"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("state")
        for f in findings:
            if f.row != key:
                continue
            style = "red" if f.exceeded else "green" if f.state == "ok" else "yellow"
            table.add_row(
                f.figure.replace("_", " "),
                _figure(f.value, f.unit),
                _figure(f.limit, f.unit),
                f"{f.excess_percent:+.1f}%" if f.value else "",
                f"[{style}]{f.state}[/{style}]",
            )
        tables.append(table)
    return tables


def _figure(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def device_table() -> Table:
    """The shipped profiles."""
    table = _table("Device profiles (dense peaks)")
    table.add_column("name", no_wrap=True)
    table.add_column("device")
    for title in ("FP16 TFLOPS", "INT8 TOPS", "GB/s"):
        table.add_column(title, justify="right")
    table.add_column("power modes")
    for row in device_document()["devices"]:
        alias = f" (default of '{row['default_of']}')" if row["default_of"] else ""
        table.add_row(
            row["name"],
            row["title"] + alias + (", estimates only" if row["estimate_only"] else ""),
            f"{row['float16_tflops'] or row['float32_tflops']:.4g}",
            f"{row['int8_tops']:.4g}" if row["int8_tops"] else "none",
            f"{row['bandwidth_gbs']:.4g}",
            ", ".join(row["modes"]),
        )
    return table


def device_document() -> dict[str, Any]:
    """The shipped profiles, as ``--list-devices --json`` prints them."""
    from edgeseg.profiling.devices import ALIASES, device_names, load_device

    names = {default: alias for alias, default in ALIASES.items()}
    rows = []
    for name in device_names():
        device = load_device(name)
        hardware = device.hardware
        rows.append(
            {
                "name": name,
                "title": device.title,
                "device": device.device,
                "default_of": names.get(name),
                "estimate_only": device.estimate_only,
                "float32_tflops": hardware.float32_tflops,
                "float16_tflops": hardware.float16_tflops,
                "int8_tops": hardware.int8_tops,
                "bandwidth_gbs": hardware.bandwidth_gbs,
                "modes": list(device.modes),
                "default_mode": device.default_mode,
            }
        )
    return {"schema": "edgeseg.profile/1", "devices": rows}
