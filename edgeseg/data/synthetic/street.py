"""What fronts the road: buildings, walls, fences and the skyline."""

from __future__ import annotations

import numpy as np

from edgeseg.data.synthetic.canvas import Canvas, Colour, Image, jitter, scaled
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


def _facade(rng: np.random.Generator, columns: int, floors: int) -> Image:
    """A front with windows: uint8 [20 * floors, 16 * columns, 3], top row is the eaves."""
    plaster = jitter(rng, _PLASTER[int(rng.integers(len(_PLASTER)))], 25)
    glass = jitter(rng, (85, 75, 65), 30)
    frame = scaled(plaster, float(rng.choice((0.7, 1.25))))
    cell = np.empty((20, 16, 3), np.uint8)
    cell[:] = np.array(plaster).astype(np.uint8)
    style = int(rng.integers(4))
    x0, x1 = (4, 12) if style != 1 else (1, 15)
    y0, y1 = (5, 16) if style != 2 else (3, 18)
    cell[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = np.array(frame).astype(np.uint8)
    cell[y0:y1, x0:x1] = np.array(glass).astype(np.uint8)
    cell[y0 : y0 + 3, x0:x1] = np.array(scaled(glass, 0.7)).astype(np.uint8)
    if style == 0:
        cell[y0:y1, 8] = np.array(frame).astype(np.uint8)
    if style == 3:
        cell[0:2] = np.array(scaled(plaster, 0.8)).astype(np.uint8)
    picture = np.tile(cell, (floors, columns, 1))
    changes = max(1, columns * floors // 3)
    at_column = rng.integers(0, columns, changes)
    at_floor = rng.integers(0, floors, changes)
    light = rng.uniform(0.5, 2.2, changes)
    for column, floor, factor in zip(at_column, at_floor, light, strict=True):
        y, x = int(floor) * 20, int(column) * 16
        picture[y + y0 : y + y1, x + x0 : x + x1] = np.array(scaled(glass, float(factor))).astype(
            np.uint8
        )
    picture[:3] = np.array(scaled(plaster, 0.6)).astype(np.uint8)
    if rng.random() < 0.5:  # shops
        picture[-17:] = np.array(jitter(rng, (70, 70, 75), 30)).astype(np.uint8)
        for column in range(columns):
            if rng.random() < 0.8:
                x = column * 16
                picture[-13:-2, x + 2 : x + 14] = np.array(jitter(rng, (95, 95, 95), 60)).astype(
                    np.uint8
                )
        picture[-19:-16] = np.array(jitter(rng, (90, 90, 120), 90)).astype(np.uint8)
    return picture


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
    floors = max(1, round(height / 3.1))
    columns = max(1, round((z1 - z0) / 2.8))
    picture = _facade(rng, columns, floors)
    gable = rng.random() < 0.4 and floors < 5
    roof = jitter(rng, (60, 70, 110), 25)
    sign = 1.0 if x > 0 else -1.0
    light = canvas.sun_left if x > 0 else canvas.sun_right
    if z1 < 1.0:
        return
    depth = 12.0
    if open_end and z0 > 1.0:
        end = canvas.face((x, z0), (x + sign * depth, z0), height)
        plain = jitter(rng, scaled(_as_colour(picture[10, 1]), 0.85), 8)
        end.box(0, 0, 1, 1, plain, BUILDING)
        if end.pixels > 20:
            for floor in range(floors):
                for k in range(3):
                    t = (floor + 0.35) / floors
                    end.box(0.15 + 0.27 * k, t, 0.28 + 0.27 * k, t + 0.4 / floors, (75, 68, 60))
        if gable:
            end.poly(((0, 1), (1, 1), (0.5, 1 + 4.0 / height)), plain, BUILDING)
    if gable:
        pixel = canvas.camera.pixel
        ridge = x + sign * depth / 2
        canvas.at((z0 + z1) / 2)
        canvas.poly(
            np.array(
                [
                    pixel(x, height, z0),
                    pixel(x, height, z1),
                    pixel(ridge, height + 4, z1),
                    pixel(ridge, height + 4, z0),
                ],
                np.float32,
            ),
            scaled(roof, light),
            BUILDING,
        )
    if light != 1.0:
        picture = np.clip(picture * np.float32(light), 0, 255).astype(np.uint8)
    if x < 0:
        picture = np.ascontiguousarray(picture[:, ::-1])
    canvas.face((x, z0), (x, z1), height).texture(picture, BUILDING)


def _as_colour(pixel: Image) -> Colour:
    return (float(pixel[0]), float(pixel[1]), float(pixel[2]))


def wall(
    canvas: Canvas, rng: np.random.Generator, x: float, z0: float, z1: float, height: float
) -> None:
    """A free-standing wall of stone, brick or concrete."""
    base = jitter(rng, ((120, 125, 130), (75, 90, 130), (105, 120, 125))[int(rng.integers(3))], 20)
    picture = np.empty((12, 48, 3), np.uint8)
    picture[:] = np.array(base).astype(np.uint8)
    tint = rng.uniform(0.8, 1.12, (4, 12, 1)).astype(np.float32)
    picture = (picture * np.repeat(np.repeat(tint, 3, 0), 4, 1)).clip(0, 255).astype(np.uint8)
    picture[::3] = np.array(scaled(base, 0.75)).astype(np.uint8)
    picture[0] = np.array(scaled(base, 1.25)).astype(np.uint8)
    if z1 < 1.0:
        return
    picture = np.tile(picture, (1, max(1, round((z1 - z0) / 8)), 1))
    canvas.face((x, z0), (x, z1), height).texture(picture, WALL)


def fence(
    canvas: Canvas, rng: np.random.Generator, x: float, z0: float, z1: float, height: float
) -> None:
    """Pickets, bars or mesh: what is seen between the bars belongs to the fence."""
    base = jitter(rng, ((90, 110, 95), (60, 60, 62), (90, 130, 165))[int(rng.integers(3))], 25)
    gap = jitter(rng, (75, 95, 85), 25)
    picture = np.empty((16, 12, 3), np.uint8)
    picture[:] = np.array(gap).astype(np.uint8)
    step = int(rng.integers(3, 7))
    picture[:, ::step] = np.array(base).astype(np.uint8)
    if rng.random() < 0.4:
        picture[:, 1::step] = np.array(scaled(base, 1.2)).astype(np.uint8)
    picture[[1, 13]] = np.array(base).astype(np.uint8)
    if z1 < 1.0:
        return
    picture = np.tile(picture, (1, max(1, round((z1 - z0) / 1.5)), 1))
    canvas.face((x, z0), (x, z1), height).texture(picture, FENCE)


def skyline(canvas: Canvas, rng: np.random.Generator, urban: float) -> None:
    """Far houses and woods on the horizon, beyond everything else."""
    canvas.at(140.0)
    count = 26
    edges = np.sort(rng.uniform(-0.05, 1.05, count)) * canvas.width
    heights = rng.uniform(0.4, 1.0, count)
    kinds = rng.random(count) < urban
    horizon = canvas.camera.horizon
    base = horizon + 0.01 * canvas.height
    step = canvas.width / count
    for k in range(count):
        u, wide = float(edges[k]), step * 2.4
        if kinds[k]:
            tall = heights[k] * 0.13 * canvas.height
            box = [(u - wide / 2, base), (u + wide / 2, base), (u + wide / 2, base - tall),
                   (u - wide / 2, base - tall)]  # fmt: skip
            paint = jitter(rng, _PLASTER[k % len(_PLASTER)], 20)
            canvas.poly(np.array(box, np.float32), scaled(paint, 0.85), BUILDING)
        else:
            tall = heights[k] * 0.1 * canvas.height
            leaf = jitter(rng, LEAVES[k % len(LEAVES)], 10)
            foliage(canvas, rng, u, base - tall * 0.4, wide * 1.3, tall, leaf)
