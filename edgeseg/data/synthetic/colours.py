"""Colours, and the noise that roughens them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Colour", "Image", "between", "grey", "jitter", "noise_tile", "scaled"]

Colour = tuple[float, float, float]
"""Blue, green and red, 0-255."""
Image = npt.NDArray[np.uint8]


@functools.lru_cache(maxsize=4)
def noise_tile(grain: int) -> npt.NDArray[np.int16]:
    """Zero-mean noise, int16 [512, 512], standard deviation 32, ``grain`` pixels per blob.

    Fixed content: scenes differ by the offset at which they cut the tile, which is hundreds of
    times cheaper than fresh normal deviates for every pixel.
    """
    rng = np.random.Generator(np.random.PCG64(7919 + grain))
    total = np.zeros((512, 512), np.float32)
    size = 512 // grain
    for octave in range(3):
        coarse = max(4, size >> octave)
        layer = rng.standard_normal((coarse, coarse), dtype=np.float32)
        total += cv2.resize(layer, (512, 512), interpolation=cv2.INTER_LINEAR)
    total -= total.mean()
    total *= 32.0 / float(total.std())
    tile: npt.NDArray[np.int16] = np.clip(total, -120, 120).astype(np.int16)
    tile.setflags(write=False)
    return tile


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """What ``rng.uniform(low, high)`` gives, in half of the time."""
    return low + (high - low) * rng.random()


def grey(value: float) -> Colour:
    """A neutral colour, 0-255."""
    return (value, value, value)


def jitter(rng: np.random.Generator, base: Sequence[float], amount: float) -> Colour:
    """``base`` (BGR, 0-255) with a common and a per-channel random change."""
    common, db, dg, dr = rng.random(4).tolist()
    shift = (2.0 * common - 1.4) * amount  # the channels' own changes are -0.4 to 0.4
    step = 0.8 * amount
    b, g, r = base[0] + shift + step * db, base[1] + shift + step * dg, base[2] + shift + step * dr
    if 0.0 <= b <= 255.0 and 0.0 <= g <= 255.0 and 0.0 <= r <= 255.0:
        return (b, g, r)
    return (min(255.0, max(0.0, b)), min(255.0, max(0.0, g)), min(255.0, max(0.0, r)))


def scaled(colour: Colour, factor: float) -> Colour:
    """``colour`` times ``factor``, saturated at 255."""
    return (
        min(255.0, colour[0] * factor),
        min(255.0, colour[1] * factor),
        min(255.0, colour[2] * factor),
    )
