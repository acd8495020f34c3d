"""The frame that self-tests run: drawn, so that nobody has to store it."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["VERSION", "golden_frame"]

VERSION: Final = 1
"""Of the frame: golden outputs of another one say nothing about this one."""

UInt8 = npt.NDArray[np.uint8]


def golden_frame(height: int, width: int) -> UInt8:
    """A deterministic frame, uint8 ``[height, width, 3]`` BGR: a road to a horizon under slow
    changes of colour, with noise.

    Integer arithmetic and a fixed hash, not a generator whose stream a new numpy might change.
    """
    rows, columns = np.mgrid[0:height, 0:width].astype(np.int64)
    horizon = height * 2 // 5
    sky = rows < horizon
    half = (rows - np.minimum(rows, horizon)) * width
    road = ~sky & (np.abs(2 * columns - width) * height < 2 * half)
    noise = (_hash(rows, columns) >> np.uint32(27)).astype(np.int64) - 16
    frame = np.empty((height, width, 3), np.int64)
    for channel, (above, ground, asphalt) in enumerate(
        ((190, 60, 95), (160, 110, 92), (130, 80, 90))
    ):
        frame[..., channel] = np.where(sky, above, np.where(road, asphalt, ground)) + noise
    return (np.clip(frame, 0, 255) // 2 + _tints(height, width) // 2).astype(np.uint8)


def _tints(height: int, width: int) -> npt.NDArray[np.int64]:
    """Colours of 7x13 points, between which they change linearly: 0 .. 255."""
    points = np.stack(
        [(_hash(*np.mgrid[0:7, 13 * c : 13 * c + 13]) >> np.uint32(24)) for c in range(3)], -1
    ).astype(np.int64)
    y, x = np.arange(height) * 6 * 256 // height, np.arange(width) * 12 * 256 // width
    row, across, down = y >> 8, (x & 255)[None, :, None], (y & 255)[:, None, None]
    left, right = points[:, x >> 8], points[:, (x >> 8) + 1]
    lines = left * (256 - across) + right * across
    blended: npt.NDArray[np.int64] = (lines[row] * (256 - down) + lines[row + 1] * down) >> 16
    return blended


def _hash(rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    mixed = rows.astype(np.uint32) * np.uint32(2654435761)
    mixed ^= columns.astype(np.uint32) * np.uint32(2246822519)
    mixed ^= mixed >> np.uint32(15)
    return mixed * np.uint32(3266489917)
