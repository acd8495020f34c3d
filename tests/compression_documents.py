"""A document of the compression table, with figures that a test chooses."""

import sys
from typing import Any

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import compression_measures as measures
import compression_table

__all__ = ["SETS", "document", "row"]

SETS = ["cityscapes", "cityscapes256", "RoadAnomaly21", "RoadObsticle21", "fs_static"]


def row(key: str, lost: float = 0.0, ms: float = 40.0, **counts: float) -> dict[str, Any]:
    """A row whose figures are ``lost`` points worse than those of ``row("float32")``."""
    pair = [20.0 - lost, 50.0 + lost]
    accuracy = {
        name: {"frames": 5, "miou_percent": 60.0 - lost}
        if name in measures.MIOU_SETS
        else {"frames": 9, "scorers": {s: list(pair) for s in measures.SCORERS}}
        for name in SETS
    }
    speed = {e: {"ms": ms, "fps": 1000 / ms, "times_faster": 40.0 / ms} for e in measures.ENGINES}
    usual = {
        "params": 2_000_000,
        "macs": 2e9,
        "macs_deployed": 2e9,
        "macs_integer": 0,
        "bytes": 8e6,
    }
    return {
        "form": key, "title": key, "commands": [], "counts": {**usual, **counts},
        "accuracy": accuracy, "speed": speed,
    }  # fmt: skip


def document(*given: dict[str, Any], noise_costs: float = 0.0, **entry: Any) -> dict[str, Any]:
    noise = {"fs_static": row("", noise_costs)["accuracy"]["fs_static"]}
    weights = {"file": "erfnet.pth", "weights_name": "mine", "license": ""}
    return {
        "schema": compression_table.SCHEMA,
        "machine": {"cpu": "a CPU (2 cores)", "versions": "torch 2", "kernels": "avx2"},
        "threads": 2, "every": 1, "engine": "openvino", "turns": 12, "sets": SETS,
        "settings": {
            "amount": 0.3, "finetune_steps": {"erfnet": 9}, "distill_steps": 0, "int8_options": "",
            "calibration": "frames", "size": "512x1024",
        },
        "networks": {
            "erfnet": {"weights": weights, "rows": list(given), "noise": noise, **entry},
            "enet": {"weights": None, "rows": []},
        },
    }  # fmt: skip
