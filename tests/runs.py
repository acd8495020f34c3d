"""Training runs of seconds: a recipe of drawn scenes, and what a run leaves."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgeseg.networks.base import Network
from edgeseg.training.initial import fresh_network
from edgeseg.training.loop import Options, Outcome, train
from edgeseg.training.recipe import Data, Optimizer, Recipe, Source, Stage

__all__ = [
    "PLAIN",
    "TOML",
    "differing",
    "final",
    "records",
    "run",
    "scenes",
    "start_program",
    "tensors",
    "tiny",
]

CROP = (64, 128)
PLAIN = Options(workers=0, threads=1, device="cpu", precision="float32")
COUNTER = "num_batches_tracked"

TOML = """
schema = "edgeseg.recipe/1"
checkpoint_every = 7
[data]
crop = "64x128"
batch = 2
[[data.source]]
folder = "synthetic"
count = 8
size = "64x128"
scale = [0.75, 1.5]
[augment]
colour = 0.5
noise = 0.5
[optimizer]
lr = 2e-3
clip = 5.0
[[stage]]
steps = 20
"""


def scenes(**changes: Any) -> Source:
    """Eight drawn scenes of 64x128."""
    return Source(**{"folder": "synthetic", "count": 8, "size": "64x128", **changes})


def tiny(network: str = "midenet", *, data: Any = (), source: Any = (), **changes: Any) -> Recipe:
    """A recipe of eight steps; ``data`` and ``source`` are mappings of what differs there."""
    default = Recipe(
        network=network,
        name="tiny",
        seed=5,
        checkpoint_every=3,
        data=Data(crop="64x128", validation_size="64x128", batch=2, source=(scenes(),)),
        optimizer=Optimizer(lr=5e-3, clip=5.0),
        stage=(Stage(steps=8),),
    )
    chosen = replace(default.data, source=(scenes(**dict(source)),))
    return replace(default, data=replace(chosen, **dict(data)), **changes)


def run(
    recipe: Recipe,
    output: Path,
    net: Network | None = None,
    *,
    data: Path | None = None,
    teacher: Network | None = None,
    **options: Any,
) -> Outcome:
    """Train in this process, from the recipe's random weights if no others are given."""
    return train(
        recipe,
        data,
        output,
        net or fresh_network(recipe),
        teacher=teacher,
        options=replace(PLAIN, **options),
    )


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """What a safetensors file holds."""
    from safetensors.torch import load_file

    return load_file(path)


def final(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run left; there is one file of them."""
    (path,) = folder.glob("*.safetensors")
    return tensors(path)


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are not equal, bit for bit."""
    assert a.keys() == b.keys()
    return {k for k in a if not torch.equal(a[k], b[k])}


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without their times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k != "elapsed_s"} for r in found]


def start_program(*arguments: Any) -> subprocess.Popen[str]:
    """``python -m edgeseg`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgeseg", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
