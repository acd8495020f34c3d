"""Measure the published accuracy figures again, and print measured against published.

    python tools/reproduce_figures.py [--data ../shared/data] [--resize runtime|pillow]
        [--checkpoint NAME]... [--set NAME]... [--bundle NAME=FOLDER]... [-o FILE.json]

By default every published checkpoint runs in torch float32 at 512x1024 on every set. With
``--bundle erfnet_void20=export/erfnet`` the bundle stands in for that checkpoint, on ``--backend``.
The Markdown table goes to stdout, progress to stderr; the exit code is 1 where a figure is off by
more than the tolerance (0.1 points, mIoU 0.3).
"""

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgeseg.data import AnomalySet, open_cityscapes
from edgeseg.data.samples import Dataset
from edgeseg.evaluation.evaluate import Predictor, SessionPredictor, evaluate
from edgeseg.evaluation.state import ScorerSpec

SETS = ("RoadAnomaly21", "RoadObsticle21", "fs_static")
SPECS = {
    "void": ScorerSpec("void"),
    "msp": ScorerSpec("msp"),
    "maxlogit": ScorerSpec("maxlogit"),
    "maxentropy": ScorerSpec("entropy"),
    "msp T=2.15": ScorerSpec("msp", 2.15),
}
NETWORK_OF = {
    "erfnet_void20": "erfnet",
    "erfnet_pretrained20": "erfnet",
    "enet_void20": "enet",
    "midenet_void20": "midenet",
}
# checkpoint -> scorer -> (AuPRC, FPR95) in percent on each of SETS; protocol paper.
PUBLISHED: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "erfnet_void20": {
        "void": ((19.16, 78.05), (1.46, 99.79), (20.70, 23.70)),
        "msp": ((24.96, 76.10), (2.73, 63.98), (9.55, 34.93)),
        "maxlogit": ((27.14, 73.70), (3.06, 70.80), (13.81, 28.61)),
        "maxentropy": ((24.61, 78.49), (2.80, 66.42), (12.29, 35.54)),
        "msp T=2.15": ((23.56, 85.99), (2.45, 82.44), (12.49, 39.67)),
    },
    "erfnet_pretrained20": {
        "msp": ((28.89, 66.86), (2.57, 88.46), (6.69, 47.94)),
        "maxlogit": ((39.41, 62.19), (4.81, 69.51), (8.29, 45.87)),
        "maxentropy": ((31.06, 67.03), (2.93, 89.32), (7.88, 48.15)),
        "msp T=2.15": ((30.89, 69.27), (2.98, 95.22), (8.46, 52.97)),
    },
    "enet_void20": {
        "void": ((13.29, 90.85), (1.39, 76.91), (11.26, 67.53)),
        "msp": ((22.15, 67.35), (17.12, 36.57), (12.37, 41.13)),
        "maxlogit": ((18.91, 78.84), (16.44, 40.72), (15.44, 40.73)),
        "maxentropy": ((20.95, 66.77), (20.85, 36.14), (13.86, 40.60)),
        "msp T=2.15": ((21.04, 65.79), (20.36, 34.55), (14.00, 39.05)),
    },
    "midenet_void20": {
        "void": ((18.50, 79.19), (0.69, 98.03), (5.55, 93.69)),
        "msp": ((18.77, 82.98), (1.67, 63.89), (6.62, 67.48)),
        "maxlogit": ((19.37, 83.35), (0.96, 99.34), (8.00, 74.91)),
        "maxentropy": ((19.84, 81.23), (2.19, 63.61), (6.69, 67.51)),
        "msp T=2.15": ((20.30, 75.78), (2.06, 63.71), (6.72, 67.75)),
    },
}
# mIoU in percent: the 5 official val frames at 512x1024; every fifth of the 256x256 val set at
# 256x512.
CITYSCAPES = ("cityscapes", (512, 1024), 1)
CITYSCAPES256 = ("cityscapes256", (256, 512), 5)
PUBLISHED_MIOU = {
    "erfnet_void20": (66.4, 44.8),
    "erfnet_pretrained20": (66.8, 47.0),
    "enet_void20": (49.1, 39.7),
    "midenet_void20": (33.0, 26.0),
}
TOLERANCE, MIOU_TOLERANCE = 0.1, 0.3


