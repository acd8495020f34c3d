"""The ground: every pixel below the horizon is cast onto the road plane and looked up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic.canvas import Canvas
from edgeseg.data.synthetic.colours import Colour, grey, jitter, noise_tile

__all__ = ["Band", "Cross", "GroundPlan", "draw_ground"]

ROAD, SIDEWALK, TERRAIN = 0, 1, 9

_HALF = 40.0  # metres to each side that the lookup covers
_STEP = 40.0  # entries per metre; also pixels of the grain
_CELLS = int(2 * _HALF * _STEP)
_BLOCK = 32768  # pixels looked up at a time: the arrays between then stay in the nearest cache


@dataclass(frozen=True)
class Band:
    """A strip along the road: lateral limits in metres, colour, label and grain (0-1)."""

    x0: float
    x1: float
    colour: Colour
    label: int
    grain: float


@dataclass(frozen=True)
class Cross:
    """A side street over the whole width between two distances along the road (metres)."""

    z0: float
    z1: float
    zebra: bool


@dataclass
class GroundPlan:
    """All that lies flat: bands from left to right, markings, side streets, the light's patches."""

    bands: list[Band] = field(default_factory=list)
    solid: list[float] = field(default_factory=list)
    dashed: list[float] = field(default_factory=list)
    paint: Colour = (225.0, 228.0, 230.0)
    dash: float = 3.0
    period: float = 9.0
    crosses: list[Cross] = field(default_factory=list)
    road: tuple[float, float] = (-3.5, 3.5)
    stain: float = 0.5
    offset: tuple[int, int] = (0, 0)

    def surface(self, rng: np.random.Generator, kind: str) -> tuple[Colour, int, float]:
        """Colour, label and grain of a kind of surface."""
        if kind == "road":
            return jitter(rng, grey(float(rng.uniform(68, 128))), 8), ROAD, 0.35
        if kind == "kerb":
            return jitter(rng, (150, 155, 158), 20), SIDEWALK, 0.3
        if kind == "sidewalk":
            base: Colour = ((132, 138, 142), (105, 115, 140), (150, 152, 152))[int(rng.integers(3))]
            return jitter(rng, base, 18), SIDEWALK, 0.45
        if kind == "grass":
            return jitter(rng, (52, 100, 88), 18), TERRAIN, 1.0
        return jitter(rng, (75, 105, 125), 20), TERRAIN, 0.9

    def add(self, rng: np.random.Generator, x0: float, x1: float, kind: str) -> None:
        """Lay a band of ``kind`` between two lateral positions."""
        self.bands.append(Band(min(x0, x1), max(x0, x1), *self.surface(rng, kind)))


class _Buffers:
    """What a block of rows is worked out in: memory that is still in the nearest cache."""

    def __init__(self, rows: int, columns: int) -> None:
        size = (rows, columns)
        self._all: tuple[npt.NDArray[Any], ...] = tuple(
            np.empty(size, kind)
            for kind in (np.float32, np.float32, np.intp, np.uint8, np.uint32, np.int16)
        )

    def first(self, rows: int) -> tuple[npt.NDArray[Any], ...]:
        """Two float32, an intp, a uint8, a uint32 and an int16 array of that many rows."""
        return tuple(buffer[:rows] for buffer in self._all)


