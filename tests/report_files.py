"""A folder of results for ``edgeseg report``, written by the code that writes them for users."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.cli.profile_job import Request, run_profile
from edgeseg.evaluation.report import document
from edgeseg.evaluation.state import EvaluationState, Identity, ScorerSpec
from edgeseg.runtime.job import Job, run_job
from edgeseg.taxonomy import NUM_KNOWN
from tests.bundles import make_bundle

__all__ = ["evaluation", "fill"]


def evaluation(
    *, curves: bool = False, auprc: float | None = None, curve: Any = None, **identity: Any
) -> dict[str, Any]:
    """An ``eval --json`` document of drawn scores; ``size`` is ``HxW``, ``curve`` goes into it."""
    size = identity.pop("size", "64x128").split("x")
    found = document(_state(height=int(size[0]), width=int(size[1]), **identity), curves=curves)
    if auprc is not None:
        for row in found["results"]:
            row["auprc_percent"] = auprc
    if curve is not None:
        found["results"][0]["curve"] = curve
    return found


def _state(**changes: Any) -> EvaluationState:
    plain = {
        "network": "erfnet", "artefact": "c" * 64, "precision": "int8", "backend": "onnxruntime",
        "dataset": "street", "kind": "anomaly", "protocol": "paper", "height": 64, "width": 128,
        "resize": "runtime", "every": 1, "selection": "", "score_dtype": "float32",
        "components": False, "scorers": (ScorerSpec("void"), ScorerSpec("msp", 2.0)),
    }  # fmt: skip
    state = EvaluationState(Identity(**{**plain, **changes}), (1, 1), NUM_KNOWN)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    state.frames = 5
    for metric in state.metrics:
        label = (rng.random(4000) < 0.1).astype(np.uint8)
        metric.update(rng.normal(size=4000) + label, label)
    return state


def fill(folder: Path, state: Path | None = None) -> Path:
    """Results of every command in ``folder``; ``state``: the evaluation as a state file alone."""
    if state is not None:
        _state().save(state)
        return folder
    folder.mkdir(exist_ok=True)
    bundle = make_bundle(folder.parent / "bundle")
    same = {"precision": "float32", "artefact": Bundle.open(bundle).network_sha256}
    options = {"backend": "onnxruntime", "threads": 1, "seconds": 0.1}
    documents = {
        "measured": run_profile(Request(targets=[str(bundle)], layers=True, **options)),  # type: ignore[arg-type]
        "estimated": run_profile(
            Request(targets=["midenet", "enet"], device="orin-nano-8", layers=True)
        ),
        "anomaly": evaluation(curves=True, network="erfnet", **same),
        "semantic": evaluation(kind="semantic", scorers=(), dataset="city", **same),
        "gate": _gate(),
        "table": _table(),
        "doctor": {"schema": "edgeseg.doctor/1"},
    }
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    _run(bundle, folder)
    (folder / "train.jsonl").write_text('{"step": 1, "loss": 2.0}\n' * 3)
    (folder / "notes.txt").write_text("a note")
    return folder


def _run(bundle: Path, folder: Path) -> None:
    frames = folder.parent / "frames"
    frames.mkdir()
    rng = np.random.default_rng(1)
    for index in range(3):
        frame = rng.integers(0, 256, (64, 128, 3), dtype=np.uint8)
        cv2.imwrite(str(frames / f"{index}.png"), frame)
    run_job(
        Job(
            uri=str(frames),
            bundle=bundle,
            backend="onnxruntime",
            threads=1,
            save=folder / "saved",
            jsonl=folder / "run.jsonl",
        )
    )


def _gate() -> dict[str, Any]:
    figure = {
        "dataset": "street", "scorer": "void", "figure": "auprc_percent", "float32_percent": 31.0,
        "int8_percent": 29.0, "bundle_percent": 30.5, "drop_points": 0.5,
    }  # fmt: skip
    return {
        "schema": "edgeseg.gate/1",
        "max_drop_points": 1.0,
        "engine": {"backend": "openvino", "threads": 2},
        "figures": [figure],
        "held_out": [figure | {"dataset": "forest"}],
        "groups": [{}, {}],
        "kept_float": ["initial"],
        "compute_precision": "f32",
        "body_ms": {"float32": 30.0, "int8": 10.0, "bundle": 12.0},
    }


def _table() -> dict[str, Any]:
    def row(form: str, ms: float, auprc: float) -> dict[str, Any]:
        return {
            "form": form, "title": form, "counts": {"params": 5, "macs": 1e9, "bytes": 9},
            "accuracy": {"street": {"frames": 5, "scorers": {"void": [auprc, None]}},
                         "city": {"frames": 5, "miou_percent": 40.0}},
            "speed": {"openvino": {"ms": ms, "fps": 1000 / ms, "times_faster": None}},
        }  # fmt: skip

    failed = {"form": "fx", "title": "FX", "commands": [], "problem": "no such thing"}
    return {
        "schema": "edgeseg.compression-table/1",
        "machine": {"cpu": "a processor (2 cores)"},
        "settings": {"size": "64x128"},
        "sets": ["street", "city"],
        "networks": {
            "enet": {"rows": [row("float32", 30, 30.0), row("int8", 10, 29.0), failed]},
            "erfnet": {"weights": None, "rows": []},
        },
    }
