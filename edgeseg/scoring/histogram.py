"""Counting scores into bins, for metrics over all pixels of a data set."""

from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from edgeseg.errors import UsageError
from edgeseg.scoring import _numpy_kernels
from edgeseg.scoring.library import check_status, check_threads, library, output_array

__all__ = ["HISTOGRAM_SIZE", "score_histogram"]

HISTOGRAM_SIZE: Final = 2**24

Score = npt.NDArray[np.float16] | npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


def score_histogram(
    scores: Score,
    labels: UInt8,
    positive: npt.NDArray[np.uint32],
    negative: npt.NDArray[np.uint32],
    threads: int | None = None,
) -> None:
    """Add the scores of labelled pixels into two histograms.

    The bin is the upper 24 bits of the float32 value, mapped so that a larger score has a larger
    bin. -0 counts as 0; NaN falls into the last bin.

    Args:
        scores: float16 or float32 ``[n]``, contiguous.
        labels: uint8 ``[n]``, contiguous: 1 goes to ``positive``, 0 to ``negative``, all else
            nowhere.
        positive: uint32 ``[2**24]``, added to in place.
        negative: the same.
        threads: the caller's included; all that the process may use where ``None``.

    Raises:
        UsageError: an array of another shape or dtype.
    """
    if scores.dtype not in (np.float16, np.float32):
        raise UsageError(f"scores must be float16 or float32, not {scores.dtype.name}")
    if scores.ndim != 1 or scores.shape != labels.shape or labels.dtype != np.uint8:
        raise UsageError(
            f"scores [n] and uint8 labels [n] are needed, not {scores.shape} and "
            f"{labels.dtype.name} {labels.shape}"
        )
    for name, histogram in (("positive", positive), ("negative", negative)):
        output_array(histogram, (HISTOGRAM_SIZE,), np.uint32, name)
    threads = check_threads(threads)
    native = library()
    scores, labels = cast(Score, np.ascontiguousarray(scores)), np.ascontiguousarray(labels)
    if native is None:
        _numpy_kernels.score_histogram(scores, labels, positive, negative)
        return
    kind: Literal[0, 1] = 0 if scores.dtype == np.float16 else 1
    status = native.edgeseg_score_histogram(
        scores.ctypes.data, kind, labels.ctypes.data, scores.size, positive.ctypes.data,
        negative.ctypes.data, threads,
    )  # fmt: skip
    check_status(status, "this histogram")
