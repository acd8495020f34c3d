"""Cars, trucks, buses and trains."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from edgeseg.data.synthetic.canvas import Canvas, Face
from edgeseg.data.synthetic.colours import Colour, between, grey, jitter, scaled

__all__ = ["BUS", "CAR", "LOUD_PAINT", "TRAIN", "TRUCK", "crossing_vehicle", "vehicle"]

CAR, TRUCK, BUS, TRAIN = 13, 14, 15, 16

_CAR_PAINT: tuple[Colour, ...] = (
    (40, 40, 42),
    (95, 95, 98),
    (170, 172, 175),
    (225, 225, 225),
    (120, 60, 30),
    (40, 40, 150),
    (60, 90, 60),
    (70, 110, 160),
    (90, 70, 60),
)
LOUD_PAINT: tuple[Colour, ...] = (
    (40, 60, 200),
    (40, 190, 230),
    (190, 120, 40),
    (230, 230, 230),
    (60, 130, 60),
    (120, 120, 125),
    (30, 110, 220),
)
_CAR_BODIES = (CAR, "hatch", "van")
_GLASS: Colour = (62, 54, 46)
_TYRE: Colour = (26, 26, 26)

# Side outlines: s runs from the end that faces the camera to the other, t up.
_SIDE = {
    CAR: ((0, 0.17), (0.0, 0.56), (0.01, 0.9), (0.06, 0.99), (0.3, 1), (0.56, 0.99),
          (0.74, 0.64), (0.98, 0.52), (1, 0.17)),
    "hatch": ((0, 0.17), (0.0, 0.6), (0.01, 0.96), (0.05, 1), (0.6, 0.98), (0.78, 0.64),
              (0.99, 0.52), (1, 0.17)),
    "van": ((0, 0.14), (0, 0.94), (0.03, 1), (0.7, 0.99), (0.86, 0.6), (1, 0.48), (1, 0.14)),
}  # fmt: skip
_SIDE_GLASS = {
    CAR: ((0.14, 0.67), (0.25, 0.93), (0.55, 0.93), (0.69, 0.67)),
    "hatch": ((0.08, 0.66), (0.14, 0.93), (0.58, 0.93), (0.74, 0.66)),
    "van": ((0.5, 0.62), (0.5, 0.9), (0.69, 0.9), (0.81, 0.62)),
}


_REAR = ((0, 0.17), (1, 0.17), (1, 0.56), (0.97, 0.62), (0.84, 0.96), (0.78, 1), (0.22, 1),
         (0.16, 0.96), (0.03, 0.62), (0, 0.56))  # fmt: skip


def _wheels(face: Face, positions: tuple[float, ...], length: float, height: float) -> None:
    radius = 0.33 if height < 2.4 else 0.48
    if face.pixels < 15:
        half, top = radius / length, 1.6 * radius / height
        face.boxes([(s - half, 0, s + half, top) for s in positions], _TYRE)
        return
    for s in positions:
        face.oval(s, radius / height, radius / length, radius / height, _TYRE)
        if face.pixels > 24:
            face.oval(
                s, radius / height, radius * 0.55 / length, radius * 0.55 / height, grey(120.0)
            )


def _flank(
    face: Face, kind: int, body: str | int, paint: Colour, length: float, height: float
) -> None:
    """The long side of a vehicle, with its label."""
    if kind == CAR:
        face.poly(_SIDE[body], paint, CAR)
        _wheels(face, (0.19, 0.81), length, height)
        if face.pixels > 8:
            face.poly(_SIDE_GLASS[body], _GLASS)
        if face.pixels > 14:
            face.stroke((0.03, 0.36), (0.97, 0.36), 0.03, scaled(paint, 0.7))
        if face.pixels > 30:
            face.stroke((0.42, 0.2), (0.42, 0.95), 0.02, scaled(paint, 0.6))
        return
    if kind == TRUCK:
        face.box(0, 0.26, 0.74, 1, paint, TRUCK)
        face.poly(((0.77, 0.16), (0.77, 0.82), (0.94, 0.82), (1, 0.5), (1, 0.16)),
                  scaled(paint, 0.7), TRUCK)  # fmt: skip
        face.box(0, 0.14, 0.8, 0.26, grey(45.0), TRUCK)
        face.poly(((0.82, 0.52), (0.82, 0.76), (0.92, 0.76), (0.97, 0.52)), _GLASS)
        _wheels(face, (0.12, 0.24, 0.86), length, height)
        if face.pixels > 24:
            face.box(0.2, 0.5, 0.55, 0.75, scaled(paint, 1.3))
        return
    face.box(0, 0.1, 1, 1, paint, kind)
    face.box(0.02, 0.45, 0.98, 0.85, _GLASS)
    if face.pixels > 14:
        bars = [(k / 8 - 0.003, 0.45, k / 8 + 0.003, 0.85) for k in range(1, 8)]
        face.boxes(bars, scaled(paint, 0.8))
        face.box(0.0, 0.18, 1.0, 0.26, scaled(paint, 0.7))
    if kind == BUS:
        _wheels(face, (0.2, 0.78), length, height)
    else:
        face.box(0.0, 0.0, 1.0, 0.12, grey(40.0), kind)


def _end(face: Face, kind: int, body: str | int, paint: Colour, front: bool, lamps: float) -> None:
    """The end that faces the camera: front (headlights) or rear (tail lights)."""
    lamp: Colour = (
        (215, 235, 245) if front else (40 + 20 * lamps, 30 + 30 * lamps, 170 + 80 * lamps)
    )
    if kind == CAR and body != "van":
        face.boxes(((0.04, 0.02, 0.22, 0.3), (0.78, 0.02, 0.96, 0.3)), _TYRE, CAR)
        face.poly(_REAR, paint, CAR)
        face.poly(((0.1, 0.64), (0.9, 0.64), (0.81, 0.93), (0.19, 0.93)), _GLASS)
        bar = 0.42
    else:
        face.boxes(((0.04, 0.0, 0.2, 0.2), (0.8, 0.0, 0.96, 0.2)), _TYRE, kind)
        face.box(0, 0.12, 1, 1, paint, kind)
        if kind == TRUCK and not front:
            face.box(0.0, 0.1, 1.0, 0.25, grey(45.0))
            face.stroke((0.5, 0.26), (0.5, 0.98), 0.012, scaled(paint, 0.6))
        else:
            face.box(0.07, 0.5 if kind != CAR else 0.6, 0.93, 0.86, _GLASS)
        if kind in (BUS, TRAIN):
            face.box(0.2, 0.9, 0.8, 0.97, (40, 150, 220))
        bar = 0.3 if kind == CAR else 0.2
    if face.pixels > 9:
        face.boxes(((0.03, bar, 0.2, bar + 0.1), (0.8, bar, 0.97, bar + 0.1)), lamp)
    if face.pixels > 14:
        face.box(0, 0.17, 1, 0.24, scaled(paint, 0.45))
    if face.pixels > 22:
        face.box(0.36, 0.3, 0.64, 0.38, (225, 225, 225))
        face.stroke((0.02, 0.6), (0.98, 0.6), 0.015, scaled(paint, 0.7))
        if kind != TRUCK or front:
            face.poly(((0.55, 0.66), (0.7, 0.66), (0.62, 0.92), (0.5, 0.92)), scaled(_GLASS, 1.5))


def _nose(
    canvas: Canvas,
    body: str | int,
    paint: Colour,
    sides: tuple[float, float],
    z: float,
    length: float,
    height: float,
) -> None:
    """A car's front: windscreen, then the bonnet that slopes down to the grille before it."""
    x0, x1 = sides
    low, high = (0.48, 0.6) if body == "van" else (0.52, 0.64)
    back = length * (0.14 if body == "van" else 0.26)
    set_back = z + back + 0.15 * length
    cabin = canvas.face((x0, set_back), (x1, set_back), height)
    cabin.poly(((0, 0.5), (1, 0.5), (0.98, 0.64), (0.86, 0.97), (0.8, 1), (0.2, 1), (0.14, 0.97),
                (0.02, 0.64)), paint, CAR)  # fmt: skip
    cabin.poly(((0.07, 0.6), (0.93, 0.6), (0.83, 0.94), (0.17, 0.94)), _GLASS)
    if cabin.pixels > 22:
        cabin.poly(((0.55, 0.62), (0.7, 0.62), (0.62, 0.92), (0.5, 0.92)), scaled(_GLASS, 1.5))
    pixel = canvas.camera.pixel
    rim = 0.04 * (x1 - x0)
    bonnet = (
        pixel(x0, low * height, z),
        pixel(x1, low * height, z),
        pixel(x1 - rim, high * height, set_back),
        pixel(x0 + rim, high * height, set_back),
    )
    canvas.poly(bonnet, scaled(paint, 1.12), CAR)
    end = canvas.face((x0, z), (x1, z), height)
    end.boxes(((0.04, 0.0, 0.22, 0.3), (0.78, 0.0, 0.96, 0.3)), _TYRE, CAR)
    end.poly(((0.0, 0.15), (1.0, 0.15), (1.0, low - 0.06), (0.96, low), (0.04, low),
              (0.0, low - 0.06)), paint, CAR)  # fmt: skip
    if end.pixels > 9:
        lamps = ((0.04, low - 0.15, 0.24, low - 0.05), (0.76, low - 0.15, 0.96, low - 0.05))
        end.boxes(lamps, (215, 235, 245))
        end.box(0.3, low - 0.17, 0.7, low - 0.06, grey(38.0))
    if end.pixels > 22:
        end.box(0.37, 0.22, 0.63, 0.3, (225, 225, 225))
        end.box(0.1, 0.15, 0.9, 0.2, grey(45.0))


