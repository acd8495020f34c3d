"""What fronts the road: buildings, walls, fences and the skyline."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic.canvas import Canvas, Face
from edgeseg.data.synthetic.colours import Colour, Image, jitter, scaled
from edgeseg.data.synthetic.plants import LEAVES, foliage

__all__ = ["building", "fence", "skyline", "wall"]

BUILDING, WALL, FENCE = 2, 3, 4

_PLASTER: tuple[Colour, ...] = (
    (150, 170, 185),
    (120, 140, 160),
    (100, 105, 115),
    (70, 85, 125),
    (165, 175, 180),
    (85, 110, 140),
    (130, 125, 120),
    (190, 200, 205),
)


def _facade(
    canvas: Canvas, rng: np.random.Generator, columns: int, floors: int, light: float
) -> tuple[Image, Colour]:
    """A front with windows in the light and fog of its place, and the plaster's own colour.

    The front: uint8 [20 * floors, 16 * columns, 3], top row is the eaves.
    """

    def seen(colour: Colour) -> Colour:
        return canvas.tone(scaled(colour, light))

    plaster = jitter(rng, _PLASTER[int(rng.integers(len(_PLASTER)))], 25)
    glass = jitter(rng, (85, 75, 65), 30)
    frame = seen(scaled(plaster, (0.7, 1.25)[int(rng.integers(2))]))
    cell = np.empty((20, 16, 3), np.uint8)
    cell[:] = seen(plaster)
    style = int(rng.integers(4))
    x0, x1 = (4, 12) if style != 1 else (1, 15)
    y0, y1 = (5, 16) if style != 2 else (3, 18)
    cell[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = frame
    cell[y0:y1, x0:x1] = seen(glass)
    cell[y0 : y0 + 3, x0:x1] = seen(scaled(glass, 0.7))
    if style == 0:
        cell[y0:y1, 8] = frame
    if style == 3:
        cell[0:2] = seen(scaled(plaster, 0.8))
    cells = np.empty((floors, 20, columns, 16, 3), np.uint8)
    cells[:] = cell[:, None]
    changes = max(1, columns * floors // 3)
    at_column = rng.integers(0, columns, changes)
    at_floor = rng.integers(0, floors, changes)
    panes = _seen(canvas, rng.uniform(0.5, 2.2, (changes, 1)) * scaled(glass, light))
    cells[at_floor, y0:y1, at_column, x0:x1] = panes[:, None, None]
    picture: Image = cells.reshape(20 * floors, 16 * columns, 3)
    picture[:3] = seen(scaled(plaster, 0.6))
    if rng.random() < 0.5:  # shops
        picture[-17:] = seen(jitter(rng, (70, 70, 75), 30))
        for x in range(0, 16 * columns, 16):
            if rng.random() < 0.8:
                picture[-13:-2, x + 2 : x + 14] = seen(jitter(rng, (95, 95, 95), 60))
        picture[-19:-16] = seen(jitter(rng, (90, 90, 120), 90))
    return picture, plaster


def _seen(canvas: Canvas, colours: npt.NDArray[np.float64]) -> Image:
    """:meth:`Canvas.tone` of many colours, [..., 3], saturated at 255."""
    toned = np.minimum(colours, 255.0)
    if canvas.fog >= 0.01:
        toned *= 1.0 - canvas.fog
        toned += np.array(canvas.fog_colour) * canvas.fog
    return toned.astype(np.uint8)


def building(
    canvas: Canvas,
    rng: np.random.Generator,
    x: float,
    z0: float,
    z1: float,
    height: float,
    open_end: bool,
) -> None:
    """A house with its front at ``x`` from ``z0`` to ``z1``; ``open_end``: its end wall shows."""
    sign = 1.0 if x > 0 else -1.0
    depth = 12.0
    if z1 < 1.0:
        return
    pixel = canvas.camera.pixel
    ends = [pixel(at, 0.0, z)[0] for at in (x, x + sign * depth) for z in (z0, z1)]
    if max(ends) < 0 or min(ends) > canvas.width:
        return
    floors = max(1, round(height / 3.1))
    columns = max(1, round((z1 - z0) / 2.8))
    light = canvas.sun_left if x > 0 else canvas.sun_right
    front = canvas.face((x, z0), (x, z1), height)
    picture, plaster = _facade(canvas, rng, columns, floors, light)
    gable = rng.random() < 0.4 and floors < 5
    roof = jitter(rng, (60, 70, 110), 25)
    if open_end and z0 > 1.0:
        end = canvas.face((x, z0), (x + sign * depth, z0), height)
        plain = jitter(rng, scaled(plaster, 0.85), 8)
        if not end.beside(0.0):
            _end_wall(end, plain, floors, gable, 4.0 / height)
    if gable:
        ridge = x + sign * depth / 2
        canvas.at((z0 + z1) / 2)
        canvas.poly(
            (
                pixel(x, height, z0),
                pixel(x, height, z1),
                pixel(ridge, height + 4, z1),
                pixel(ridge, height + 4, z0),
            ),
            scaled(roof, light),
            BUILDING,
        )
    if x < 0:
        picture = cv2.flip(picture, 1)
    front.texture(picture, BUILDING)


def _end_wall(end: Face, plain: Colour, floors: int, gable: bool, rise: float) -> None:
    end.box(0, 0, 1, 1, plain, BUILDING)
    if end.pixels > 20:
        panes = [
            (s, (floor + 0.35) / floors, s + 0.13, (floor + 0.75) / floors)
            for floor in range(floors)
            for s in (0.15, 0.42, 0.69)
        ]
        end.boxes(panes, (75, 68, 60))
    if gable:
        end.poly(((0, 1), (1, 1), (0.5, 1 + rise)), plain, BUILDING)


def wall(
    canvas: Canvas, rng: np.random.Generator, x: float, z0: float, z1: float, height: float
) -> None:
    """A free-standing wall of stone, brick or concrete."""
    if z1 < 1.0:
        return
    base = jitter(rng, ((120, 125, 130), (75, 90, 130), (105, 120, 125))[int(rng.integers(3))], 20)
    face = canvas.face((x, z0), (x, z1), height)
    stones = _seen(canvas, rng.uniform(0.8, 1.12, (4, 12, 1)) * base)
    picture = stones.repeat(3, 0).repeat(4, 1)
    picture[::3] = canvas.tone(scaled(base, 0.75))
    picture[0] = canvas.tone(scaled(base, 1.25))
    picture = np.tile(picture, (1, max(1, round((z1 - z0) / 8)), 1))
    face.texture(picture, WALL)


def fence(
    canvas: Canvas, rng: np.random.Generator, x: float, z0: float, z1: float, height: float
) -> None:
    """Pickets, bars or mesh: what is seen between the bars belongs to the fence."""
    if z1 < 1.0:
        return
    base = jitter(rng, ((90, 110, 95), (60, 60, 62), (90, 130, 165))[int(rng.integers(3))], 25)
    gap = jitter(rng, (75, 95, 85), 25)
    face = canvas.face((x, z0), (x, z1), height)
    bar = canvas.tone(base)
    picture = np.empty((16, 12, 3), np.uint8)
    picture[:] = canvas.tone(gap)
    step = int(rng.integers(3, 7))
    picture[:, ::step] = bar
    if rng.random() < 0.4:
        picture[:, 1::step] = canvas.tone(scaled(base, 1.2))
    picture[1] = picture[13] = bar
    picture = np.tile(picture, (1, max(1, round((z1 - z0) / 1.5)), 1))
    face.texture(picture, FENCE)


def skyline(canvas: Canvas, rng: np.random.Generator, urban: float) -> None:
    """Far houses and woods on the horizon, beyond everything else."""
    canvas.at(140.0)
    count = 26
    edges = (np.sort(rng.uniform(-0.05, 1.05, count)) * canvas.width).tolist()
    heights = rng.uniform(0.4, 1.0, count).tolist()
    kinds = (rng.random(count) < urban).tolist()
    horizon = canvas.camera.horizon
    base = horizon + 0.01 * canvas.height
    step = canvas.width / count
    for k in range(count):
        u, wide = edges[k], step * 2.4
        if kinds[k]:
            tall = heights[k] * 0.13 * canvas.height
            x0, x1, top = u - wide / 2, u + wide / 2, base - tall
            box = ((x0, base), (x1, base), (x1, top), (x0, top))
            paint = jitter(rng, _PLASTER[k % len(_PLASTER)], 20)
            canvas.poly(box, scaled(paint, 0.85), BUILDING)
        else:
            tall = heights[k] * 0.1 * canvas.height
            leaf = jitter(rng, LEAVES[k % len(LEAVES)], 10)
            foliage(canvas, rng, u, base - tall * 0.4, wide * 1.3, tall, leaf)
