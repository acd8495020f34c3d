"""The compression table in short, for README.md.

The figures: ``tools/results/compression.json``, from ``tools/compression_table.py``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

TITLES = {"enet": "ENet", "erfnet": "ERFNet", "bisenet": "BiSeNet", "midenet": "MiDE-Net"}
ENGINES = ("onnxruntime", "openvino")
Json = Mapping[str, Any]
Table = Callable[[Iterable[str], Iterable[Iterable[str]], Iterable[int]], str]


def compression_summary(document: Json, table: Table) -> str:
    """A row per network and form, and the machine."""
    rows = []
    for name, entry in document["networks"].items():
        measured = [row for row in entry["rows"] if "counts" in row]
        base = next((row for row in measured if row["form"] == "float32"), None)
        rows += [_row(name, row, base) for row in measured]
    header = [
        "", "form", "mIoU % sharp", "mIoU % 256x256", "void, RoadAnomaly21", "most lost, points",
        "FPS ONNX Runtime", "FPS OpenVINO", "MACs G", "MB",
    ]  # fmt: skip
    machine = document["machine"]
    return f"{table(header, rows, (0, 1))}\n\n{machine['cpu']}; {machine['versions']}."


def _row(network: str, row: Json, base: Json | None) -> list[str]:
    accuracy, counts = row["accuracy"], row["counts"]
    mious = [accuracy.get(name, {}).get("miou_percent") for name in ("cityscapes", "cityscapes256")]
    void = accuracy.get("RoadAnomaly21", {}).get("scorers", {}).get("void")
    return [
        TITLES[network],
        row["title"],
        *("-" if value is None else f"{value:.1f}" for value in mious),
        "-" if void is None or None in void else f"{void[0]:.1f} / {void[1]:.1f}",
        "" if base is None or row is base else _most_lost(row, base),
        *(_speed(row, engine) for engine in ENGINES),
        f"{counts['macs'] / 1e9:.2f}",
        f"{counts['bytes'] / 1e6:.2f}",
    ]


def _speed(row: Json, engine: str) -> str:
    found = row["speed"].get(engine)
    if found is None:
        other = row["speed"].get("torch-fx")
        return "-" if other is None or engine != ENGINES[0] else f"{other['fps']:.1f} (torch)"
    times = found["times_faster"]
    return f"{found['fps']:.1f}" + (
        f" ({times:.2f}x)" if times and row["form"] != "float32" else ""
    )


def _most_lost(row: Json, base: Json) -> str:
    """What the form costs the figure that it costs most, and which that is."""
    losses = list(_losses(row, base))
    if not losses:
        return "-"
    points, name = max(losses)
    return f"{points:.2f} ({name})"


def _losses(row: Json, base: Json) -> Iterator[tuple[float, str]]:
    for data, values in row["accuracy"].items():
        before = base["accuracy"].get(data, {})
        if "miou_percent" in values:
            pair = (before.get("miou_percent"), values["miou_percent"])
            if None not in pair:
                yield pair[0] - pair[1], f"mIoU, {data}"
            continue
        for scorer, figures in values["scorers"].items():
            others = before.get("scorers", {}).get(scorer, (None, None))
            for sign, name, old, new in zip(
                (1, -1), ("AuPRC", "FPR95"), others, figures, strict=True
            ):
                if old is not None and new is not None:
                    yield sign * (old - new), f"{scorer} {name}, {data}"
