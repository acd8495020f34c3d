"""Histograms of activations: what the calibration methods beyond min-max choose their limits by.

They are taken in a second pass over the frames, when the limits of every tensor are known, and
of the tensors as they will be quantized, that is with balanced channels
(:mod:`edgeseg.compression.equalization`). A histogram takes 16 kB whatever the number of frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.compression.calibration import Ranges, open_observer
from edgeseg.compression.quantize_onnx import balanced_ranges

__all__ = ["BINS", "Histogram", "collect_histograms"]

BINS: Final = 2048

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values of a tensor occurred, in equal bins from ``low`` to ``high``."""

    low: float
    """At most 0."""
    high: float
    """At least 0."""
    counts: Int64
    """``[BINS]``, zeros not counted."""
    zeros: int
    """Values that are exactly zero: half of a tensor behind a ReLU, and rounded without error."""

    @classmethod
    def empty(cls, low: float, high: float) -> "Histogram":
        """Of no value yet; ``low`` <= 0 <= ``high``."""
        return cls(min(low, 0.0), max(high, 0.0), np.zeros(BINS, np.int64), 0)

    @property
    def width(self) -> float:
        """Of a bin."""
        return (self.high - self.low) / BINS

    @property
    def centres(self) -> Float64:
        """Middle of every bin, ``[BINS]``."""
        return np.asarray(self.low + (np.arange(BINS) + 0.5) * self.width, np.float64)

    def plus(
        self, values: npt.NDArray[np.float32], factors: npt.NDArray[np.float32] | None = None
    ) -> "Histogram":
        """With ``values`` counted too.

        Args:
            values: float32, any shape; what lies outside the limits counts in the last bin.
            factors: multiply ``values``; they must broadcast to them.
        """
        if self.width <= 0:
            return Histogram(self.low, self.high, self.counts, self.zeros + values.size)
        scale = 1 / self.width
        gain = np.float32(scale) if factors is None else factors * np.float32(scale)
        position = values * gain
        position -= np.float32(self.low * scale)
        np.clip(position, 0, BINS - 1, out=position)
        counts = np.bincount(position.astype(np.intp).reshape(-1), minlength=BINS)
        zeros = int(np.count_nonzero(values == 0))
        counts[min(int(np.float32(-self.low * scale)), BINS - 1)] -= zeros
        return Histogram(self.low, self.high, self.counts + counts, self.zeros + zeros)


def collect_histograms(
    body: onnx.ModelProto, frames: Iterable[npt.NDArray[np.uint8]], ranges: Ranges
) -> dict[str, Histogram]:
    """Run the float body on frames again and count.

    Args:
        body: float body, ``frame`` uint8 ``[1, H, W, 3]`` in.
        frames: those that ``ranges`` were observed on, uint8 ``[H, W, 3]``.
        ranges: what :func:`edgeseg.compression.calibration.observe` gave.

    Returns:
        One histogram for every tensor whose range the quantizer needs, in the units that the
        tensor has once its channels are balanced.
    """
    balanced = balanced_ranges(body, ranges)
    session, names = open_observer(body)
    names = [n for n in names if n in balanced.tensors]
    result, factors = {}, {}
    for name in names:
        before, after = ranges.tensors[name], balanced.tensors[name]
        spread = before.high - before.low
        ratio = np.divide(
            after.high - after.low, spread, out=np.ones_like(spread), where=spread > 0
        )
        factors[name] = ratio.reshape(1, -1, 1, 1)
        result[name] = Histogram.empty(float(after.low.min()), float(after.high.max()))
    for frame in frames:
        for name, value in zip(names, session.run(names, {"frame": frame[None]}), strict=True):
            result[name] = result[name].plus(value, factors[name])
    return result
