"""Measure the shipped weights beside the published ones: mIoU at several sizes, anomaly figures.

    python tools/measure_zoo.py [--data ../shared/data] [--network NAME]... [-o FILE.json]

Torch float32. What the file holds already, for the same weights, is not measured again, so a run
that was stopped goes on. ``tools/make_readme.py`` makes README's table of it and those of the
model cards.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from edgeseg.data import AnomalySet, open_cityscapes
from edgeseg.evaluation.state import ScorerSpec
from edgeseg.networks import NETWORKS
from edgeseg.networks.checkpoints import load_network
from edgeseg.networks.predictor import TorchPredictor
from edgeseg.networks.zoo import shipped_weights
from reproduce_figures import CITYSCAPES, CITYSCAPES256, SETS, measure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "results" / "zoo.json"
PUBLISHED = {"erfnet": "erfnet_void20", "enet": "enet_void20", "midenet": "midenet_void20"}
SCORERS = ("void", "msp", "maxlogit", "entropy", "energy")
SIZES = ((256, 512), (384, 768), (512, 1024))


def candidates(data: Path, networks: list[str]) -> list[tuple[str, str, Path]]:
    """Network, whose weights, and the file."""
    found = []
    for name in networks:
        own = shipped_weights(name)
        if own is not None:
            found.append((name, "edgeseg", own))
        published = data / "weights" / f"{PUBLISHED.get(name)}.pth"
        if published.is_file():
            found.append((name, "published", published))
    return found


def miou(predictor: TorchPredictor, data: Path) -> dict[str, dict[str, Any]]:
    """MIoU of both Cityscapes sets at every size, and the IoU of each class."""
    figures: dict[str, dict[str, Any]] = {}
    for folder, _, every in (CITYSCAPES, CITYSCAPES256):
        for size in SIZES:
            state = measure(predictor, open_cityscapes(data / folder), [], size, every, "runtime")
            figures.setdefault(folder, {})[f"{size[0]}x{size[1]}"] = {
                "miou_percent": state.miou_percent(),
                "iou_percent": [None if v is None else 100 * v for v in state.confusion.iou()],
                "frames": state.frames,
            }
    return figures


def anomaly(predictor: TorchPredictor, data: Path) -> dict[str, list[dict[str, Any]]]:
    """AuPRC and FPR95 of every scorer on the three anomaly sets at 512x1024, protocol paper."""
    specs = [ScorerSpec(name) for name in SCORERS if name in predictor.scorers]
    return {
        name: measure(
            predictor, AnomalySet(data / "anomaly" / name), specs, (512, 1024), 1, "runtime"
        ).results()
        for name in SETS
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("EDGESEG_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.output.is_file():
        rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"]
    for network, whose, path in candidates(options.data, options.network or list(NETWORKS)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        key = {"network": network, "weights": whose}
        others = [r for r in rows if {k: r[k] for k in key} != key]
        if any(r["sha256"] == digest for r in rows if r not in others):
            continue
        predictor = TorchPredictor(load_network(network, path), weights=path)
        figures = {
            "miou": miou(predictor, options.data),
            "anomaly": anomaly(predictor, options.data),
        }
        rows = [*others, {**key, "sha256": digest, **figures}]
        rows.sort(key=lambda r: (NETWORKS.index(r["network"]), r["weights"]))
        options.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(f"{network}, {whose}: written to {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
