"""Measurements of the compression table: accuracy, time, operations, bytes.

Each is written to the store as it is made, under the sha256 of what it was made on, so that a run
that was stopped goes on and what did not change is not measured again.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.bundle import Bundle
from edgeseg.cli.eval_targets import open_target
from edgeseg.compression.fx_folder import WEIGHTS, is_fx_folder, read_manifest
from edgeseg.compression.noise import add_noise
from edgeseg.data import AnomalySet, open_cityscapes
from edgeseg.errors import EdgesegError
from edgeseg.evaluation.evaluate import Prediction, Predictor
from edgeseg.evaluation.state import ScorerSpec
from edgeseg.export.graph import Graph
from edgeseg.runtime.machine import cpu_model
from reproduce_figures import CITYSCAPES, CITYSCAPES256, SETS, measure

MIOU_SETS = {CITYSCAPES[0]: CITYSCAPES[2], CITYSCAPES256[0]: CITYSCAPES256[2]}
"""Folders with semantic labels, and which share of their frames is taken."""
ENGINES = ("onnxruntime", "openvino")
FX_ENGINE = "torch-fx"
SCORERS = ("void", "msp", "maxlogit", "entropy")
BURST, WARM, PAUSE_SECONDS = 5, 2, 0.3

Json = dict[str, Any]


class Store:
    """Measurements by key, in a file that is always whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: Json = {}
        if path.is_file():
            self.entries = json.loads(path.read_text(encoding="utf-8"))

    def forget(self, kind: str) -> None:
        """Let go of what was measured under keys that begin with this word."""
        self.entries = {k: v for k, v in self.entries.items() if not k.startswith(f"{kind} ")}

    def put(self, key: str, value: Json) -> None:
        """Remember a measurement, and write the file."""
        self.entries[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.entries, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def digest(path: Path) -> str:
    """Sha256 of what decides an artefact's figures: its files, and the type it computes in."""
    if is_fx_folder(path):
        document, recipe = read_manifest(path)
        parts = [document["files"][WEIGHTS]["sha256"], repr(recipe)]
    else:
        manifest = Bundle.open(path).manifest
        names = ("body.onnx", "head.safetensors")
        parts = [*(manifest.files[n]["sha256"] for n in names), manifest.compute_precision]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def known_sets(data: Path) -> tuple[str, ...]:
    """Both Cityscapes folders, the three anomaly sets, and what else lies beside these."""
    anomaly = data / "anomaly"
    there = [p.name for p in sorted(anomaly.iterdir())] if anomaly.is_dir() else []
    more = [n for n in there if n not in SETS and (anomaly / n / "labels_masks").is_dir()]
    return (*MIOU_SETS, *SETS, *more)


class Noisy:
    """A predictor whose frames have uniform noise of +-``level`` grey levels."""

    def __init__(self, predictor: Predictor, level: int) -> None:
        self._inner, self._level, self._seed = predictor, level, 0
        self.network, self.precision = predictor.network, predictor.precision
        self.artefact, self.backend = predictor.artefact, predictor.backend
        self.score_dtype, self.scorers = predictor.score_dtype, predictor.scorers

    def predict(self, frame: npt.NDArray[np.uint8], scorers: Sequence[ScorerSpec]) -> Prediction:
        """As of the other, with noise of its own for every frame."""
        self._seed += 1
        return self._inner.predict(add_noise(frame, self._level, self._seed), scorers)


class Accuracy:
    """Measures artefacts on data sets."""

    def __init__(
        self,
        store: Store,
        data: Path,
        every: int,
        engine: str,
        threads: int | None,
        run: Callable[..., Any] = measure,
        opener: Callable[..., Any] = open_target,
    ) -> None:
        self.store, self.data, self.every = store, data, every
        self.engine, self.threads = engine, threads
        self.run, self.opener = run, opener

    def measure(self, network: str, path: Path, sets: Sequence[str], noise: int = 0) -> Json:
        """Figures of every set, as far as its folder is there.

        ``{set: {"frames", "miou_percent"}}`` or ``{set: {"frames", "scorers": {name: [AuPRC,
        FPR95]}}}``, percent; a figure that the frames do not define is ``None``.
        """
        fx = is_fx_folder(path)
        engine = FX_ENGINE if fx else self.engine
        more = f" noise {noise}" if noise else ""
        keys = {
            name: f"accuracy {digest(path)} {name} every {self.every} on {engine}{more}"
            for name in sets
            if self.folder(name).is_dir()
        }
        todo = [name for name, key in keys.items() if key not in self.store.entries]
        if todo:
            with ExitStack() as stack:
                target = (network, path) if fx else (str(path), None)
                size = (512, 1024) if fx else None
                predictor, size, _ = self.opener(
                    stack, *target, engine, self.threads, size, "float32"
                )
                if noise:
                    predictor = Noisy(predictor, noise)
                for name in todo:
                    self.store.put(keys[name], self._one(predictor, name, size))
        return {name: self.store.entries[key] for name, key in keys.items()}

    def folder(self, name: str) -> Path:
        """Where a set lies."""
        return self.data / name if name in MIOU_SETS else self.data / "anomaly" / name

    def _one(self, predictor: Predictor, name: str, size: tuple[int, int]) -> Json:
        if name in MIOU_SETS:
            data, every = open_cityscapes(self.folder(name)), MIOU_SETS[name] * self.every
            state = self.run(predictor, data, [], size, every, "runtime")
            return {"frames": state.frames, "miou_percent": _rounded(state.miou_percent())}
        specs = [ScorerSpec(s) for s in SCORERS if s in predictor.scorers]
        data = AnomalySet(self.folder(name))
        state = self.run(predictor, data, specs, size, self.every, "runtime")
        scorers = {
            r["scorer"]: [_rounded(r["auprc_percent"]), _rounded(r["fpr95_percent"])]
            for r in state.results()
        }
        return {"frames": state.frames, "scorers": scorers}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


class Speed:
    """Times artefacts side by side: five frames of each in turn, on every engine."""

    def __init__(
        self,
        store: Store,
        frames: Sequence[npt.NDArray[np.uint8]],
        turns: int,
        threads: int | None,
        opener: Callable[..., Any] | None = None,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self.store, self.frames, self.turns, self.threads = store, frames, turns, threads
        self._open = opener or open_pipelines
        self._pause = pause_seconds

    def measure(self, network: str, paths: Mapping[str, Path]) -> dict[str, dict[str, Json]]:
        """``{row: {engine: {"ms", "fps", "times_faster"}}}`` of what is to stand side by side.

        ``times_faster`` is against the row ``float32`` on the same engine: the median over the
        turns of the ratio within a turn, which a machine that slows down leaves alone.
        """
        wanted = json.dumps(
            [[n, digest(p)] for n, p in sorted(paths.items())] + [self.threads, cpu_model()]
        )
        key = f"speed {hashlib.sha256(wanted.encode()).hexdigest()}"
        entry = self.store.entries.get(key, {"measured": "", "turns": []})
        if len(entry["turns"]) < self.turns:
            with self._open(network, paths, self.threads) as pipelines:
                for run in pipelines.values():
                    run(self.frames[0])
                while len(entry["turns"]) < self.turns:
                    entry["turns"].append(self._turn(pipelines, len(entry["turns"])))
                    entry["measured"] = time.strftime("%Y-%m-%d")
                    self.store.put(key, entry)
        return summarize(entry["turns"])

    def _turn(self, pipelines: Mapping[str, Callable[..., Any]], turn: int) -> dict[str, float]:
        """Median milliseconds of each; who begins changes from turn to turn."""
        names = list(pipelines)
        first = turn % len(names)
        medians = {}
        for name in (*names[first:], *names[:first]):
            # The threads of the one before spin a little.
            time.sleep(self._pause)
            times = []
            for i in range(WARM + BURST):
                begin = time.perf_counter()
                pipelines[name](self.frames[i % len(self.frames)])
                times.append(1000 * (time.perf_counter() - begin))
            medians[name] = round(float(np.median(times[WARM:])), 4)
        print(f"turn {turn + 1} of {self.turns}: {len(names)} pipelines", file=sys.stderr)
        return medians


def summarize(turns: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Json]]:
    """Medians over turns whose keys are ``row engine``."""
    found: dict[str, dict[str, Json]] = {}
    for name in turns[0]:
        row, _, engine = name.partition(" ")
        ms = float(np.median([t[name] for t in turns]))
        base = f"float32 {engine}"
        faster = float(np.median([t[base] / t[name] for t in turns])) if base in turns[0] else None
        found.setdefault(row, {})[engine] = {"ms": ms, "fps": 1000 / ms, "times_faster": faster}
    return found


@contextmanager
def open_pipelines(
    network: str, paths: Mapping[str, Path], threads: int | None
) -> Iterator[dict[str, Callable[..., Any]]]:
    """Every artefact on every engine that runs it: from a frame to class map and score."""
    from edgeseg.runtime.session import Session

    with ExitStack() as stack:
        pipelines: dict[str, Callable[..., Any]] = {}
        for row, path in paths.items():
            if is_fx_folder(path):
                predictor, _, _ = open_target(
                    stack, network, path, FX_ENGINE, threads, (512, 1024), "float32"
                )
                specs = [ScorerSpec("void" if "void" in predictor.scorers else "msp")]
                pipelines[f"{row} {FX_ENGINE}"] = lambda f, p=predictor, s=specs: p.predict(f, s)
                continue
            for engine in ENGINES:
                try:
                    session = stack.enter_context(Session(path, backend=engine, threads=threads))
                except EdgesegError as error:
                    print(f"{network} {row} on {engine}: {error}", file=sys.stderr)
                    continue
                pipelines[f"{row} {engine}"] = session.run
        yield pipelines


def counts(path: Path, report: Mapping[str, Any] | None = None) -> Json:
    """Parameters, multiply-accumulates and bytes of an artefact.

    ``macs`` are those of the network, as ``edgeseg profile`` counts them; ``macs_integer`` those of
    them that are int8 by int8: all but what the file computes in float. ``macs_deployed``: of the
    graph in the file, which lacks filters that are all zero, and in which an INT8 initial block has
    another form. ``bytes``: what must be on the device.

    Args:
        path: bundle, or folder that ``edgeseg quantize`` wrote.
        report: what ``edgeseg quantize --json`` printed.
    """
    if is_fx_folder(path):
        assert report is not None
        given = report["counts"]
        whole = given["macs_integer"] + given["macs_float"]
        size = sum(p.stat().st_size for p in path.iterdir())
        return {
            "params": given["params"],
            "macs": whole,
            "macs_integer": given["macs_integer"],
            "macs_deployed": whole,
            "bytes": size,
        }
    bundle = Bundle.open(path)
    integer, floating = body_macs(onnx.load(bundle.body_path))
    head = bundle.head
    if head.weight is not None:
        pixels = (bundle.size[0] // head.factor) * (bundle.size[1] // head.factor)
        floating += pixels * head.weight.size
    macs = bundle.manifest.counts["macs"]
    return {
        "params": bundle.manifest.counts["params"],
        "macs": macs,
        "macs_integer": macs - floating if integer else 0,
        "macs_deployed": integer + floating,
        "bytes": bundle.file_bytes,
    }


def body_macs(model: onnx.ModelProto) -> tuple[int, int]:
    """Multiply-accumulates of a body's convolutions: of integers by integers, and the others.

    Convolutions that stand for moving or comparing values, as in INT8 ENets, are left out; the
    float graph has none for them.
    """
    graph = Graph(model)
    graph.infer_shapes()
    integer = floating = 0
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        value, weight = (graph.producer(i) for i in node.input[:2])
        rounded = weight is not None and weight.op_type == "DequantizeLinear"
        taps = graph.constants.get(weight.input[0] if weight and rounded else node.input[1])
        if taps is not None and _only_moves(taps):
            continue
        pixels = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        shape = graph.shapes[node.input[1]]
        macs = int(np.prod(graph.shapes[pixels])) * int(np.prod(shape[1:]))
        if rounded and value is not None and value.op_type == "DequantizeLinear":
            integer += macs
        else:
            floating += macs
    return integer, floating


def _only_moves(weight: npt.NDArray[Any]) -> bool:
    """Whether every filter has one or two taps of many that are not zero."""
    taps = np.count_nonzero(weight.reshape(len(weight), -1), axis=1)
    return bool(weight[0].size > 8 and (taps > 0).all() and (taps <= 2).all())
