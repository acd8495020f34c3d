"""From a labelled frame to a training crop: geometry, light, sensor, unknown objects.

Everything random comes from the generator that is handed in, so a crop depends on its number
alone and a resumed run sees the same ones.
"""

import math
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic import void_cutout
from edgeseg.taxonomy import IGNORE, VOID
from edgeseg.training.recipe import Augment

__all__ = ["Levels", "crop", "paste_unknown", "photometric", "void_where_sure"]

UInt8 = npt.NDArray[np.uint8]
Generator = np.random.Generator

# Beyond the frame: a dull grey that no class claims.
_OUTSIDE: Final = (90, 100, 90)
_MAX_ANGLE: Final = 3.0


def void_where_sure(label: UInt8, erosion: int) -> UInt8:
    """255 that an erosion by ``erosion`` pixels leaves becomes void; the rest stays ignored.

    Narrow unlabelled strips are mostly doubtful edges of known classes; their cores are not.

    Args:
        label: uint8 ``[h, w]``, trainIds and 255.
        erosion: radius in pixels; 0 makes all of it void.
    """
    side = 2 * erosion + 1
    core = cv2.erode(
        (label == IGNORE).astype(np.uint8),
        np.ones((side, side), np.uint8),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=1.0,
    )
    out = label.copy()
    out[core > 0] = VOID
    return out


class Levels:
    """A labelled frame and its halvings, so that strong shrinking does not alias.

    ``frame`` uint8 ``[h, w, 3]`` BGR, ``label`` uint8 ``[h, w]``.
    """

    def __init__(self, frame: UInt8, label: UInt8, smallest_scale: float) -> None:
        """``smallest_scale``: the strongest shrinking that will be asked for."""
        self._levels = [(frame, label)]
        while smallest_scale <= 0.5 ** len(self._levels):
            frame, label = self._levels[-1]
            if min(label.shape) < 16:
                break
            small = cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            marks = label[: 2 * small.shape[0] : 2, : 2 * small.shape[1] : 2]
            self._levels.append((np.asarray(small, np.uint8), np.ascontiguousarray(marks)))

    @property
    def label(self) -> UInt8:
        """The label map at full size."""
        return self._levels[0][1]

    def at(self, scale: float) -> tuple[UInt8, UInt8, float]:
        """Frame, label and the scale that is left, for an overall ``scale``."""
        level = min(max(math.floor(-math.log2(scale)), 0), len(self._levels) - 1)
        frame, label = self._levels[level]
        return frame, label, scale * 2.0**level


def crop(
    rng: Generator,
    levels: Levels,
    size: tuple[int, int],
    scale: float,
    stretch: tuple[float, float],
    augment: Augment,
    anchor: tuple[float, float] | None = None,
) -> tuple[UInt8, UInt8]:
    """A window of the scaled, maybe turned and mirrored frame.

    Args:
        rng: source of everything random.
        levels: the frame.
        size: height and width of the window, pixels.
        scale: of the frame, after ``stretch``.
        stretch: factors of rows and columns.
        augment: what may happen.
        anchor: a point of the frame (row, column, 0 to 1) that the window shall contain.

    Returns:
        uint8 ``[height, width, 3]`` and uint8 ``[height, width]``; 255 beyond the frame.
    """
    frame, label, rest = levels.at(scale)
    rows, columns = label.shape
    squeeze = float(2.0 ** rng.uniform(-augment.aspect, augment.aspect)) if augment.aspect else 1.0
    sy, sx = stretch[0] * rest, stretch[1] * rest * squeeze
    angle = 0.0
    if augment.rotate and rng.random() < augment.rotate:
        angle = math.radians(rng.uniform(-_MAX_ANGLE, _MAX_ANGLE))
    mirror = -1.0 if augment.flip and rng.random() < 0.5 else 1.0
    room = np.array([max(columns * sx - size[1], 0.0), max(rows * sy - size[0], 0.0)])
    shift = rng.uniform(-0.5, 0.5, 2)
    if anchor is not None:
        # Offset of the anchor from the centre, jittered by up to half a window.
        offset = np.array(
            [(anchor[1] - 0.5) * columns * sx * mirror, (anchor[0] - 0.5) * rows * sy]
        )
        offset += shift * (size[1], size[0])
        middle = np.clip(offset, -room / 2, room / 2)
    else:
        middle = shift * room
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[mirror * cos * sx, -sin * sy], [mirror * sin * sx, cos * sy]])
    centre = linear @ np.array([columns / 2, rows / 2]) + middle
    move = np.array([size[1] / 2, size[0] / 2]) - centre
    # Pixel centres lie at halves: the same map, from centre to centre.
    move += linear @ np.array([0.5, 0.5]) - 0.5
    matrix = np.hstack([linear, move[:, None]])
    dsize = (size[1], size[0])
    out = cv2.warpAffine(frame, matrix, dsize, flags=cv2.INTER_LINEAR, borderValue=_OUTSIDE)
    marks = cv2.warpAffine(label, matrix, dsize, flags=cv2.INTER_NEAREST, borderValue=float(IGNORE))
    return np.asarray(out, np.uint8), np.asarray(marks, np.uint8)


