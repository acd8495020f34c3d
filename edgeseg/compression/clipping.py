"""Calibration methods: how far the eight bits of a tensor should reach.

==========  ====================================================================================
minmax      to the smallest and the largest value that was seen; nothing is cut off
percentile  to the value that 99.99% of all values do not exceed, on either side
entropy     to where the quantized distribution tells most about the real one: the smallest
            Kullback-Leibler divergence (Migacz 2017, "8-bit Inference with TensorRT", GTC)
mse         to where the mean squared error of rounding and cutting off together is smallest
            (Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for
            rapid-deployment", section 3, solved on the histogram instead of a fitted density)
==========  ====================================================================================

A choice is a pair of parts of the tensor's low and high (:attr:`TensorRange.clip
<edgeseg.compression.calibration.TensorRange.clip>`). ``entropy`` and ``mse`` shrink both sides by
the same part: with a zero point the levels' distance depends on their sum alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeseg.compression.calibration import Ranges
from edgeseg.compression.histograms import BINS, Histogram
from edgeseg.errors import UsageError

__all__ = [
    "DEFAULT_PERCENTILE",
    "METHODS",
    "check_percentile",
    "clip_entropy",
    "clip_mse",
    "clip_percentile",
    "clip_ranges",
]

METHODS: Final = ("minmax", "percentile", "entropy", "mse")
DEFAULT_PERCENTILE: Final = 99.99

_LEVELS: Final = 256
# Every fourth bin can be the last one; nearer to each other the choices cannot be told apart.
_STEP: Final = 4
# Count given to a level that is empty where values are: zero would make the divergence infinite.
_ALMOST_NONE: Final = 1e-4
_MSE_PARTS: Final = 256

Clip = tuple[float, float]
Float64 = npt.NDArray[np.float64]


def clip_percentile(histogram: Histogram, percentile: float = DEFAULT_PERCENTILE) -> Clip:
    """Parts of low and high beyond which ``100 - percentile`` % of the values lie, each side.

    Linear within a bin. Zeros count as values.
    """
    total = int(histogram.counts.sum()) + histogram.zeros
    if not total:
        return 1.0, 1.0
    outside = (1 - percentile / 100) * total
    edges = histogram.low + np.arange(BINS + 1) * histogram.width
    above = np.concatenate([[0], np.cumsum(histogram.counts[::-1])])
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    high = float(np.interp(outside, above, edges[::-1]))
    low = float(np.interp(outside, below, edges))
    return _part(low, histogram.low), _part(high, histogram.high)


def clip_entropy(histogram: Histogram, levels: int = _LEVELS) -> Clip:
    """Part of low and high with the smallest divergence between real and quantized values.

    As in Migacz 2017 for each candidate part: P is the histogram within it, what lies beyond
    counted in its last bins; Q the histogram within it merged into ``levels`` levels, each
    level's count spread evenly over those of its bins in which P holds values; the divergence is
    sum P log(P / Q) of the two normalised. Zeros take no part: every choice rounds them exactly.
    """
    counts = histogram.counts.astype(np.float64)
    if not counts.any():
        return 1.0, 1.0
    zero = -histogram.low / histogram.width
    best, chosen = np.inf, 1.0
    for last in range(BINS, levels - 1, -_STEP):
        part = last / BINS
        first = int(np.floor(zero * (1 - part)))
        end = int(np.ceil(zero + (BINS - zero) * part))
        inside = counts[first:end]
        if not inside.any():
            continue
        divergence = _divergence(inside, counts[:first].sum(), counts[end:].sum(), levels)
        if divergence < best:
            best, chosen = divergence, part
    return chosen, chosen


def clip_mse(histogram: Histogram, levels: int = _LEVELS) -> Clip:
    """Part of low and high with the smallest mean squared error.

    The error is that of the quantizer itself, ``x - s * clip(round(x / s), -z, levels - 1 - z)``
    with scale s and zero point z, at the middle of every bin.
    """
    if not histogram.counts.any():
        return 1.0, 1.0
    values = histogram.centres
    best, chosen = np.inf, 1.0
    for step in range(_MSE_PARTS, 0, -1):
        part = step / _MSE_PARTS
        scale = part * (histogram.high - histogram.low) / (levels - 1)
        zero = round(-part * histogram.low / scale)
        codes = np.clip(np.rint(values / scale), -zero, levels - 1 - zero)
        error = float((histogram.counts * (values - scale * codes) ** 2).sum())
        if error < best:
            best, chosen = error, part
    return chosen, chosen


def check_percentile(percentile: float) -> None:
    """UsageError unless it is more than 50 and at most 100."""
    if not 50 < percentile <= 100:
        raise UsageError(
            f"--percentile {percentile:g} is not above 50 and at most 100; give one such as "
            f"{DEFAULT_PERCENTILE}"
        )


def clip_ranges(
    ranges: Ranges,
    histograms: Mapping[str, Histogram],
    method: str,
    percentile: float = DEFAULT_PERCENTILE,
) -> Ranges:
    """The ranges with the clips that ``method`` chooses; the observed limits stay in them.

    Args:
        ranges: observed.
        histograms: of the tensors to clip, see :func:`collect_histograms
            <edgeseg.compression.histograms.collect_histograms>`; not needed for ``minmax``.
        method: one of :data:`METHODS`.
        percentile: for ``percentile``, more than 50 and at most 100.

    Raises:
        UsageError: no such method, or no such percentile.
    """
    if method not in METHODS:
        raise UsageError(
            f"calibration method '{method}' is unknown; choose one of {', '.join(METHODS)}"
        )
    check_percentile(percentile)
    tensors = {}
    for name, r in ranges.tensors.items():
        clip = (1.0, 1.0)
        if name in histograms and method != "minmax":
            clip = _choose(histograms[name], method, percentile)
        tensors[name] = replace(r, clip=clip)
    provenance = dict(ranges.provenance)
    if method == "minmax":
        if "method" in provenance:
            provenance["method"] = "min-max per channel"
    else:
        by = f"percentile {percentile:g}" if method == "percentile" else method
        provenance["method"] = f"min-max per channel, clipped per tensor by {by}"
    return replace(ranges, tensors=tensors, provenance=provenance)


def _choose(histogram: Histogram, method: str, percentile: float) -> Clip:
    if method == "percentile":
        return clip_percentile(histogram, percentile)
    return clip_entropy(histogram) if method == "entropy" else clip_mse(histogram)


def _part(value: float, limit: float) -> float:
    """``value`` as a part of ``limit``, at least one bin's worth and at most 1."""
    return 1.0 if limit == 0 else float(np.clip(value / limit, 1 / BINS, 1.0))


def _divergence(inside: Float64, below: float, above: float, levels: int) -> float:
    p = inside.copy()
    p[0] += below
    p[-1] += above
    present = p > 0
    level = np.arange(len(inside)) * levels // len(inside)
    amount = np.bincount(level, inside, levels)
    bins = np.bincount(level, present, levels)
    q = np.divide(amount, bins, out=np.zeros(levels), where=bins > 0)[level][present]
    q = np.maximum(q, _ALMOST_NONE)
    p = p[present]
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
