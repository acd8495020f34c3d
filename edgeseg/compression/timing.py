"""Times of bodies against each other on one engine.

A machine's clock and its neighbours change by more than a layer takes. So bodies run in turns, what
counts is the median of the ratio of two runs that followed each other, and beside it stands how far
that median can be trusted: nothing is called slower or faster that might be noise.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Comparison", "Run", "compare", "medians_ms"]

REPEATS: Final = 15
MAX_REPEATS: Final = 45
_WARMUP: Final = 2
# Two-sided 99% of the standard normal distribution: a comparison goes on until it is settled, so
# it looks at its own result more than once.
_QUANTILE: Final = 2.576

Run = Callable[[npt.NDArray[np.uint8]], object]
"""Runs a frame, uint8 ``[H, W, 3]``; :meth:`Session.features
<edgeseg.runtime.session.Session.features>` is one."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Time of a variant against a base."""

    ratio: float
    """Median of variant / base over pairs of runs."""
    low: float
    """Lower end of the 99% confidence interval of ``ratio``."""
    high: float
    """Upper end."""
    base_ms: float
    """Median of the base."""

    @classmethod
    def of_pairs(cls, ratios: Sequence[float], base_ms: Sequence[float]) -> "Comparison":
        """From the ratio and the base's time of every pair, at least one.

        The interval is that of the sign test: order statistics, whatever the noise looks like.
        """
        ordered = np.sort(ratios)
        count = len(ordered)
        outside = max(0, int(np.floor(count / 2 - _QUANTILE * np.sqrt(count) / 2)))
        return cls(
            float(np.median(ordered)),
            float(ordered[outside]),
            float(ordered[count - 1 - outside]),
            float(np.median(base_ms)),
        )

    @property
    def difference_ms(self) -> float:
        """By how much the variant is slower."""
        return (self.ratio - 1) * self.base_ms

    @property
    def least_ms(self) -> float:
        """By how much it is slower at least, as far as this can be told."""
        return (self.low - 1) * self.base_ms

    @property
    def most_ms(self) -> float:
        """By how much it is slower at most."""
        return (self.high - 1) * self.base_ms

    @property
    def slower(self) -> bool | None:
        """Whether the variant is slower than the base; ``None`` where noise hides it."""
        if self.low > 1:
            return True
        return False if self.high < 1 else None


def compare(base: Run, variant: Run, frame: npt.NDArray[np.uint8]) -> Comparison:
    """Run both in turns, longer where it is hard to tell; which one goes first alternates."""
    for _ in range(_WARMUP):
        base(frame)
        variant(frame)
    ratios: list[float] = []
    times: list[float] = []
    while True:
        for index in range(REPEATS):
            if index % 2:
                second = _milliseconds(variant, frame)
                first = _milliseconds(base, frame)
            else:
                first = _milliseconds(base, frame)
                second = _milliseconds(variant, frame)
            ratios.append(second / first)
            times.append(first)
        result = Comparison.of_pairs(ratios, times)
        if result.slower is not None or len(ratios) >= MAX_REPEATS:
            return result


def medians_ms(
    runs: Sequence[Run], frame: npt.NDArray[np.uint8], repeats: int = REPEATS
) -> list[float]:
    """Median time of each, run in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        for _ in range(_WARMUP):
            run(frame)
    for _ in range(repeats):
        for run, values in zip(runs, times, strict=True):
            values.append(_milliseconds(run, frame))
    return [float(np.median(values)) for values in times]


def _milliseconds(run: Run, frame: npt.NDArray[np.uint8]) -> float:
    start = time.perf_counter_ns()
    run(frame)
    return (time.perf_counter_ns() - start) / 1e6