def paste_unknown(rng: Generator, frame: UInt8, label: UInt8) -> None:
    """Put one to three synthetic unknown objects into a photo, in place, labelled void."""
    height, width = label.shape
    for _ in range(int(rng.integers(1, 4))):
        size = int(height * 2 ** rng.uniform(-4.2, -1.3))
        rows, columns = max(8, int(size * rng.uniform(0.6, 1.4))), max(8, size)
        picture, mask = void_cutout(rng, rows, columns)
        y = int(rng.uniform(0.35, 1.0) * height - rows)
        x = int(rng.uniform(0, max(width - columns, 1)))
        window = frame[max(y, 0) : y + rows, x : x + columns]
        if y < 0 or window.shape[:2] != mask.shape or not mask.any():
            continue
        # Half way to the light of the place where it lies.
        light = float(window.mean() + 60.0) / (float(picture[mask > 0].mean()) + 60.0)
        picture = np.asarray(cv2.convertScaleAbs(picture, alpha=0.5 + 0.5 * light), np.uint8)
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), rng.uniform(0.4, 0.9))[..., None]
        window[:] = (window * (1 - soft) + picture * soft).astype(np.uint8)
        label[y : y + rows, x : x + columns][mask > 0] = VOID


def photometric(rng: Generator, frame: UInt8, augment: Augment) -> UInt8:
    """Exposure and colour, blur, sensor noise, JPEG artefacts; uint8 ``[h, w, 3]`` BGR."""
    if augment.colour:
        k = augment.colour
        ramp = np.arange(256, dtype=np.float32) / 255.0
        gain, gamma = float(2 ** rng.uniform(-k, k)), float(2 ** rng.uniform(-0.8 * k, 0.8 * k))
        tint = 2 ** rng.uniform(-0.24 * k, 0.24 * k, 3)
        lift = rng.uniform(-0.12 * k, 0.12 * k)
        table = np.stack([(gain * t * ramp**gamma + lift) * 255 for t in tint], 1)
        frame = np.asarray(cv2.LUT(frame, table.clip(0, 255).astype(np.uint8)[None]), np.uint8)
        if rng.random() < 0.5:
            grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
            colour = 1.0 + k * rng.uniform(-1.2, 1.0)
            frame = np.asarray(cv2.addWeighted(frame, colour, grey, 1 - colour, 0), np.uint8)
    if augment.blur and rng.random() < augment.blur:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.5, 1.3)), np.uint8)
    if augment.sharpen and rng.random() < augment.sharpen:
        soft = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.8, 2.0))
        amount = float(rng.uniform(0.3, 1.5))
        frame = np.asarray(cv2.addWeighted(frame, 1 + amount, soft, -amount, 0), np.uint8)
    if augment.noise and rng.random() < augment.noise:
        noise = rng.integers(-128, 128, frame.shape, dtype=np.int8)
        strength = np.float32(rng.uniform(0.02, 0.16))
        frame = np.asarray(cv2.add(frame, noise * strength, dtype=cv2.CV_8U), np.uint8)
    if augment.jpeg and rng.random() < augment.jpeg:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))]
        coded = cv2.imencode(".jpg", frame, quality)[1]
        frame = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return frame