def _choose(rng: np.random.Generator, kind: int) -> tuple[str | int, Colour, float, float, float]:
    """Body style, paint, length, width and height (metres) of one vehicle."""
    if kind == CAR:
        body: str | int = _CAR_BODIES[bisect_right((0.45, 0.85), rng.random())]
        paint = jitter(rng, _CAR_PAINT[int(rng.integers(len(_CAR_PAINT)))], 14)
        tall = 1.0 if body != "van" else 1.3
        long, wide, high = rng.random(3).tolist()
        return body, paint, 3.7 + 1.1 * long, 1.7 + 0.25 * wide, (1.4 + 0.22 * high) * tall
    paint = jitter(rng, LOUD_PAINT[int(rng.integers(len(LOUD_PAINT)))], 18)
    low, high = {TRUCK: (6.0, 12.0), BUS: (9.0, 13.0), TRAIN: (16.0, 30.0)}[kind]
    return kind, paint, between(rng, low, high), between(rng, 2.3, 2.6), between(rng, 2.9, 3.6)


def _beside(canvas: Canvas, x: float, z0: float, z1: float) -> bool:
    """Whether a vehicle at ``x`` lies wholly left or right of the picture."""
    a, b = canvas.camera.pixel(x, 0.0, max(z0, 0.8))[0], canvas.camera.pixel(x, 0.0, z1)[0]
    margin = 1.5 * canvas.camera.focal / max(z1, 1.0)
    return max(a, b) < -margin or min(a, b) > canvas.width + margin


