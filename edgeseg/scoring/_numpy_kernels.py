"""What the native kernels compute, in numpy: the stand-in where the library is missing."""

import numpy as np
import numpy.typing as npt

from edgeseg.scoring.head import Head
from edgeseg.scoring.scorers import anomaly_score, class_map

__all__ = ["head", "histogram_bins", "resize", "score_histogram"]

UInt8 = npt.NDArray[np.uint8]
Score = npt.NDArray[np.float16] | npt.NDArray[np.float32]

PRECISION_BITS = 22
"""After the point of the resize's weights, as in Pillow's ``Resample.c``."""


def head(
    definition: Head,
    features: npt.NDArray[np.float32],
    scorer: str,
    temperature: float,
    out_class_map: UInt8,
    out_score: Score,
) -> None:
    """Class map and score ``[H, W]`` of features in the head's layout."""
    # NaN and Inf are answered with the highest score, not with a warning.
    with np.errstate(all="ignore"):
        logits = definition.logits(definition.channel_first(features))
        out_class_map[:] = class_map(logits, num_known=definition.num_known)
        out_score[:] = anomaly_score(
            logits,
            scorer,
            num_known=definition.num_known,
            void_index=definition.void_index,
            temperature=temperature,
        )


def resize(frame: UInt8, height: int, width: int, swap_rb: bool, out: UInt8) -> None:
    """Pillow's ``BILINEAR``: across, rounded to uint8, then down, or down first where the height
    shrinks by more than twice what the width does (since Pillow 13).
    """
    if swap_rb:
        frame = frame[:, :, ::-1]
    fewer_rows, fewer_columns = frame.shape[0] - height, frame.shape[1] - width
    down_first = fewer_rows > 0 and fewer_rows > 2 * fewer_columns
    if down_first:
        frame = _resize_rows(frame, height)
    if width != frame.shape[1]:
        frame = _resize_rows(frame.transpose(1, 0, 2), width).transpose(1, 0, 2)
    if height != frame.shape[0]:
        frame = _resize_rows(frame, height)
    out[:] = frame


def _resize_rows(frame: UInt8, size: int) -> UInt8:
    first, weights = _triangle(frame.shape[0], size)
    total = np.full((size, *frame.shape[1:]), 1 << (PRECISION_BITS - 1), dtype=np.int64)
    for k in range(weights.shape[1]):
        row = np.minimum(first + k, frame.shape[0] - 1)
        total += weights[:, k, None, None] * frame[row]
    return (total >> PRECISION_BITS).astype(np.uint8)


def _triangle(size_in: int, size_out: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First input sample and fixed-point weights ``[size_out, taps]`` of every output sample."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    center = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), size_in)
    taps = np.arange((last - first).max())
    distance = np.abs((taps + first[:, None] - center[:, None] + 0.5) * (1.0 / support))
    weights = np.where(taps < (last - first)[:, None], np.maximum(1.0 - distance, 0.0), 0.0)
    # cumsum adds one after the other, as Pillow does; sum adds in pairs.
    total = np.cumsum(weights, axis=1)[:, -1:]
    weights = weights / np.where(total != 0, total, 1.0)
    return first, (0.5 + weights * (1 << PRECISION_BITS)).astype(np.int64)


def histogram_bins(scores: Score) -> npt.NDArray[np.uint32]:
    """Bin of every score, uint32 in 0 .. 2**24 - 1, in the order of the scores."""
    values = scores.astype(np.float32)
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    negative = bits >> np.uint32(31) != 0
    ordered = np.where(negative, ~bits, bits ^ np.uint32(1 << 31))
    bins = np.where(np.isnan(values), np.uint32(2**24 - 1), ordered >> np.uint32(8))
    return bins.astype(np.uint32)


def score_histogram(
    scores: Score,
    labels: UInt8,
    positive: npt.NDArray[np.uint32],
    negative: npt.NDArray[np.uint32],
) -> None:
    """Add scores of label 1 to ``positive`` and of label 0 to ``negative``."""
    for label, histogram in ((1, positive), (0, negative)):
        bins, counts = np.unique(histogram_bins(scores[labels == label]), return_counts=True)
        histogram[bins] += counts.astype(np.uint32)
