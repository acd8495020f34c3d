"""Sets, times and costs for tests of the accuracy gate, and a bench that computes nothing."""

import cv2
import numpy as np

from edgeseg.compression.gate import Figure, Verdict
from edgeseg.compression.gate_data import open_gate_data
from edgeseg.compression.gate_options import GateOptions
from edgeseg.compression.groups import Group
from edgeseg.compression.label_free import ScoreChange
from edgeseg.compression.sensitivity import GroupCost
from edgeseg.export.exporter import export_bundle
from edgeseg.taxonomy import IGNORE
from tests.exported import HEIGHT, WIDTH, frames, network, torch_logits
from tests.test_sensitivity import certain

__all__ = [
    "CHANGE",
    "QUIET",
    "SIZE",
    "Pretend",
    "anomaly_set",
    "cost_of",
    "costs_of",
    "export",
    "figure",
    "fill",
    "labelled_set",
    "names",
    "write",
]

SIZE = (HEIGHT, WIDTH)
QUIET = {"backend": "onnxruntime", "threads": 1}


# --- folders


def write(folder, name, image, label, masks):
    for kind, content in (("images", image), (masks, label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / kind / f"{name}.png"), content)


def anomaly_set(folder, count=3, seed=20):
    """Frames whose label says "anomaly" where the network's own score is high, and noise."""
    rng = np.random.default_rng(seed)
    for index, frame in enumerate(frames(count, seed=seed)):
        logits = torch_logits(network("midenet"), frame)
        score = -logits[:19].max(0) + rng.normal(0, 0.5, SIZE)
        label = (score > np.quantile(score, 0.9)).astype(np.uint8)
        label[:4] = IGNORE
        write(folder, str(index), frame, label, "labels_masks")
    return folder


def labelled_set(folder, count=2, seed=30):
    for index, frame in enumerate(frames(count, seed=seed)):
        label = torch_logits(network("midenet"), frame)[:19].argmax(0).astype(np.uint8)
        label[:4] = IGNORE
        write(folder, str(index), frame, label, "labels")
    return folder


def fill(folder):
    """An anomaly set, a labelled one, and a folder that is neither."""
    anomaly_set(folder / "anomaly" / "Odd")
    labelled_set(folder / "Streets")
    (folder / "weights").mkdir()
    return folder


# --- figures and costs


CHANGE = ScoreChange(0.5, 1.0)


def figure(drop, name="fpr95_percent", dataset="a"):
    sign = -1 if name == "fpr95_percent" else 1
    return Figure(dataset, None if "miou" in name else "msp", name, 50.0, 50.0 - sign * drop)


def cost_of(name, drop, time, max_drop):
    """What a group costs and buys where the allowed drop is ``max_drop``."""
    alone = Verdict((figure(drop),), CHANGE, None, max_drop)
    return GroupCost(Group(name, (f"/{name}",)), alone, time)


def costs_of(table, max_drop=10.0):
    """``name: (cost, ms)`` as group costs."""
    return [
        cost_of(name, drop, certain(1 + ms / 20), max_drop) for name, (drop, ms) in table.items()
    ]


class Pretend:
    """A bench and gate in which the drop is what the integer groups cost together."""

    def __init__(self, costs, max_drop, refuse=()):
        self.costs, self.max_drop, self.refuse = costs, max_drop, refuse
        self.backend, self.compute_precision = "pretended", "f32"
        self.seen = []

    def int8(self, keep=()):
        return frozenset(g.name for g in keep)

    def open(self, names):
        from contextlib import nullcontext

        from edgeseg.errors import ArtefactError

        if names in self.refuse:
            raise ArtefactError("crashed")
        return nullcontext(names)

    def judge(self, names, *, stop_early=False):
        del stop_early
        self.seen.append(names)
        drop = sum(c for name, c in self.costs.items() if name not in names)
        return Verdict((figure(drop),), CHANGE, None, self.max_drop)


def names(result):
    return {g.name for g in result.keep}


# --- exports


def export(destination, data, calibration, max_drop, **options):
    gate = GateOptions(
        max_drop,
        open_gate_data([data]),
        **{"max_noise": None, "compute_precision": "f32", **QUIET, **options},
    )
    return export_bundle(
        network("midenet"),
        destination,
        height=HEIGHT,
        width=WIDTH,
        precision="int8",
        calibration=calibration,
        gate=gate,
    )