def vehicle(
    canvas: Canvas, rng: np.random.Generator, kind: int, x: float, z: float, front: bool
) -> None:
    """A vehicle that stands along the road, its near end at ``z``, its middle at ``x``."""
    body, paint, length, width, height = _choose(rng, kind)
    lamps = rng.random()
    half = width / 2
    if z + length < 1.5 or _beside(canvas, x, z, z + length):
        return
    if height * canvas.camera.focal < 12 * z:  # far away: an outline, glass and wheels
        face = canvas.face((x - half, z), (x + half, z), height)
        if body in (CAR, "hatch"):
            face.poly(_REAR, paint, kind)
        else:
            face.box(0, 0.1, 1, 1, paint, kind)
        face.box(0.16, 0.6, 0.84, 0.9, _GLASS)
        face.box(0, 0, 1, 0.15, grey(35.0))
        return
    canvas.contact_shadow(x - half * 1.1, x + half * 1.1, z - 0.25, z + length, 0.42)
    offset = x - canvas.camera.x
    if offset < -half:
        side = canvas.face((x + half, z), (x + half, z + length), height)
        light = canvas.sun_right
    elif offset > half:
        side = canvas.face((x - half, z), (x - half, z + length), height)
        light = canvas.sun_left
    else:
        side, light = None, 1.0
    if side is not None:
        if front:  # the outline starts at the tail; a front faces the camera here
            far, near = side._p1, side._p0
            side = canvas.face(far, near, height)
        _flank(side, kind, body, scaled(paint, light), length, height)
    if z <= 0.9:
        return
    if front and kind == CAR:
        _nose(canvas, body, paint, (x - half, x + half), z, length, height)
        return
    near_end = canvas.face((x - half, z), (x + half, z), height)
    _end(near_end, kind, body, paint, front, lamps)


def crossing_vehicle(
    canvas: Canvas, rng: np.random.Generator, kind: int, x: float, z: float
) -> None:
    """A vehicle seen from its side, at ``z``, its middle at ``x``."""
    body, paint, length, width, height = _choose(rng, kind)
    if z < 2.0:
        return
    canvas.contact_shadow(x - length / 2, x + length / 2, z - 0.2, z + width, 0.42)
    ends = ((x - length / 2, z), (x + length / 2, z))
    face = canvas.face(*(ends if rng.random() < 0.5 else ends[::-1]), height)
    _flank(face, kind, body, paint, length, height)