def _tables(
    plan: GroundPlan,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Four rows of surface codes over x (plain, dashes on, side street, zebra) and their looks.

    The looks are float32 [codes, 4]: colour and grain; the labels uint8 [256].
    """
    looks = [(*band.colour, band.grain) for band in plan.bands]
    labels = np.zeros(256, np.uint8)
    labels[: len(looks)] = [band.label for band in plan.bands]
    plain = np.zeros(_CELLS, np.uint8)
    for code, band in enumerate(plan.bands):
        plain[_cell(band.x0) : _cell(band.x1)] = code
    road_code = next(k for k, band in enumerate(plan.bands) if band.label == ROAD)
    paint = len(looks)
    looks.append((*plan.paint, 0.35))
    labels[paint] = ROAD
    for at in plan.solid:
        plain[_cell(at - 0.08) : _cell(at + 0.08)] = paint
    codes = np.stack([plain, plain, np.full(_CELLS, road_code, np.uint8), plain])
    for at in plan.dashed:
        codes[1, _cell(at - 0.08) : _cell(at + 0.08)] = paint
    on_road = slice(_cell(plan.road[0]), _cell(plan.road[1]))
    stripe = np.arange(on_road.start, on_road.stop) % int(_STEP) < _STEP / 2
    codes[3, on_road] = np.where(stripe, paint, road_code)
    return codes, np.array(looks, np.float32).clip(0.0, 255.0), labels


def _cell(x: float) -> int:
    """The first entry whose middle is at ``x`` metres or to the right of it."""
    return min(max(math.ceil((x + _HALF) * _STEP - 0.5), 0), _CELLS)


def draw_ground(canvas: Canvas, plan: GroundPlan, ahead: float) -> None:
    """Fill everything below the horizon; ``ahead`` is how far the camera has moved (metres)."""
    camera = canvas.camera
    first = max(0, int(np.floor(camera.horizon)))
    if first >= canvas.height:
        return
    drop = np.maximum(np.arange(first, canvas.height) + 0.5 - camera.horizon, 0.15)
    z = (camera.focal * camera.height / drop).astype(np.float32)
    column = (np.arange(canvas.width) + 0.5 - camera.cx).astype(np.float32)
    along = z + np.float32(ahead)
    codes, looks, labels = _tables(plan)
    row = ((along % plan.period) < plan.dash).astype(np.intp)
    for cross in plan.crosses:
        row[(along >= cross.z0) & (along < cross.z1)] = 2
        if cross.zebra:
            row[(along >= cross.z0 - 4.0) & (along < cross.z0 - 1.0)] = 3
        row[(along >= cross.z0 - 1.0) & (along < cross.z0)] = 0
    # Columns, one value per row of the picture. x is in entries of the tables.
    scale = (z * np.float32(_STEP / camera.focal))[:, None]
    shift = ((camera.x - camera.bend * z * z + _HALF) * np.float32(_STEP))[:, None]
    z = z[:, None]
    clear = np.exp(z / np.float32(-canvas.visibility))
    # Colour and grain of every code in every row, in fog and with distance, packed into 32 bits.
    seen = looks * clear[..., None]
    seen[..., :3] += (1.0 - clear[..., None]) * np.array(canvas.fog_colour, np.float32)
    seen[..., 3] *= np.minimum(1.0, 7.0 / z) * 255.0  # grain grows with nearness
    packed = seen.astype(np.uint8).view(np.uint32).ravel()
    first_code = (np.arange(len(z)) * len(looks))[:, None]
    first_cell = (row * np.float32(_CELLS))[:, None].astype(np.float32)
    # Grain lives on the ground and moves with the road. Stains are soft; every fourth pixel is
    # enough of them.
    oy, ox = plan.offset
    deep = ((((along * 14).astype(np.intp) + oy) & 511) * 512 + ox - _CELLS // 2)[:, None].astype(
        np.float32
    )
    low = ((((along[::4] * 6).astype(np.intp) + ox) & 511) * 512 + oy)[:, None]
    flat = (column[::4] * scale[::4] + shift[::4] - np.float32(_CELLS / 2)) * np.float32(
        22.0 / _STEP
    )
    blot = noise_tile(32).ravel().take(flat.astype(np.intp) + low, mode="wrap")
    # Half of the grain and of the stains around 128: fits into uint8.
    stain = (blot * (clear[::4] * np.float32(plan.stain * 0.175))).astype(np.int16)
    stain = cv2.resize(stain, (canvas.width, len(z))) + np.int16(128)
    grain, table = noise_tile(2).ravel(), codes.ravel()
    step = max(1, _BLOCK // canvas.width)
    buffers = _Buffers(step, canvas.width)
    for top in range(0, len(z), step):
        rows = slice(top, min(top + step, len(z)))
        there = slice(first + rows.start, first + rows.stop)
        x, held, index, code, pixels, texture = buffers.first(rows.stop - top)
        np.multiply(column, scale[rows], out=x)
        x += shift[rows]
        np.maximum(x, 0.0, out=held)
        np.minimum(held, _CELLS - 1.0, out=held)
        held += first_cell[rows]
        index[...] = held
        table.take(index, out=code, mode="clip")
        cv2.LUT(code, labels, canvas.label[there])
        np.add(code, first_code[rows], out=index)
        packed.take(index, out=pixels, mode="clip")
        surface = pixels.view(np.uint8).reshape(*code.shape, 4)
        x += deep[rows]
        index[...] = x
        grain.take(index, out=texture, mode="wrap")
        texture *= surface[..., 3]  # at most 120 * 255
        texture >>= 9
        texture += stain[rows]
        spread = cv2.cvtColor(texture.astype(np.uint8), cv2.COLOR_GRAY2BGR)
        below = cv2.cvtColor(surface, cv2.COLOR_BGRA2BGR)
        cv2.addWeighted(below, 1.0, spread, 2.0, -256.0, canvas.image[there])
