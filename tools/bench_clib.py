"""What libedgeseg costs around the engine's call, and how old its results are.

    python tools/bench_clib.py [BUNDLE] [--engines openvino,onnxruntime] [--threads N]
        [--rounds 40] [--source-rate 3] [--json FILE]

Runs the ready bundle (or another) on a drawn road scene at the network's size. Library and Python
path take turns, five frames each, so that what slows the machine down slows both; all shares are
taken within a call or a turn, and of those the median. Prints one JSON document, a row per engine:

- ``overhead_percent``: of a call's time, what is neither the engine (body) nor the head: the copy
  of the frame to where the engine reads, the summary, checks, locks and clocks. Under 2 wanted.
- ``python_ratio``: a turn's median time over that of the Python path.
- ``age``: from capture to result, where a thread captures ``--source-rate`` frames in the time of
  one and the newest is taken: in frame times (the median call), and each in the time of its own
  call, which holds on a busy machine too. The 99th percentile under 1.5 wanted.

Exits with 1 where a row does not hold. The figures of a document want a quiet machine.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench_machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeseg.runtime.buffering import NewestFrame  # noqa: E402
from edgeseg.runtime.frames import Frame, now_utc  # noqa: E402
from edgeseg.runtime.library import LibrarySession  # noqa: E402
from edgeseg.runtime.session import Session  # noqa: E402

STAGES = ("convert", "resize", "body", "head", "summary", "total")
BURST, SETTLE = 5, 2
OVERHEAD_PERCENT, AGE_FRAMES = 2.0, 1.5

UInt8 = npt.NDArray[np.uint8]


class Clockwork:
    """A camera that gives the same frame at its own pace."""

    label, live, length, fps, skipped = "clockwork", True, None, None, 0

    def __init__(self, image: UInt8, period_s: float) -> None:
        self._image, self._period = image, period_s
        self._open = True

    def __iter__(self) -> Iterator[Frame]:
        due, index = time.monotonic(), 0
        while self._open:
            # One that was kept up does not hurry to catch up.
            due = max(due + self._period, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            yield Frame(index, self._image, "", "", now_utc(), time.monotonic_ns(), 0.0)
            index += 1

    def close(self) -> None:
        """End the iteration."""
        self._open = False


def turns(
    library: LibrarySession, python: Session, frame: UInt8, rounds: int
) -> tuple[dict[str, npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Stages of the library's calls, and its time over Python's, turn by turn."""
    rows, ratios = [], []
    for _ in range(rounds):
        for _ in range(SETTLE):
            library.run(frame)
        burst = [library.run(frame).timings for _ in range(BURST)]
        rows += burst
        for _ in range(SETTLE):
            python.run(frame)
        times = []
        for _ in range(BURST):
            start = time.perf_counter_ns()
            python.run(frame)
            times.append((time.perf_counter_ns() - start) / 1e6)
        ratios.append(np.median([row["total"] for row in burst]) / np.median(times))
    return {name: np.array([row[name] for row in rows]) for name in STAGES}, np.array(ratios)


def ages(
    library: LibrarySession, frame: UInt8, period_s: float, count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Ages of results and the times of their calls, in milliseconds."""
    source = NewestFrame(Clockwork(frame, period_s))
    found, calls = [], []
    try:
        for item in source:
            assert isinstance(item, Frame)
            result = library.run(item.image, captured_mono_ns=item.captured_mono_ns)
            found.append(result.age_ms)
            calls.append(result.timings["total"])
            if len(found) == count + SETTLE:
                break
    finally:
        source.close()
    return np.array(found[SETTLE:]), np.array(calls[SETTLE:])


def measure(bundle: Path, engine: str, threads: int | None, rounds: int, rate: float) -> Any:
    from edgeseg.data.synthetic import scene

    with (
        LibrarySession(bundle, engine, threads=threads) as library,
        Session(bundle, engine, library.describe()["threads"], path="python") as python,
    ):
        frame, _ = scene(3, *library.size)
        stages, ratios = turns(library, python, frame, rounds)
        own = stages["total"] - stages["body"] - stages["head"]
        frame_ms = float(np.median(stages["total"]))
        found, calls = ages(library, frame, frame_ms / rate / 1e3, rounds * BURST)
        described = library.describe()
    overhead = float(np.median(100 * own / stages["total"]))
    in_frames = float(np.percentile(found, 99) / np.median(calls))
    return {
        "engine": engine,
        "engine_version": described["engine_version"],
        "isa": described["isa"],
        "threads": described["threads"],
        "frames": rounds * BURST,
        "stages_ms": {name: round(float(np.median(times)), 4) for name, times in stages.items()},
        "overhead_ms": round(float(np.median(own)), 4),
        "overhead_percent": round(overhead, 3),
        "overhead_holds": overhead < OVERHEAD_PERCENT,
        "python_ratio": round(float(np.median(ratios)), 4),
        "age": {
            "source_rate": rate,
            "frame_ms": round(float(np.median(calls)), 3),
            "p50_ms": round(float(np.median(found)), 3),
            "p99_ms": round(float(np.percentile(found, 99)), 3),
            "p99_frames": round(in_frames, 3),
            "p99_own_frames": round(float(np.percentile(found / calls, 99)), 3),
        },
        "age_holds": in_frames < AGE_FRAMES,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ready = ROOT / "edgeseg" / "bundles" / "ready"
    parser.add_argument("bundle", nargs="?", type=Path, default=ready)
    parser.add_argument("--engines", default="openvino,onnxruntime")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--source-rate", type=float, default=3.0)
    parser.add_argument("--json", type=Path, help="write the document here as well")
    options = parser.parse_args()
    rows = [
        measure(options.bundle, engine, options.threads, options.rounds, options.source_rate)
        for engine in options.engines.split(",")
    ]
    document = {"machine": describe_machine(), "load": os.getloadavg()[0], "rows": rows}
    text = json.dumps(document, indent=1) + "\n"
    print(text, end="")
    if options.json is not None:
        partial = options.json.with_name(f".{options.json.name}.partial")
        partial.write_text(text)
        partial.replace(options.json)
    return 0 if all(row["overhead_holds"] and row["age_holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
