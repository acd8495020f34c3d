"""Our pipeline beside those that a user would build instead, in one run.

Every pipeline takes one uint8 BGR frame at the network's size in memory and gives a class map
(uint8) and a float16 void score in memory. Repeats are interleaved: five frames of each pipeline
in turn, so that a machine that slows down slows all of them. Two frames before each five are not
counted, after a pause in which the threads of the pipeline before stop spinning. Reported are
medians and the ratio to ours, the median over the turns.

    python tools/bench_peers.py --weights ../shared/data/weights --frames 40
    python tools/bench_peers.py --networks midenet --json out/bench_peers.json

Without ``--weights`` the networks have random weights: the same work, other numbers. BiSeNet
always has.
"""

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench_machine import describe_machine
from bench_pipelines import (
    Pipeline,
    onnxruntime_float,
    openvino_int8,
    openvino_int8_scored,
    torch_eager,
)
from edgeseg.data.synthetic import scene
from edgeseg.export.exporter import export_bundle
from edgeseg.networks import NETWORKS, build
from edgeseg.networks.base import Network
from edgeseg.networks.checkpoints import load_network
from edgeseg.runtime.session import Session

HEIGHT, WIDTH = 512, 1024
BURST, WARM, PAUSE_SECONDS = 5, 2, 0.3
PUBLISHED = {
    "erfnet": "erfnet_void20.pth",
    "enet": "enet_void20.pth",
    "midenet": "midenet_void20.pth",
}
TITLES = {
    "torch": "torch eager float32, torch scoring",
    "onnxruntime": "ONNX Runtime float32, numpy scoring",
    "openvino": "OpenVINO INT8 (NNCF), numpy scoring",
    "openvino_scored": "OpenVINO INT8 (NNCF), scoring in the graph",
    "ours_onnxruntime": "edgeseg INT8 bundle on ONNX Runtime",
    "ours": "edgeseg INT8 bundle on OpenVINO",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--weights", type=Path, help="folder of the published checkpoints")
    parser.add_argument("--calibration", type=Path, help="folder of frames; default: our scenes")
    parser.add_argument("--frames", type=int, default=30, help="measured frames a pipeline")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip", nargs="*", default=[], choices=TITLES)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    print(f"{machine['cpu']}, {options.threads} threads; {machine['versions']}\n")
    print(f"{HEIGHT}x{WIDTH}, one frame at a time, median of {options.frames} interleaved frames\n")
    results = {}
    for name in options.networks:
        results[name] = bench(name, options)
        print(table(name, results[name]), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine, "threads": options.threads, "networks": results}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def bench(name: str, options: argparse.Namespace) -> dict[str, Any]:
    network = _network(name, options.weights)
    frames = _frames(options.calibration)
    makers: dict[str, Callable[[], Pipeline]] = {
        "torch": lambda: torch_eager(network),
        "onnxruntime": lambda: onnxruntime_float(network, HEIGHT, WIDTH, options.threads),
        "openvino": lambda: openvino_int8(network, frames, options.threads),
        "openvino_scored": lambda: openvino_int8_scored(network, frames, options.threads),
    }
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipelines = {k: make() for k, make in makers.items() if k not in options.skip}
        calibration = Path(folder) / "frames"
        _save(frames, calibration)
        export_bundle(network, Path(folder) / "b", precision="int8", calibration=calibration)
        sessions = {
            key: Session(
                Path(folder) / "b", backend=backend, threads=options.threads, scorer="void"
            )
            for key, backend in (("ours_onnxruntime", "onnxruntime"), ("ours", "openvino"))
            if key not in options.skip
        }
        stages: list[dict[str, float]] = []

        def ours(session: Session, keep: bool) -> Pipeline:
            def run(frame: Any) -> tuple[Any, Any]:
                result = session.run(frame)
                if keep:
                    stages.append(result.timings)
                return result.class_map, result.score

            return run

        for key, session in sessions.items():
            pipelines[key] = ours(session, key == "ours")
        gc.collect()
        times = _interleave(pipelines, frames, options.frames)
        for session in sessions.values():
            session.close()
    # Stages are kept for every frame, the uncounted ones included: their median is the same.
    base = _turn_medians(times["ours"])
    rows = {
        key: {
            "ms": float(np.median(values)),
            "ratio": float(np.median(_turn_medians(values) / base)),
        }
        for key, values in times.items()
    }
    split = {key: float(np.median([s[key] for s in stages])) for key in ("body", "head")}
    return {"rows": rows, "stages_ms": split, "weights": _weights_name(name, options.weights)}


def _turn_medians(values: list[float]) -> Any:
    return np.median(np.array(values).reshape(-1, BURST), axis=1)


def table(name: str, result: dict[str, Any]) -> str:
    lines = [
        f"**{name}** ({result['weights']}; ours: body {result['stages_ms']['body']:.1f} ms, "
        f"head {result['stages_ms']['head']:.1f} ms)",
        "",
        "| pipeline | ms/frame | FPS | slower than ours |",
        "|---|---:|---:|---:|",
    ]
    for key, row in result["rows"].items():
        ratio = "" if key == "ours" else f"{row['ratio']:.2f}x"
        lines.append(f"| {TITLES[key]} | {row['ms']:.1f} | {1000 / row['ms']:.1f} | {ratio} |")
    return "\n".join(lines) + "\n"


def _interleave(
    pipelines: dict[str, Pipeline], frames: list[Any], count: int
) -> dict[str, list[float]]:
    for run in pipelines.values():
        for _ in range(3):
            run(frames[0])
    times: dict[str, list[float]] = {key: [] for key in pipelines}
    turns = -(-count // BURST)
    for turn in range(turns):
        for key, run in pipelines.items():
            time.sleep(PAUSE_SECONDS)
            for i in range(-WARM, BURST):
                start = time.perf_counter()
                class_map, score = run(frames[i % len(frames)])
                if i >= 0:
                    times[key].append(1000 * (time.perf_counter() - start))
                assert (class_map.dtype, score.dtype) == (np.uint8, np.float16), key
        if sys.stderr.isatty():
            print(f"\r{turn + 1}/{turns}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    return times


def _network(name: str, weights: Path | None) -> Network:
    if weights is not None and name in PUBLISHED:
        return load_network(name, weights / PUBLISHED[name])
    torch.manual_seed(0)
    network = build(name).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Fresh BatchNorms would let activations grow or vanish with depth.
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
    return network


def _weights_name(name: str, weights: Path | None) -> str:
    return PUBLISHED[name] if weights is not None and name in PUBLISHED else "random weights"


def _frames(folder: Path | None) -> list[Any]:
    if folder is None:
        return [scene(seed, HEIGHT, WIDTH)[0] for seed in range(8)]
    from edgeseg.export.exporter import calibration_frames

    return calibration_frames(folder, HEIGHT, WIDTH, 10)


def _save(frames: list[Any], folder: Path) -> None:
    import cv2

    folder.mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i}.png"), frame)


if __name__ == "__main__":
    main()
