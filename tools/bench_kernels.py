"""Time the native kernels and compare them with what the machine can do at most.

    python tools/bench_kernels.py [--isa avx512 avx2] [--threads 1 2] [--repeats 30]

Every cell is a median over runs that are interleaved with all others of its head, so that a
change of the machine's clock or load meets all of them alike. The bound of a cell adds up what
cannot overlap well, for the threads at hand: its multiply-adds and its exponentials at rates
measured here first (the kernels' own instructions in a loop that stays in the cache), or the
bytes at the measured rate of copying, whichever is larger.
"""

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeseg.scoring import kernels
from edgeseg.scoring.head import Head
from edgeseg.scoring.scorers import SCORERS

HEIGHT, WIDTH, OUTPUTS, KNOWN = 512, 1024, 20, 19
PIXELS = HEIGHT * WIDTH

# Ten independent chains of fused multiply-adds, as wide as the instruction set.
PEAK_SOURCE = r"""
#include <time.h>
typedef float v __attribute__((vector_size(%(bytes)d)));
%(target)s double peak(void) {
    v x0 = {0}, x1 = x0, x2 = x0, x3 = x0, x4 = x0, x5 = x0, x6 = x0, x7 = x0, x8 = x0, x9 = x0;
    v m = x0 + 0.5f;
    struct timespec a, b;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    for (int i = 0; i < 1000000; i++) {
        x0 = x0 * m + m; x1 = x1 * m + m; x2 = x2 * m + m; x3 = x3 * m + m; x4 = x4 * m + m;
        x5 = x5 * m + m; x6 = x6 * m + m; x7 = x7 * m + m; x8 = x8 * m + m; x9 = x9 * m + m;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    volatile float keep = (x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9)[0];
    (void)keep;
    return 1e7 * (sizeof(v) / 4) /
           ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec));
}
"""
TARGETS = {
    "avx512": (64, '__attribute__((target("avx512f")))'),
    "avx2": (32, '__attribute__((target("avx2,fma")))'),
    "neon": (16, ""),
    "scalar": (4, ""),
}
# Arithmetic per logit of the scoring beside the features' own, in vector instructions: NaN
# check, comparison, index, maximum; then difference, clamp, exponential (10), sum.
SCORE_OPERATIONS = {"msp": 19, "maxlogit": 5, "entropy": 21, "void": 18, "energy": 19}
DECONVOLUTION_TAPS = {"deconv2x2": 4, "deconv3x3": 9}


def peak_multiply_adds(isa: str, threads: int) -> float:
    """Single-precision multiply-adds per nanosecond of all threads together, measured.

    Together, because the cores of a virtual machine may be two threads of one.
    """
    width, target = TARGETS[isa]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.c", Path(folder) / "peak.so"
        source.write_text(PEAK_SOURCE % {"bytes": width, "target": target})
        command = ["cc", "-O2", "-ffp-contract=fast", "-shared", "-fPIC", str(source)]
        subprocess.run([*command, "-o", str(library)], check=True)
        peak = ctypes.CDLL(str(library)).peak
        peak.restype = ctypes.c_double
        with ThreadPoolExecutor(threads) as pool:
            # The median of each thread's runs: at the ends the others may not run yet, or still.
            rates = pool.map(lambda _: statistics.median(peak() for _ in range(60)), range(threads))
            return sum(rates)


def copy_rate() -> float:
    """Bytes read per nanosecond by one thread that copies a large array."""
    a = np.ones(16 * 2**20, np.float32)
    b = np.empty_like(a)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        np.copyto(b, a)
        times.append(time.perf_counter() - start)
    return float(a.nbytes / min(times) / 1e9)


def make_head(kind: str, layout: str) -> Head:
    rng = np.random.default_rng(0)
    weight = bias = None
    if kind in DECONVOLUTION_TAPS:
        k = int(kind[-1])
        weight = rng.normal(size=(16, OUTPUTS, k, k)).astype(np.float32) * 0.5
        bias = rng.normal(size=OUTPUTS).astype(np.float32)
    factor = {"bilinear": 8, "identity": 1}.get(kind, 2)
    return Head(kind, OUTPUTS, KNOWN, KNOWN, factor, weight, bias, None, layout)  # type: ignore[arg-type]


def bound(kind: str, scorer: str, channels: int, factor: int, peak: float, copy: float) -> float:
    """Milliseconds that the arithmetic, or the bytes, take at the machine's measured rates."""
    if kind in DECONVOLUTION_TAPS:
        per_pixel = DECONVOLUTION_TAPS[kind] / 4 * channels * OUTPUTS
    else:
        per_pixel = 2.0 * OUTPUTS if kind == "bilinear" else 0.0
    arithmetic = PIXELS * (per_pixel + OUTPUTS * SCORE_OPERATIONS[scorer]) / peak
    traffic = PIXELS * (channels * 4 / factor**2 + 3) / copy
    return max(arithmetic, traffic) * 1e-6


