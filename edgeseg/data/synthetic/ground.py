"""The ground: every pixel below the horizon is cast onto the road plane and looked up."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic.canvas import Canvas, Colour, grey, jitter, noise_tile

__all__ = ["Band", "Cross", "GroundPlan", "draw_ground"]

ROAD, SIDEWALK, TERRAIN = 0, 1, 9

_HALF = 40.0  # metres to each side that the lookup covers
_STEP = 20.0  # entries per metre
_CELLS = int(2 * _HALF * _STEP)


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


def _tables(
    plan: GroundPlan,
) -> tuple[
    npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float32]
]:
    """Four rows of surface codes over x (plain, dashes on, side street, zebra) and their looks."""
    colours: list[Colour] = []
    labels: list[int] = []
    grains: list[float] = []
    plain = np.zeros(_CELLS, np.uint8)
    x = (np.arange(_CELLS) + 0.5) / _STEP - _HALF
    for code, band in enumerate(plan.bands):
        colours.append(band.colour)
        labels.append(band.label)
        grains.append(band.grain)
        plain[(x >= band.x0) & (x < band.x1)] = code
    road_code = next(k for k, band in enumerate(plan.bands) if band.label == ROAD)
    paint = len(colours)
    colours.append(plan.paint)
    labels.append(ROAD)
    grains.append(0.35)
    for at in plan.solid:
        plain[np.abs(x - at) < 0.08] = paint
    dashes = plain.copy()
    for at in plan.dashed:
        dashes[np.abs(x - at) < 0.08] = paint
    street = np.full(_CELLS, road_code, np.uint8)
    zebra = plain.copy()
    on_road = (x > plan.road[0]) & (x < plan.road[1])
    zebra[on_road] = np.where((x[on_road] % 1.0) < 0.5, paint, road_code)
    codes = np.stack([plain, dashes, street, zebra])
    return (
        codes,
        np.array(colours).clip(0, 255).astype(np.uint8),
        np.array(labels, np.uint8),
        np.array(grains, np.float32),
    )


def draw_ground(canvas: Canvas, plan: GroundPlan, ahead: float) -> None:
    """Fill everything below the horizon; ``ahead`` is how far the camera has moved (metres)."""
    camera = canvas.camera
    first = max(0, int(np.floor(camera.horizon)))
    if first >= canvas.height:
        return
    drop = np.maximum(np.arange(first, canvas.height) + 0.5 - camera.horizon, 0.15)
    z = (camera.focal * camera.height / drop).astype(np.float32)
    column = (np.arange(canvas.width) + 0.5 - camera.cx).astype(np.float32)
    scale = z / np.float32(camera.focal)
    x = scale[:, None] * column
    x += (camera.x - camera.bend * z * z)[:, None].astype(np.float32)
    along = z + np.float32(ahead)
    codes, colours, labels, grains = _tables(plan)
    row = ((along % plan.period) < plan.dash).astype(np.intp)
    for cross in plan.crosses:
        row[(along >= cross.z0) & (along < cross.z1)] = 2
        if cross.zebra:
            row[(along >= cross.z0 - 4.0) & (along < cross.z0 - 1.0)] = 3
        row[(along >= cross.z0 - 1.0) & (along < cross.z0)] = 0
    cell = ((x + np.float32(_HALF)) * np.float32(_STEP)).clip(0, _CELLS - 1).astype(np.intp)
    cell += row[:, None] * _CELLS
    code = codes.ravel().take(cell)
    canvas.label[first:] = labels.take(code)
    # Grain lives on the ground: it grows with nearness and moves with the road.
    oy, ox = plan.offset
    near = np.minimum(1.0, 7.0 / z)[:, None].astype(np.float32)
    deep = ((along * 14).astype(np.intp) + oy) & 511
    flat = (x * 40).astype(np.int32)
    flat += ox
    flat &= 511
    texture = noise_tile(2).ravel().take(flat + (deep * 512)[:, None]) * (grains.take(code) * near)
    # Stains are soft; every fourth pixel is enough of them.
    deep = ((along[::4] * 6).astype(np.intp) + ox) & 511
    flat = ((x[::4, ::4] * 22).astype(np.int32) + oy) & 511
    blot = noise_tile(32).ravel().take(flat + (deep * 512)[:, None]).astype(np.float32)
    blot *= plan.stain * 0.35
    texture += cv2.resize(blot, (canvas.width, len(z)), interpolation=cv2.INTER_LINEAR)
    fog = (1.0 - np.exp(-z / np.float32(canvas.visibility)))[:, None]
    texture *= 1.0 - fog
    fogged = np.array(canvas.fog_colour, np.float32)
    for channel in range(3):
        plane = colours[:, channel].astype(np.float32).take(code)
        plane *= 1.0 - fog
        plane += texture + fog * fogged[channel]
        canvas.image[first:, :, channel] = plane.clip(0.0, 255.0)
