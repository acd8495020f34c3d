"""Whether ``edgeseg profile --check`` catches what it should, on a machine that others use.

    python tools/check_regression_trials.py --trials 20

While another process loads one core, each trial runs the command on a bundle that did not change
(must pass, exit 0) and on slowed ones (must fail, exit 6):

- ``layer``: one more 3x3 convolution in the body;
- ``float``: float32 in place of INT8, of the same network;
- ``slower``: the same graph and counts, but every frame takes 30% longer, for the latency ratio
  alone (a backend in this process that waits).

Prints a table and exits with 1 unless every trial went as it must. Needs torch and onnx to build
the bundles: MiDE-Net at 256x512, so that 80 runs take minutes. No quiet machine is needed: the
baseline is taken under the same load, once.
"""

import argparse
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeseg.bundle import BODY, CALIBRATION, HEAD, Bundle, write_bundle
from edgeseg.export.exporter import export_bundle
from edgeseg.networks.checkpoints import load_network
from edgeseg.networks.zoo import shipped_calibration, shipped_weights
from edgeseg.profiling.budgets import judge, read_baseline
from edgeseg.profiling.latency import ratios
from edgeseg.runtime.ready import ready_bundle
from edgeseg.runtime.session import Session

HEIGHT, WIDTH = 256, 512
LOAD = "while True: sum(i * i for i in range(10000))"
SLOWER = 1.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--skip", nargs="*", default=[], choices=("layer", "float", "slower"))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="edgeseg-") as folder, load():
        root = Path(folder)
        bundles = make_bundles(root)
        baseline = root / "baseline.json"
        code, text = run(bundles["same"], options, "--save-baseline", str(baseline))
        if code:
            print(text)
            return 1
        wanted = {"same": 0, "layer": 6, "float": 6, "slower": 6}
        right = dict.fromkeys(wanted, 0)
        for trial in range(options.trials):
            for name, expected in wanted.items():
                if name in options.skip:
                    continue
                if name == "slower":
                    code, text = slowed(bundles["same"], options, baseline)
                else:
                    code, text = run(bundles[name], options, "--check", "--baseline", str(baseline))
                right[name] += code == expected
                if code != expected:
                    print(f"trial {trial}, {name}: exit {code} instead of {expected}\n{text}")
    print("| bundle | must | right |\n| --- | --- | ---: |")
    for name, expected in wanted.items():
        if name not in options.skip:
            must = "pass" if expected == 0 else "be caught"
            print(f"| {name} | {must} | {right[name]} of {options.trials} |")
    return int(any(right[n] != options.trials for n in wanted if n not in options.skip))


@contextmanager
def load() -> Any:
    """Another process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", LOAD])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def make_bundles(root: Path) -> dict[str, Path]:
    weights, ranges = shipped_weights("midenet"), shipped_calibration("midenet")
    assert weights is not None
    network = load_network("midenet", weights)
    size = {"height": HEIGHT, "width": WIDTH}
    same = export_bundle(network, root / "same", precision="int8", calibration=ranges, **size)
    export_bundle(network, root / "float", **size)
    return {"same": root / "same", "float": root / "float", "layer": deeper(same, root / "layer")}


def deeper(bundle: Bundle, folder: Path) -> Path:
    """The bundle with a 3x3 convolution in front of its features that changes nothing."""
    model = onnx.load(str(bundle.body_path))
    graph = model.graph
    last = max(i for i, n in enumerate(graph.node) if n.op_type == "Conv")
    output = graph.node[last].output[0]
    channels = bundle.head.num_outputs
    weight = np.zeros((channels, channels, 3, 3), np.float32)
    weight[range(channels), range(channels), 1, 1] = 1
    graph.initializer.append(numpy_helper.from_array(weight, "more_weight"))
    graph.node[last].output[0] = "before_more"
    more = helper.make_node("Conv", ["before_more", "more_weight"], [output], pads=[1] * 4)
    graph.node.insert(last + 1, more)
    names = (HEAD, CALIBRATION)
    files = {n: (bundle.path / n).read_bytes() for n in names if n in bundle.manifest.files}
    manifest = replace(bundle.manifest, files={})
    return write_bundle(folder, manifest, {**files, BODY: model.SerializeToString()})


def run(bundle: Path, options: argparse.Namespace, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "edgeseg", "profile", str(bundle), *more]
    command += ["--backend", options.backend, "--threads", str(options.threads)]
    command += ["--seconds", str(options.seconds), "--budget-ms", "100000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def slowed(bundle: Path, options: argparse.Namespace, baseline: Path) -> tuple[int, str]:
    """The same counts, each frame longer: only the ratio can tell.

    The ratio that it is held to is taken in this process too, where other threads run than in one
    of ``edgeseg profile``.
    """
    stored = read_baseline(baseline)
    ((_, before),) = stored["rows"].items()
    with (
        Session(bundle, options.backend, options.threads) as session,
        Session(ready_bundle(), options.backend, options.threads) as reference,
    ):
        plain, unslowed = session.run, ratios(session, reference, 12)

        def run_slowly(frame: Any) -> Any:
            start = time.perf_counter()
            result = plain(frame)
            until = start + SLOWER * (time.perf_counter() - start)
            while time.perf_counter() < until:
                pass
            return result

        session.run = run_slowly  # type: ignore[method-assign]
        samples = ratios(session, reference, 12)
        describe = session.describe()
        threads, scorer = session.threads, session.scorer
    before["ratio"] = {
        "reference": stored["reference"],
        "median": float(np.median(unslowed)),
        "samples": unslowed.tolist(),
    }
    row = {
        **{k: describe[k] for k in ("network", "precision", "size")},
        "scorer": scorer,
        "backend": options.backend,
        "threads": threads,
        "kind": "measured",
        "verdict": "comparable",
        "counts": before,
        "file_bytes": before["file_bytes"],
        "latency_ms": {"p99": 0.0},
        "budget_ms": 1.0,
        "ratio": {
            "reference": stored["reference"],
            "median": float(np.median(samples)),
            "samples": samples.tolist(),
        },
    }
    findings = judge([row], stored)
    exceeded = [f for f in findings if f.exceeded]
    return (6 if exceeded else 0), json.dumps([(f.figure, f.value, f.limit) for f in findings])


if __name__ == "__main__":
    sys.exit(main())
