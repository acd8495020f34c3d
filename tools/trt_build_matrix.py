"""Build every graph that is exported for TensorRT with TensorRT-RTX, and print a table.

Networks x precisions x (body and every scorer) x sizes, of the shipped weights and their ranges,
for the GPUs that ``edgeseg export --target tensorrt-rtx`` builds for. No GPU is needed.

    make .venv-rtx/.installed      TensorRT-RTX, in an environment of its own
    python tools/trt_build_matrix.py --json tools/results/trt_builds.json

Rows of the file whose graph is the same as then are kept. Exits 1 where a graph does not build.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from make_readme import markdown  # noqa: E402
from nvidia_tables import builds_table  # noqa: E402
from rtx_builder import Build, interpreter, rtx_builder  # noqa: E402

NETWORKS = ("midenet", "enet", "erfnet", "bisenet")
PRECISIONS = ("float32", "float16", "int8")
SIZES = ("256x512", "512x1024")
GRAPHS = ("body", "msp", "maxlogit", "entropy", "void", "energy")
KEY = ("network", "size", "precision", "graph")


def models(network, height, width, precisions, graphs) -> Iterator[tuple[str, str, bytes]]:
    """Precision, ``body`` or scorer, and the graph that ``edgeseg export`` makes of the network."""
    import torch

    from edgeseg.compression.calibration import Ranges
    from edgeseg.compression.quantize_onnx import quantize_body
    from edgeseg.export.body import export_body
    from edgeseg.export.float16 import to_float16
    from edgeseg.export.tensorrt_graph import tensorrt_model
    from edgeseg.networks.checkpoints import load_network
    from edgeseg.networks.zoo import shipped_calibration, shipped_weights
    from edgeseg.scoring.onnx_head import standalone_model

    torch.set_num_threads(1)
    module = load_network(network, shipped_weights(network))
    head = replace(module.head_spec(), layout="nhwc")
    body = export_body(module, height, width)
    for precision in precisions:
        model = body
        if precision == "float16":
            model = to_float16(body)
        elif precision == "int8":
            ranges = Ranges.load(shipped_calibration(network))
            model = quantize_body(body, ranges, keep_float=frozenset(ranges.keep_float)).model
        for graph in graphs:
            whole = model
            if graph != "body":
                whole = standalone_model(model, head, graph, 1.0, height, width)
            yield precision, graph, tensorrt_model(whole, typed=True).SerializeToString()


class Results:
    """Rows by what they are of; kept in a file after each."""

    def __init__(self, path: Path | None, told: dict):
        self.path, self.told = path, told
        self.rows: dict[tuple[str, ...], dict] = {}
        if path is not None and path.exists():
            document = json.loads(path.read_text())
            # Another version, or other GPUs, make other engines.
            if all(document.get(k) == v for k, v in told.items()):
                self.rows = {tuple(row[k] for k in KEY): row for row in document["rows"]}

    def has(self, row: dict) -> bool:
        """Whether this graph, byte for byte, was built."""
        old = self.rows.get(tuple(row[k] for k in KEY), {"error": "none"})
        return "error" not in old and old["onnx_sha256"] == row["onnx_sha256"]

    def add(self, row: dict) -> None:
        """Put a row in the place of the older one."""
        self.rows[tuple(row[k] for k in KEY)] = row
        if self.path is not None:
            document = {**self.told, "rows": self.sorted()}
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(document, indent=1) + "\n")
            beside.replace(self.path)

    def sorted(self) -> list[dict]:
        """All rows, in the order of the table."""
        order = dict(zip(KEY, (NETWORKS, SIZES, PRECISIONS, GRAPHS), strict=True))
        places = {k: {name: i for i, name in enumerate(v)} for k, v in order.items()}
        return sorted(self.rows.values(), key=lambda row: [places[k].get(row[k], 99) for k in KEY])


def run(options: argparse.Namespace, results: Results, build: Build, folder: Path) -> None:
    """Build what is asked for and not there yet."""
    path = folder / "graph.onnx"
    for network in options.networks:
        for size in options.sizes:
            height, width = (int(n) for n in size.split("x"))
            given = models(network, height, width, options.precisions, options.graphs)
            for precision, graph, content in given:
                row = {
                    "network": network,
                    "size": size,
                    "precision": precision,
                    "graph": graph,
                    "onnx_bytes": len(content),
                    "onnx_sha256": hashlib.sha256(content).hexdigest(),
                }
                if results.has(row):
                    continue
                path.write_bytes(content)
                row |= build(path, precision, options.targets)
                results.add(row)
                print(json.dumps(row), file=sys.stderr, flush=True)


def _size(text: str) -> str:
    if not re.fullmatch(r"\d+x\d+", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH, as 512x1024 is")
    return text


def main() -> int:
    from edgeseg.export.tensorrt import DESKTOP_TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--sizes", nargs="+", type=_size, default=SIZES)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument(
        "--targets", nargs="+", default=DESKTOP_TARGETS, help="compute capabilities"
    )
    parser.add_argument("--python", help="interpreter that has tensorrt_rtx")
    parser.add_argument("--json", type=Path, help="keep the rows here, and add to those there")
    options = parser.parse_args()
    python = interpreter(options.python)
    if python is None:
        print("TensorRT-RTX is not here; 'make .venv-rtx/.installed' gets it", file=sys.stderr)
        return 1
    try:
        with (
            tempfile.TemporaryDirectory(prefix="edgeseg-rtx-") as folder,
            rtx_builder(python) as (version, build),
        ):
            told = {"tensorrt_rtx": version, "targets": list(options.targets)}
            results = Results(options.json, told)
            run(options, results, build, Path(folder))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    rows = results.sorted()
    print(builds_table({"rows": rows}, markdown))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
