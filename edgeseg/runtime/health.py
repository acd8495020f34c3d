"""Frames and results that are not what they seem: frozen, black or torn; NaN, constant, full."""

from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.deadline import Problem
from edgeseg.runtime.session import Result

__all__ = ["FrameHealth", "check_features", "check_result"]

# Every 16th pixel of every 8th row answers; a full comparison would cost as much as the head.
_ROWS: Final = 8
_COLUMNS: Final = 16
_REPEATS: Final = 3
_DARK: Final = 24
_DARK_SHARE: Final = 0.995
_BLANK_STD: Final = 1.0
_LEARNED: Final = 8
_REMEMBERED: Final = 30
_BAND: Final = 0.12
_MOVED: Final = 4.0
_FULL_SHARE: Final = 0.995


class FrameHealth:
    """Looks at the frames of a camera in order.

    A sensor's noise makes two exposures differ, so ``_REPEATS`` repetitions of the same pixels
    are a frozen camera and no calm street. A torn frame is noticed where its lower part is one
    plain colour (the decoder's filling) or that of the frame before (an overwritten buffer); how
    much of the frame does so always (a bonnet, bars) is learned from the first frames. A tear
    between two exposures that are both new is not noticed.
    """

    def __init__(self, repeats: int = _REPEATS) -> None:
        self._repeats = repeats
        self._before: npt.NDArray[np.uint8] | None = None
        self._same = 0
        self._usual: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def check(self, image: npt.NDArray[np.uint8]) -> Problem | None:
        """``None`` for a frame (``[h, w, 3]``) that may be used."""
        sample = image[::_ROWS, ::_COLUMNS].copy()
        before, self._before = self._before, sample
        if before is not None and before.shape == sample.shape:
            same = bool(np.array_equal(before, sample))
        else:
            same, before = False, None
        self._same = self._same + 1 if same else 0
        if np.count_nonzero(sample <= _DARK) >= _DARK_SHARE * sample.size:
            return Problem("black", "the frame is black")
        if max(float(sample[..., channel].std()) for channel in range(3)) < _BLANK_STD:
            return Problem("blank", "the frame is of one colour")
        if self._same >= self._repeats:
            return Problem("frozen", f"the frame is the same for the {self._same + 1}th time")
        return None if same else self._torn(sample, before)

    def _torn(
        self, sample: npt.NDArray[np.uint8], before: npt.NDArray[np.uint8] | None
    ) -> Problem | None:
        plain_rows = (sample == sample[-1:, -1:]).all(axis=(1, 2))
        plain, old = _from_below(plain_rows), 0.0
        if before is not None:
            old_rows = (sample == before).all(axis=(1, 2))
            old = _from_below(old_rows)
            if 0 < old < 1:
                moved = np.abs(sample[~old_rows].astype(np.int16) - before[~old_rows])
                # Where nothing moves much, a compressed stream repeats rows by right.
                old = old if float(moved.mean()) >= _MOVED else 0.0
        if len(self._usual) >= _LEARNED:
            usual_plain = max(band for band, _ in self._usual)
            usual_old = max(band for _, band in self._usual)
            if plain - usual_plain >= _BAND:
                return Problem("torn", f"the lowest {100 * plain:.0f}% of the frame are empty")
            if old - usual_old >= _BAND:
                return Problem(
                    "torn", f"the lowest {100 * old:.0f}% of the frame are those of the one before"
                )
        self._usual.append((plain, old))
        return None


def check_features(features: npt.NDArray[np.float32]) -> Problem | None:
    """A body whose output holds NaN or infinity is broken, whatever the score makes of it."""
    # One pass: any NaN or infinity carries over into the sum.
    with np.errstate(all="ignore"):
        if np.isfinite(np.add.reduce(features, axis=None)):
            return None
    return Problem("not_finite", "the engine gave values that are not finite")


def check_result(
    result: Result, image: npt.NDArray[np.uint8], bounds: tuple[float, float]
) -> Problem | None:
    """Results that no road scene gives.

    Args:
        result: of the session.
        image: the frame; one of a single colour may have any result.
        bounds: smallest and largest score.
    """
    score = np.asarray(result.score[::4, ::4], np.float32)
    if not np.isfinite(score).all():
        return Problem("not_finite", "the score holds values that are not finite")
    low, high = float(score.min()), float(score.max())
    full = float(np.mean(score >= bounds[1]))
    if low != high and full < _FULL_SHARE:
        return None
    sample: npt.NDArray[Any] = image[::_ROWS, ::_COLUMNS]
    if float(sample.std()) < 2 * _BLANK_STD:
        return None
    if full >= _FULL_SHARE:
        return Problem("saturated", f"{100 * full:.1f}% of the pixels have the largest score")
    return Problem("constant", "every pixel has the same score")


def _from_below(rows: npt.NDArray[np.bool_]) -> float:
    """Share of the rows that hold without a gap from the lowest one upwards."""
    gaps = np.flatnonzero(~rows[::-1])
    return float(gaps[0] if gaps.size else rows.size) / rows.size
