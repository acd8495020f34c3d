"""Build every graph that is exported for TensorRT with TensorRT-RTX, and print a table.

Networks x precisions x (body and every scorer) x sizes. Needs no GPU: TensorRT-RTX parses and
builds ahead of time. It runs under an interpreter of its own, since it brings 350 MB:

    python -m venv .venv-rtx && .venv-rtx/bin/pip install tensorrt-rtx-cu12==1.7.1.116 numpy
    python tools/trt_build_matrix.py --json builds.json

Exits 1 where a graph does not build.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

NETWORKS = ("midenet", "enet", "erfnet", "bisenet")
PRECISIONS = ("float32", "float16", "int8")
TARGETS = ("7.5", "8.6", "8.9")


def models(network, height, width, precisions, scorers) -> Iterator[tuple[str, str, bytes]]:
    """Precision, scorer (or ``body``) and the graph, of shipped weights or random ones."""
    import numpy as np
    import torch

    from edgeseg.compression.calibration import observe
    from edgeseg.compression.quantize_onnx import quantize_body
    from edgeseg.export.body import export_body
    from edgeseg.export.float16 import to_float16
    from edgeseg.export.tensorrt_graph import tensorrt_model
    from edgeseg.networks import build
    from edgeseg.networks.checkpoints import load_network
    from edgeseg.networks.zoo import shipped_weights
    from edgeseg.scoring.onnx_head import standalone_model
    from edgeseg.scoring.scorers import valid_scorers

    torch.manual_seed(0)
    shipped = shipped_weights(network)
    module = load_network(network, shipped) if shipped else build(network, {}).eval()
    head = module.head_spec()
    head = type(head)(
        **{f: getattr(head, f) for f in head.__dataclass_fields__} | {"layout": "nhwc"}
    )
    body = export_body(module, height, width)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for precision in precisions:
        model = body
        if precision == "float16":
            model = to_float16(body)
        elif precision == "int8":
            model = quantize_body(body, observe(body, [frame])).model
        for scorer in ("body", *valid_scorers(head.void_index)):
            if scorers and scorer not in scorers:
                continue
            whole = (
                model
                if scorer == "body"
                else standalone_model(model, head, scorer, 1.0, height, width)
            )
            yield precision, scorer, tensorrt_model(whole, typed=True).SerializeToString()


def interpreter(given: str | None) -> str:
    """The interpreter that has TensorRT-RTX."""
    beside = ROOT / ".venv-rtx" / "bin" / "python"
    return given or (str(beside) if beside.exists() else sys.executable)


def worker() -> int:
    """Build the files named on stdin; a JSON line each on stdout."""
    import tensorrt_rtx as trt

    from edgeseg.errors import EdgesegError
    from edgeseg.runtime.tensorrt.builder import BuildOptions, build

    for line in sys.stdin:
        request = json.loads(line)
        options = BuildOptions(request["precision"], compute_capabilities=tuple(request["targets"]))
        try:
            built = build(trt, Path(request["path"]).read_bytes(), options)
            answer = {
                "engine_bytes": len(built.content),
                "layers": built.layers,
                "seconds": round(built.seconds, 2),
            }
        except EdgesegError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    return 0


def table(rows: list[dict]) -> str:
    """Markdown: a row a network, size and precision; MB and seconds by graph."""
    names = list(dict.fromkeys(row["graph"] for row in rows))
    lines = [
        "| network | size | precision | " + " | ".join(f"{n}: MB (s)" for n in names) + " |",
        "|---|---|---|" + "---:|" * len(names),
    ]
    groups: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        cell = "refused"
        if "error" not in row:
            cell = f"{row['engine_bytes'] / 1e6:.2f} ({row['seconds']:.1f})"
        key = (row["network"], row["size"], row["precision"])
        groups.setdefault(key, {})[row["graph"]] = cell
    for key, cells in groups.items():
        lines.append("| " + " | ".join([*key, *(cells.get(name, "none") for name in names)]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--sizes", nargs="+", default=["256x512", "512x1024"])
    parser.add_argument("--graphs", nargs="+", help="body and scorers; default: all")
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="compute capabilities")
    parser.add_argument("--python", help="interpreter that has tensorrt_rtx")
    parser.add_argument("--json", type=Path, help="also write the rows here, adding to its rows")
    parser.add_argument("--table", type=Path, help="only print the table of such a file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker()
    if options.table:
        print(table(json.loads(options.table.read_text())["rows"]))
        return 0
    rows = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
    command = [interpreter(options.python), str(Path(__file__).resolve()), "--worker"]
    with (
        tempfile.TemporaryDirectory(prefix="edgeseg-rtx-") as folder,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        path = Path(folder) / "graph.onnx"
        for network in options.networks:
            for size in options.sizes:
                height, width = (int(n) for n in size.split("x"))
                given = models(network, height, width, options.precisions, options.graphs)
                for precision, graph, content in given:
                    path.write_bytes(content)
                    request = {
                        "path": str(path),
                        "precision": precision,
                        "targets": options.targets,
                    }
                    child.stdin.write(json.dumps(request) + "\n")
                    child.stdin.flush()
                    answer = child.stdout.readline()
                    if not answer:
                        print(f"the builder died on {network} {size} {precision} {graph}")
                        return 1
                    row = {
                        "network": network,
                        "size": size,
                        "precision": precision,
                        "graph": graph,
                        "onnx_bytes": len(content),
                        **json.loads(answer),
                    }
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    if options.json:
                        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        child.stdin.close()
    print(table(rows))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
