"""Time and peak memory of AuPRC on 50 million pixels: edgeseg against scikit-learn.

    python tools/bench_metrics.py [--pixels 50000000] [--repeat 3] [--json]

Each side runs in a process of its own, so that its peak memory is its own; the pixels come in
frames of 512x1024 from a generator in either case, and are held whole only where the code needs
them whole. The time is that of the metric alone. Both figures are printed: they must agree.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

FRAME = 512 * 1024


def frame(index: int, pixels: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores like a softmax's, 2% anomalous pixels, 5% ignored."""
    rng = np.random.default_rng(index)
    label = rng.choice(np.uint8([0, 1, 255]), pixels, p=[0.93, 0.02, 0.05])
    logit = rng.standard_normal(pixels, dtype=np.float32) * 2 - 3 + 2 * (label == 1)
    return (1 / (1 + np.exp(-logit))).astype(dtype), label


def frames(pixels: int, dtype: str):
    for index, start in enumerate(range(0, pixels, FRAME)):
        yield frame(index, min(FRAME, pixels - start), dtype)


def run_edgeseg(pixels: int, dtype: str) -> tuple[float, float]:
    from edgeseg.evaluation.metrics import AnomalyMetric

    metric, seconds = AnomalyMetric(), 0.0
    for score, label in frames(pixels, dtype):
        start = time.perf_counter()
        metric.update(score, label)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    value = metric.auprc()
    return value, seconds + time.perf_counter() - start


def run_sklearn(pixels: int, dtype: str) -> tuple[float, float]:
    from sklearn.metrics import average_precision_score

    score, label = np.empty(pixels, dtype), np.empty(pixels, np.uint8)
    for index, (s, y) in enumerate(frames(pixels, dtype)):
        score[index * FRAME : index * FRAME + s.size] = s
        label[index * FRAME : index * FRAME + s.size] = y
    start = time.perf_counter()
    kept = label != 255
    value = average_precision_score(label[kept], score[kept])
    return value, time.perf_counter() - start


SIDES = {"edgeseg": run_edgeseg, "scikit-learn": run_sklearn}


def measure(side: str, pixels: int, dtype: str) -> dict[str, float]:
    """One run in a fresh process."""
    call = [sys.executable, __file__, "--child", side, "--pixels", str(pixels), "--dtype", dtype]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=50_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=("float16", "float32"))
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.child:
        value, seconds = SIDES[options.child](options.pixels, options.dtype)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"auprc": value, "seconds": seconds, "peak_mib": peak}))
        return
    rows = []
    for dtype in [options.dtype] if options.dtype else ["float16", "float32"]:
        for side in SIDES:
            runs = [measure(side, options.pixels, dtype) for _ in range(options.repeat)]
            rows.append(
                {
                    "side": side,
                    "dtype": dtype,
                    "auprc_percent": 100 * runs[0]["auprc"],
                    "seconds": statistics.median(r["seconds"] for r in runs),
                    "peak_mib": max(r["peak_mib"] for r in runs),
                }
            )
    if options.json:
        print(json.dumps({"pixels": options.pixels, "machine": platform.machine(), "rows": rows}))
        return
    print(f"{options.pixels:,} pixels, median of {options.repeat}, {platform.machine()}\n")
    print("| scores | code | AuPRC % | seconds | peak MiB |")
    print("|---|---|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['dtype']} | {row['side']} | {row['auprc_percent']:.4f} "
            f"| {row['seconds']:.2f} | {row['peak_mib']:.0f} |"
        )
    print()
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        print(f"{ours['dtype']}: {theirs['seconds'] / ours['seconds']:.0f} times faster")


if __name__ == "__main__":
    main()