def open_predictor(
    stack: ExitStack, name: str, options: argparse.Namespace
) -> tuple[Predictor, tuple[int, int] | None]:
    """The predictor of a checkpoint, and the one size that it takes, if there is only one."""
    bundles = dict(entry.split("=", 1) for entry in options.bundle)
    if name in bundles:
        from edgeseg.runtime.session import Session

        session = stack.enter_context(
            Session(
                bundles[name],
                backend=options.backend,
                threads=options.threads,
                score_dtype="float32",
            )
        )
        return SessionPredictor(session), session.size
    from edgeseg.networks.checkpoints import load_network
    from edgeseg.networks.predictor import TorchPredictor

    weights = options.data / "weights" / f"{name}.pth"
    module = load_network(NETWORK_OF[name], weights)
    return TorchPredictor(module, weights=weights, threads=options.threads), None


def measure(
    predictor: Predictor,
    data: Dataset,
    specs: list[ScorerSpec],
    size: tuple[int, int],
    every: int,
    resize: Any,
) -> Any:
    start = time.perf_counter()
    state = evaluate(predictor, data, specs, size=size, every=every, resize=resize)
    print(
        f"{predictor.network} {data.folder.name}: {state.frames} frames, "
        f"{time.perf_counter() - start:.0f} s",
        file=sys.stderr,
    )
    return state


def anomaly_rows(
    name: str, set_name: str, predictor: Predictor, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per published cell of this checkpoint and set."""
    published = PUBLISHED[name]
    data = AnomalySet(options.data / "anomaly" / set_name)
    specs = [SPECS[scorer] for scorer in published]
    state = measure(predictor, data, specs, (512, 1024), 1, options.resize)
    rows = []
    for scorer, result in zip(published, state.results(), strict=True):
        for index, key in enumerate(("auprc_percent", "fpr95_percent")):
            rows.append(
                {
                    "checkpoint": name,
                    "scorer": scorer,
                    "set": set_name,
                    "figure": key,
                    "measured": result[key],
                    "published": published[scorer][SETS.index(set_name)][index],
                    "tolerance": TOLERANCE,
                }
            )
    return rows


def miou_rows(
    name: str,
    predictor: Predictor,
    only_size: tuple[int, int] | None,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The two mIoU figures, as far as the predictor takes their sizes."""
    rows = []
    for (folder, size, every), published in zip(
        (CITYSCAPES, CITYSCAPES256), PUBLISHED_MIOU[name], strict=True
    ):
        if folder not in options.set or only_size not in (None, size):
            continue
        data = open_cityscapes(options.data / folder)
        state = measure(predictor, data, [], size, every, options.resize)
        rows.append(
            {
                "checkpoint": name,
                "scorer": "-",
                "set": folder,
                "figure": "miou_percent",
                "measured": state.miou_percent(),
                "published": published,
                "tolerance": MIOU_TOLERANCE,
            }
        )
    return rows


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Every cell as measured, published, difference."""
    lines = [
        "| checkpoint | scorer | set | figure | measured | published | difference |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        off = row["measured"] - row["published"]
        mark = " (!)" if abs(off) > row["tolerance"] else ""
        lines.append(
            f"| {row['checkpoint']} | {row['scorer']} | {row['set']} "
            f"| {row['figure'].removesuffix('_percent')} | {row['measured']:.2f} "
            f"| {row['published']:.2f} | {off:+.2f}{mark} |"
        )
    worst = max((abs(r["measured"] - r["published"]) for r in rows), default=0.0)
    outside = sum(abs(r["measured"] - r["published"]) > r["tolerance"] for r in rows)
    lines += [
        "",
        f"{len(rows)} figures, largest difference {worst:.3f}, {outside} out of tolerance",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("EDGESEG_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--checkpoint", action="append", choices=PUBLISHED)
    parser.add_argument("--set", action="append", choices=(*SETS, CITYSCAPES[0], CITYSCAPES256[0]))
    parser.add_argument("--resize", choices=("runtime", "pillow"), default="runtime")
    parser.add_argument("--bundle", action="append", default=[], metavar="CHECKPOINT=FOLDER")
    parser.add_argument("--backend", default="auto", help="engine of the bundles")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    options = parser.parse_args()
    options.set = options.set or [*SETS, CITYSCAPES[0], CITYSCAPES256[0]]
    rows: list[dict[str, Any]] = []
    for name in options.checkpoint or PUBLISHED:
        with ExitStack() as stack:
            predictor, only_size = open_predictor(stack, name, options)
            for set_name in SETS:
                if set_name in options.set:
                    rows += anomaly_rows(name, set_name, predictor, options)
            rows += miou_rows(name, predictor, only_size, options)
    print(to_markdown(rows))
    if options.output:
        options.output.write_text(json.dumps({"resize": options.resize, "rows": rows}, indent=1))
    return int(any(abs(r["measured"] - r["published"]) > r["tolerance"] for r in rows))


if __name__ == "__main__":
    sys.exit(main())