def bench_heads(isas: list[str], threads_list: list[int], repeats: int) -> None:
    copy = copy_rate()
    print(f"copy: {copy:.1f} GB/s read by one thread")
    print("| head | layout | isa | threads | " + " | ".join(f"{s} ms (bound)" for s in SCORERS)
          + " | ns/pixel void |")  # fmt: skip
    print("|---" * (5 + len(SCORERS)) + "|")
    peaks = {(isa, n): peak_multiply_adds(isa, n) for isa in isas for n in threads_list}
    classes = np.empty((HEIGHT, WIDTH), np.uint8)
    score = np.empty((HEIGHT, WIDTH), np.float16)
    rng = np.random.default_rng(1)
    for kind in ("deconv2x2", "deconv3x3", "bilinear", "identity"):
        opened = {}
        for layout in ("nchw", "nhwc"):
            head = make_head(kind, layout)
            shape = (head.channels_in, HEIGHT // head.factor, WIDTH // head.factor)
            shape = (*shape[1:], shape[0]) if layout == "nhwc" else shape
            features = rng.normal(size=shape).astype(np.float32) * 3
            for isa in isas:
                os.environ["EDGESEG_ISA"] = isa
                for threads in threads_list:
                    kernel = kernels.HeadKernel(head, HEIGHT, WIDTH, "void", 1.0, threads)
                    opened[layout, isa, threads] = (kernel, features)
        times: dict[tuple[object, ...], list[float]] = {}
        for _ in range(repeats + 1):
            for key, (kernel, features) in opened.items():
                for scorer in SCORERS:
                    kernel.set_scorer(scorer)
                    start = time.perf_counter()
                    kernel.run(features, classes, score)
                    times.setdefault((*key, scorer), []).append(time.perf_counter() - start)
        for (layout, isa, threads), (kernel, _) in opened.items():
            cells = []
            for scorer in SCORERS:
                ms = statistics.median(times[layout, isa, threads, scorer][1:]) * 1e3
                head = kernel.head
                peak = peaks[isa, threads]
                limit = bound(kind, scorer, head.channels_in, head.factor, peak, copy)
                cells.append(f"{ms:.2f} ({limit:.2f})")
            void = statistics.median(times[layout, isa, threads, "void"][1:]) * 1e9 / PIXELS
            print(f"| {kind} | {layout} | {isa} | {threads} | {' | '.join(cells)} | {void:.1f} |")
            kernel.close()
    for (isa, threads), peak in peaks.items():
        print(f"{isa}, {threads} threads together: {peak:.1f} multiply-adds per ns, measured")


def bench_resize(isas: list[str], threads_list: list[int], repeats: int) -> None:
    print("\n| resize to 512x1024 from | isa | threads | ms |\n|---|---|---|---|")
    rng = np.random.default_rng(2)
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for height, width in ((1080, 1920), (720, 1280), (1024, 2048), (540, 960)):
        frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        opened, times = {}, {}
        for isa in isas:
            os.environ["EDGESEG_ISA"] = isa
            for threads in threads_list:
                plan = kernels.Resizer(height, width, HEIGHT, WIDTH, threads=threads)
                opened[isa, threads] = plan
        for _ in range(repeats + 1):
            for key, plan in opened.items():
                start = time.perf_counter()
                plan.run(frame, out)
                times.setdefault(key, []).append(time.perf_counter() - start)
        for (isa, threads), plan in opened.items():
            ms = statistics.median(times[isa, threads][1:]) * 1e3
            print(f"| {height}x{width} | {isa} | {threads} | {ms:.2f} |")
            plan.close()


def bench_histogram(threads_list: list[int]) -> None:
    print("\n| histogram of 50 million | threads | s |\n|---|---|---|")
    rng = np.random.default_rng(3)
    count = 50_000_000
    labels = (rng.random(count, dtype=np.float32) < 0.05).astype(np.uint8)
    bins = [np.zeros(kernels.HISTOGRAM_SIZE, np.uint32) for _ in range(2)]
    uniform = rng.random(count, dtype=np.float32)
    for name, scores in (("float32 uniform", uniform), ("float16", uniform.astype(np.float16))):
        for threads in threads_list:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                kernels.score_histogram(scores, labels, bins[0], bins[1], threads)
                times.append(time.perf_counter() - start)
            print(f"| {name} | {threads} | {statistics.median(times):.3f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--isa", nargs="+", choices=kernels.ISAS, default=[kernels.isa()])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    if not kernels.available():
        raise SystemExit(f"{kernels.library_path()} is missing; build it first")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {HEIGHT}x{WIDTH}, {OUTPUTS} outputs, "
          f"float16 scores, medians of {options.repeats}")  # fmt: skip
    bench_heads(options.isa, options.threads, options.repeats)
    bench_resize(options.isa, options.threads, options.repeats)
    bench_histogram(options.threads)


if __name__ == "__main__":
    main()
