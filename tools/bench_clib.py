"""What libedgeseg costs around the engine's call, and how old its results are.

    python tools/bench_clib.py [BUNDLE] [--engine openvino] [--frames 200] [--pixels nv12]

Runs the ready bundle (or another) on a drawn road scene of 1280x720, one frame after the other.
Wants a quiet machine. Prints one JSON document: per stage the median in milliseconds; ``overhead``
is what a call takes beyond its stages (checks, locks, clocks, copying the result's struct).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STAGES = ("convert", "resize", "body", "head", "summary")


def frame_of(pixels: str) -> npt.NDArray[np.uint8]:
    import cv2

    from edgeseg.data.synthetic import scene

    bgr, _ = scene(3, 720, 1280)
    if pixels == "bgr":
        return bgr
    planes = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420)
    chroma = planes[720:].reshape(2, 360, 640).transpose(1, 2, 0).reshape(360, 1280)
    return np.ascontiguousarray(np.concatenate([planes[:720], chroma]).astype(np.uint8))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", default=str(ROOT / "edgeseg/bundles/ready"))
    parser.add_argument("--engine", default="openvino", choices=["openvino", "onnxruntime"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--pixels", default="nv12", choices=["bgr", "nv12"])
    options = parser.parse_args()
    from edgeseg.runtime.library import LibrarySession

    frame = frame_of(options.pixels)
    rows, ages = [], []
    with LibrarySession(options.bundle, options.engine, threads=options.threads) as session:
        for i in range(options.frames + 10):
            result = session.run(frame, pixels=options.pixels)
            if i >= 10:
                rows.append(result.timings)
                ages.append(result.age_ms)
        described = session.describe()
    stages = {name: np.array([row[name] for row in rows]) for name in (*STAGES, "total")}
    overhead = stages["total"] - sum(stages[name] for name in STAGES)
    document = {
        "engine": described["backend"],
        "engine_version": described["engine_version"],
        "isa": described["isa"],
        "threads": described["threads"],
        "pixels": options.pixels,
        "frames": options.frames,
        "stages_ms": {name: round(float(np.median(times)), 4) for name, times in stages.items()},
        "overhead_ms": round(float(np.median(overhead)), 4),
        "overhead_percent": round(float(100 * np.median(overhead / stages["total"])), 3),
        "age_ms": {f"p{level}": round(float(np.percentile(ages, level)), 3) for level in (50, 99)},
    }
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
