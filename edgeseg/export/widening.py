"""Harsher forms of calibration frames, for ranges that hold on frames unlike them.

What a network was not taught is often brighter, more coloured or finer grained than calm frames of
a road; activations beyond the observed range are cut off there, which moves the anomaly scores of
just the frames that matter. So ranges are observed on harsher forms of the frames as well, and
only ranges: means and thresholds stay those of the frames.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["default_widening", "harsher"]

_WIDENING: Final = 0.5
# Coarser steps cost it more, probably because its poolings choose another place where rounding
# makes two values equal.
_WIDENING_OF: Final = {"enet": 0.25}

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_CONTRAST = 2.2
_MIDDLE = 140.0
_SATURATION = 3.0
_BRIGHTNESS = 1.3
_SHARPNESS = 2.0


def default_widening(network: str) -> float:
    """How much of the way ranges go from those of the frames to those of their harsher forms.

    Chosen by what INT8 costs the shipped weights on RoadAnomaly21, among 0, 0.25, 0.5 and 1.
    """
    return _WIDENING_OF.get(network, _WIDENING)


def harsher(frame: UInt8) -> Iterator[UInt8]:
    """Four forms of a frame: of more contrast, of more colour, of other hues, and sharper.

    Args:
        frame: uint8 ``[H, W, 3]`` BGR, as is each form.
    """
    pixels = frame.astype(np.float32)
    yield _to_bytes((pixels - pixels.mean()) * _CONTRAST + _MIDDLE)
    grey = pixels.mean(axis=2, keepdims=True)
    coloured = (grey + _SATURATION * (pixels - grey)) * _BRIGHTNESS
    yield _to_bytes(coloured)
    yield _to_bytes(coloured[..., [1, 2, 0]])
    yield _to_bytes(pixels + _SHARPNESS * (pixels - _blurred(pixels)))


def _blurred(pixels: Float32) -> Float32:
    """Mean of the eight neighbours at a distance of two, edges repeated."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
    places = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4) if (y, x) != (2, 2)]
    total = sum(padded[y : y + height, x : x + width] for y, x in places)
    return np.asarray(total / len(places), np.float32)


def _to_bytes(pixels: Float32) -> UInt8:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
