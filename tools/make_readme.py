"""Fill the marked tables of README.md and the model cards from figures that other tools measured.

    python tools/make_readme.py            write README.md, edgeseg/weights/*.md and others
    python tools/make_readme.py --check    exit 1 where it is not up to date

Between ``<!-- NAME -->`` and ``<!-- /NAME -->`` the table NAME stands. The figures:

- ``networks``: ``edgeseg/networks/zoo.json`` and the metadata of the shipped weights;
- ``accuracy``: ``tools/results/figures_float32.json`` and, beside it, ``figures_int8.json``, both
  from ``tools/reproduce_figures.py -o``;
- ``zoo``, and ``figures`` in the cards: ``tools/results/zoo.json``, from ``tools/measure_zoo.py``;
- ``speed``: ``tools/results/bench_peers.json``, from ``tools/bench_peers.py --json``;
- ``soak``: ``tools/results/soak.json``, from ``tools/soak.py --json``;
- ``stages``: ``tools/results/run_stages.json``, what ``edgeseg run --json`` printed;
- ``kernels``: ``tools/results/kernels.md``, what ``tools/bench_kernels.py`` printed;
- ``compression``: ``tools/results/compression.json``, from ``tools/compression_table.py --json``;
- ``engines``, and all of ``tools/results/trt_builds.md``: ``tools/results/trt_builds.json``, from
  ``tools/trt_build_matrix.py --json``;
- ``cuda``: ``tools/results/cuda_kernels.json``, from ``tools/compile_cuda.py --json``.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from compression_summary import compression_summary
from edgeseg.networks.zoo import NETWORKS, ZOO, counts, shipped_metadata
from nvidia_tables import builds_summary, builds_table, kernel_table
from soak_table import soak_table
from zoo_tables import card_tables, zoo_tables

ROOT = Path(__file__).resolve().parent.parent
CARDS = ROOT / "edgeseg" / "weights"
README = ROOT / "README.md"
RESULTS = Path(__file__).resolve().parent / "results"
NOT_MEASURED = "Not measured yet."
ANOMALY_SETS = ("RoadAnomaly21", "RoadObsticle21", "fs_static")
MIOU_SETS = ("cityscapes", "cityscapes256")
PRECISIONS = {"float32": "float32", "int8": "INT8 bundle"}
PIPELINES = {
    "torch": "torch eager float32, torch scoring",
    "onnxruntime": "ONNX Runtime float32, numpy scoring",
    "openvino": "OpenVINO INT8 (NNCF), numpy scoring",
    "openvino_scored": "OpenVINO INT8 (NNCF), scoring in its graph",
    "ours_onnxruntime": "edgeseg INT8 on ONNX Runtime",
    "ours": "**edgeseg INT8 on OpenVINO**",
}

Row = dict[str, Any]


def fill(text: str, tables: dict[str, str]) -> str:
    """``text`` with every marked block replaced.

    Raises:
        ValueError: a table has no block, or more than one, in the text.
    """
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text)
        if found != 1:
            raise ValueError(f"the README has {found} blocks '{name}', not one")
    return text


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], text: Iterable[int]) -> str:
    """A table whose columns stand to the right, all but those numbered in ``text``."""
    names, left = list(header), set(text)
    rule = ["---" if i in left else "---:" for i in range(len(names))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, rule, *rows))


def networks_table() -> str:
    rows = []
    for name in NETWORKS:
        table, terms = counts(name), shipped_metadata(name)
        weights = terms.get("weights_name")
        rows.append(
            (
                f"`{name}`",
                ZOO[name].title,
                f"{table['params']:,}",
                f"{table['macs'] / 1e9:.2f} G",
                str(table["size_divisor"]),
                f"{weights}: {terms['license']}" if weights else "none yet",
            )
        )
    size = counts(NETWORKS[0])["macs_size"]
    header = ("name", "network", "parameters", f"MACs at {size}", "sides divide by", "weights")
    return markdown(header, rows, (0, 1, 5))


def accuracy_tables(documents: dict[str, dict[str, Any]]) -> str:
    """Anomaly figures, mIoU, and how far from the published figures they are."""
    if not documents:
        return NOT_MEASURED
    columns = {PRECISIONS[name]: document["rows"] for name, document in documents.items()}
    parts = [_anomaly_table(title, rows) for title, rows in columns.items()]
    parts.append(_miou_table(columns))
    if "float32" in documents:
        parts.append(_distance(documents["float32"]["rows"]))
    return "\n\n".join(part for part in parts if part)


def _anomaly_table(title: str, rows: list[Row]) -> str:
    cells = {(r["checkpoint"], r["scorer"], r["set"], r["figure"]): r["measured"] for r in rows}
    lines = dict.fromkeys(key[:2] for key in cells if key[2] in ANOMALY_SETS)

    def cell(*key: str) -> str:
        pair = [cells.get((*key, figure)) for figure in ("auprc_percent", "fpr95_percent")]
        return " / ".join("-" if value is None else f"{value:.2f}" for value in pair)

    header = (f"{title}: AuPRC / FPR95 %", "scorer", *ANOMALY_SETS)
    body = [(*key, *(cell(*key, name) for name in ANOMALY_SETS)) for key in lines]
    return markdown(header, body, (0, 1)) if body else ""


def _miou_table(columns: dict[str, list[Row]]) -> str:
    cells = {
        (r["checkpoint"], r["set"], title): r["measured"]
        for title, rows in columns.items()
        for r in rows
        if r["figure"] == "miou_percent"
    }
    # A bundle has one size, so it may lack the figure of the other.
    heads = [(s, t) for s in MIOU_SETS for t in columns if any(k[1:] == (s, t) for k in cells)]

    def cell(*key: str) -> str:
        return f"{cells[key]:.1f}" if key in cells else "-"

    names = dict.fromkeys(key[0] for key in cells)
    body = [(name, *(cell(name, *head) for head in heads)) for name in names]
    return markdown(("mIoU %", *(", ".join(h) for h in heads)), body, (0,)) if body else ""


def _distance(rows: list[Row]) -> str:
    """In words: how far the float32 figures are from the published ones."""
    parts = []
    for label, miou in (("anomaly figures", False), ("mIoU figures", True)):
        off = [
            abs(r["measured"] - r["published"])
            for r in rows
            if (r["figure"] == "miou_percent") is miou
        ]
        if off:
            parts.append(f"{len(off)} {label} at most {max(off):.2f} points")
    return f"Distance of the float32 figures from the published ones: {', '.join(parts)}."


def speed_table(document: dict[str, Any] | None) -> str:
    if document is None:
        return NOT_MEASURED
    machine, networks = document["machine"], document["networks"]
    body = []
    for key, title in PIPELINES.items():
        cells = [_speed_cell(key, result["rows"].get(key)) for result in networks.values()]
        if any(cells):
            body.append((title, *(cell or "-" for cell in cells)))
    split = [
        f"{r['stages_ms']['body']:.1f} + {r['stages_ms']['head']:.1f}" for r in networks.values()
    ]
    body.append(("of ours, body + head", *split))
    weights = ", ".join(f"{name}: {r['weights']}" for name, r in networks.items())
    return "\n".join(
        (
            markdown(("ms per frame (times ours)", *networks), body, (0,)),
            "",
            f"Machine: {machine['cpu']}, {document['threads']} threads, kernels for "
            f"{machine['kernels']}; {machine['versions']}. Weights: {weights}.",
        )
    )


def _speed_cell(key: str, row: dict[str, float] | None) -> str:
    if row is None:
        return ""
    if key == "ours":
        return f"**{row['ms']:.1f}**"
    return f"{row['ms']:.1f} ({row['ratio']:.1f}x)"


def stages_table(document: dict[str, Any] | None) -> str:
    if document is None:
        return NOT_MEASURED
    stages = document["stages_ms"]
    cells = [f"{value:.1f}" for value in stages.values()]
    return "\n".join(
        (
            markdown((*stages, "frames/s"), [(*cells, f"{document['fps']:.1f}")], ()),
            "",
            f"{document['network']} {document['precision']} ({document['weights']}), "
            f"{document['size']}, {document['scorer']}, on {document['backend']}, "
            f"{document['threads']} threads, {document['frames']} frames of "
            f"`{Path(document['input']).name}`; median ms of each stage. Stages overlap, so the "
            "rate is not their sum.",
        )
    )


def kernels_table() -> str:
    path = RESULTS / "kernels.md"
    if not path.is_file():
        return NOT_MEASURED
    # A table needs an empty line on either side to be one.
    text = path.read_text(encoding="utf-8").strip()
    return re.sub(r"(?m)^(?=\|)(?<!\|\n)|(?<=\|\n)(?=[^|\n])", "\n", text)


def read(name: str) -> dict[str, Any] | None:
    """A file of results, or ``None`` where it was not measured yet."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def tables() -> dict[str, str]:
    """Every table by the name of its block."""
    figures = {name: read(f"figures_{name}.json") for name in PRECISIONS}
    zoo, soak = read("zoo.json"), read("soak.json")
    makers: dict[str, Callable[[], str]] = {
        "networks": networks_table,
        "accuracy": lambda: accuracy_tables({k: v for k, v in figures.items() if v}),
        "zoo": lambda: zoo_tables(zoo["rows"], markdown) if zoo else NOT_MEASURED,
        "speed": lambda: speed_table(read("bench_peers.json")),
        "soak": lambda: soak_table(soak) if soak else NOT_MEASURED,
        "stages": lambda: stages_table(read("run_stages.json")),
        "kernels": kernels_table,
        "compression": lambda: _of("compression.json", compression_summary),
        "engines": lambda: _of("trt_builds.json", builds_summary),
        "cuda": lambda: _of("cuda_kernels.json", kernel_table),
    }
    return {name: make() for name, make in makers.items()}


def _of(name: str, make: Callable[[dict[str, Any], Any], str]) -> str:
    document = read(name)
    return make(document, markdown) if document else NOT_MEASURED


def documents() -> dict[Path, dict[str, str]]:
    """Every file with tables, and its tables."""
    zoo = read("zoo.json")
    found = {README: tables()}
    found[RESULTS / "trt_builds.md"] = {"builds": _of("trt_builds.json", builds_table)}
    for name in NETWORKS:
        card = CARDS / f"{name}.md"
        if card.is_file():
            run = shipped_metadata(name)
            told = f"{run.get('steps', '?')} steps in {run.get('hours', '?')} hours.\n\n"
            table = card_tables(zoo["rows"], name, markdown) if zoo else NOT_MEASURED
            found[card] = {"figures": told + table}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where stale")
    options = parser.parse_args()
    stale = False
    for path, blocks in documents().items():
        old = path.read_text(encoding="utf-8")
        new = fill(old, blocks)
        if options.check and new != old:
            print(f"{path.name} is not up to date; run 'make tables'", file=sys.stderr)
            stale = True
        elif new != old:
            path.write_text(new, encoding="utf-8")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
