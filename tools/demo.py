"""`make demo`: export an INT8 bundle, run it on a drive that the project draws, show the result.

Needs no data and no network. Everything is written below ``out/demo``, which git ignores.
"""

import json
import subprocess
import sys
from pathlib import Path

import cv2

from edgeseg.data.synthetic import SyntheticClip

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "demo"
FRAMES = 100
PICTURE = 60


def edgeseg(*arguments: str) -> str:
    """Run the command line as a user would; the demo stops where it stops."""
    command = [sys.executable, "-m", "edgeseg", *arguments]
    print("$ edgeseg", " ".join(arguments), flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    frames = OUT / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    print(f"drawing {FRAMES} frames of a street in {frames.relative_to(ROOT)}")
    clip = SyntheticClip(seed=7, height=512, width=1024, frames=FRAMES)
    for i, (frame, _) in enumerate(clip):
        cv2.imwrite(str(frames / f"{i:04d}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
    bundle = "out/demo/bundle"
    print(edgeseg("export", "midenet", "--int8", "-o", bundle).splitlines()[0])
    video = "out/demo/overlay.mp4"
    summary = json.loads(
        edgeseg("run", bundle, "--input", "out/demo/frames", "--save", video, "--json")
    )
    latency = summary["latency_ms"]
    print(
        f"{summary['frames']} frames at {summary['fps']:.1f} FPS end to end "
        "(read, infer, score, draw and encode)"
    )
    print(
        "latency per frame, frame in to class map and score out: "
        + ", ".join(f"{k} {latency[k]:.1f} ms" for k in ("p50", "p90", "p99", "max"))
    )
    picture = f"out/demo/frames/{PICTURE:04d}.jpg"
    edgeseg("run", bundle, "--input", picture, "--save", "out/demo/picture", "--json")
    print(f"video: {video}")
    for file in sorted((OUT / "picture").rglob("*.*")):
        print(f"picture: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
