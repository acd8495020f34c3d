"""Tables of what was built for NVIDIA's GPUs, for README.md and tools/results/trt_builds.md.

The figures: ``tools/results/trt_builds.json``, from ``tools/trt_build_matrix.py``, and
``tools/results/cuda_kernels.json``, from ``tools/compile_cuda.py``.
"""

from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]
Table = Callable[[Iterable[str], Iterable[Iterable[str]], Iterable[int]], str]


def builds_table(document: dict[str, Any], table: Table) -> str:
    """A row a network, size and precision, a column a graph: MB of the engine (CPU seconds)."""
    rows = document["rows"]
    names = list(dict.fromkeys(row["graph"] for row in rows))
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        cell = "refused"
        if "error" not in row:
            cell = f"{row['engine_bytes'] / 1e6:.2f} ({row['cpu_seconds']:.1f})"
        key = (row["network"], row["size"], row["precision"])
        groups.setdefault(key, {})[row["graph"]] = cell
    body = [[*key, *(cells.get(n, "-") for n in names)] for key, cells in groups.items()]
    header = ("network", "size", "precision", *(f"{n}: MB (s)" for n in names))
    return table(header, body, (0, 1, 2))


def builds_summary(document: dict[str, Any], table: Table) -> str:
    """A row a network, a column a precision: the smallest and the largest of all its engines."""
    rows = document["rows"]
    built = [row for row in rows if "error" not in row]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    body = []
    for network in dict.fromkeys(row["network"] for row in rows):
        cells = []
        for precision in precisions:
            own = [r for r in built if (r["network"], r["precision"]) == (network, precision)]
            megabytes = _span([r["engine_bytes"] / 1e6 for r in own], 1)
            cells.append(f"{megabytes} MB, {_span([r['cpu_seconds'] for r in own], 1)} s")
        body.append([network, *cells])
    targets = ", ".join(f"sm_{t.replace('.', '')}" for t in document["targets"])
    sizes = " and ".join(dict.fromkeys(row["size"] for row in rows))
    graphs = ", ".join(dict.fromkeys(row["graph"] for row in rows))
    return (
        f"{table(('network', *precisions), body, (0,))}\n\n"
        f"{len(built)} of {len(rows)} graphs built ({graphs}; {sizes}) by TensorRT-RTX "
        f"{document['tensorrt_rtx']} into engines for {targets}; seconds of CPU time. "
        "Each graph: [`tools/results/trt_builds.md`](tools/results/trt_builds.md)."
    )


def _span(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def kernel_table(document: dict[str, Any], table: Table) -> str:
    """A row an architecture and count of outputs: what the kernel of the head takes."""
    body = [
        (
            f"sm_{row['architecture']}",
            str(row["outputs"]),
            row["compiler"],
            str(row["registers"]),
            str(row["static_shared_bytes"]),
            str(row["local_bytes"]),
        )
        for row in document["rows"]
    ]
    header = ("GPU", "outputs", "compiler", "registers", "static shared bytes", "spilled bytes")
    return table(header, body, (0, 2))
