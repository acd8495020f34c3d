"""What an accuracy gate asks for, and how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseg.compression.groups import Granularity
from edgeseg.compression.int8_recovery import RecoveryOptions
from edgeseg.compression.search import MAX_LOOKS
from edgeseg.data import Dataset
from edgeseg.errors import UsageError

__all__ = ["GateOptions"]


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What the gate asks for, and how it looks."""

    max_drop: float
    """Points that AuPRC, FPR95 and mIoU may lose, each."""
    data: Sequence[Dataset]
    """Labelled sets that decide."""
    held_out: Sequence[Dataset] = ()
    """Labelled sets that are reported only."""
    every: int | None = None
    """Take every n-th frame of each set; ``None``: at most a hundred of each, evenly spread."""
    max_noise: float | None = 2.0
    """Scores may change, by the measure without labels, as much as they do in the float network by
    uniform input noise of so many grey levels; ``None``: no limit. Two are what a camera adds by
    itself: with 40 dB between signal and noise, 1% of full scale is 2.5.
    """
    max_give_back: float = 100.0
    """How much of INT8's gain in time may be given back, percent, by the groups' own times; from
    100 on there is no limit, but something stays integer.
    """
    granularity: Granularity = "block"
    backend: str = "auto"
    threads: int | None = None
    compute_precision: str = "auto"
    """Of groups left in float: ``f32``, ``bf16`` or ``auto``."""
    frames: int = 8
    """Frames for the measure without labels, at most."""
    max_looks: int = MAX_LOOKS
    recovery: RecoveryOptions | None = None
    """Where INT8 throughout does not hold, train it on the float network's outputs; where that
    does not suffice and the search finds nothing either, train the nearest that it found.
    """

    def check(self) -> None:
        """UsageError where a value cannot be."""
        if not self.data:
            raise UsageError("the accuracy gate needs labelled data; give --gate-data")
        for name, value, low in (
            ("--max-drop", self.max_drop, 0),
            ("--max-noise", self.max_noise or 0, 0),
            ("--max-give-back", self.max_give_back, 0),
        ):
            if not (np.isfinite(value) and value >= low):
                raise UsageError(f"{name} {value} is not a number from {low} on")
        if self.compute_precision not in ("auto", "f32", "bf16"):
            raise UsageError(
                f"--compute-precision '{self.compute_precision}' is unknown; choose auto, f32 or "
                "bf16"
            )
        if self.recovery is not None:
            self.recovery.check()
        if self.every is not None and self.every < 1:
            raise UsageError(f"--gate-every {self.every} selects nothing; give 1 or more")
        for dataset in self.held_out:
            if any(d.name == dataset.name and _same_folder(d, dataset) for d in self.data):
                raise UsageError(f"'{dataset.name}' both decides and is held out; name it once")
        _check_names(self.data, "--gate-data")
        _check_names(self.held_out, "--held-out")


def _check_names(datasets: Sequence[Dataset], option: str) -> None:
    """Figures before and after are matched by the name of the set."""
    by_name: dict[str, Dataset] = {}
    for dataset in datasets:
        first = by_name.get(dataset.name)
        if first is None:
            by_name[dataset.name] = dataset
            continue
        if _same_folder(first, dataset):
            raise UsageError(f"{option} takes '{dataset.name}' twice; name it once")
        raise UsageError(
            f"{option} takes two sets called '{dataset.name}', '{first.folder}' and "
            f"'{dataset.folder}', whose figures could not be told apart; take one of them, or "
            "rename a folder"
        )


def _same_folder(one: Dataset, other: Dataset) -> bool:
    return one.folder.resolve() == other.folder.resolve()
