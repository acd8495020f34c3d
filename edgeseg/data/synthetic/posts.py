"""Street lamps, traffic lights and traffic signs."""

from __future__ import annotations

import numpy as np

from edgeseg.data.synthetic.canvas import Canvas
from edgeseg.data.synthetic.colours import Colour, between, grey, jitter, scaled

__all__ = ["lamp", "sign", "traffic_light"]

POLE, LIGHT, SIGN = 5, 6, 7


def _post(
    canvas: Canvas, x: float, z: float, height: float, thick: float, paint: Colour
) -> tuple[float, float, float]:
    """A vertical pole; returns pixel column, top row and pixels per metre."""
    canvas.at(z)
    u, foot = canvas.camera.pixel(x, 0, z)
    scale = canvas.camera.focal / z
    half = max(thick * scale, 1.3) / 2
    top = foot - height * scale
    corners = [(u - half, foot), (u + half, foot), (u + half, top), (u - half, top)]
    canvas.poly(corners, paint, POLE)
    return u, top, scale


def lamp(canvas: Canvas, rng: np.random.Generator, x: float, z: float, lit: bool) -> None:
    """A street lamp or a bare pole."""
    height = between(rng, 4.5, 9.0)
    thick = between(rng, 0.13, 0.24)
    paint = jitter(rng, (95, 98, 98), 40)
    arm = rng.random() < 0.7
    if z < 2.0:
        return
    u, top, scale = _post(canvas, x, z, height, thick, paint)
    if arm:
        reach = (-1.6 if x > 0 else 1.6) * scale
        thin = max(0.09 * scale, 1.0)
        bar = [(u, top), (u + reach, top - thin), (u + reach, top), (u, top + thin)]
        canvas.poly(bar, paint, POLE)
        head = (240, 250, 255) if lit else scaled(paint, 0.8)
        h = max(0.13 * scale, 1.0)
        e = u + reach
        box = [(e - 2 * h, top - h), (e + 2 * h, top - h), (e + 2 * h, top), (e - 2 * h, top)]
        canvas.poly(box, head, POLE)


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Signal heads on a pole, some on an arm over the road."""
    paint = jitter(rng, (85, 90, 90), 25)
    case = jitter(rng, (32, 36, 34), 12)
    phase = int(rng.integers(3))
    back = rng.random() < 0.25
    arm = rng.random() < 0.35
    if z < 2.5:
        return
    height = 3.2 if not arm else 5.6
    u, top, scale = _post(canvas, x, z, height, 0.16, paint)
    places = [(u, top + 0.55 * scale)]
    if arm:
        reach = (-3.2 if x > 0 else 3.2) * scale
        thin = max(0.1 * scale, 1.0)
        bar = [(u, top), (u + reach, top), (u + reach, top + thin), (u, top + thin)]
        canvas.poly(bar, paint, POLE)
        places = [(u, top + 2.9 * scale), (u + reach, top + 0.4 * scale)]
    lights = ((40, 40, 235), (40, 200, 245), (120, 225, 60))
    half = max(0.17 * scale, 1.2)
    for cu, cv in places:
        tall = 2.8 * half
        box = [(cu - half, cv - tall), (cu + half, cv - tall), (cu + half, cv + tall),
               (cu - half, cv + tall)]  # fmt: skip
        canvas.poly(box, case, LIGHT)
        for k in range(3):
            on = k == phase and not back
            colour = lights[k] if on else (42.0, 46.0, 44.0)
            canvas.disc(cu, cv + (k - 1) * tall * 0.6, half * 0.72, colour)


def sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A traffic sign: disc, triangle, square or direction board."""
    form = int(rng.integers(5))
    height = between(rng, 2.2, 3.2)
    size = between(rng, 0.3, 0.45)
    two = rng.random() < 0.3
    blue, red, white, yellow = (190, 90, 25), (45, 40, 205), (235, 235, 235), (40, 190, 240)
    paint = jitter(rng, (120, 122, 122), 25)
    text = between(rng, 0.2, 0.6)
    if z < 2.0:
        return
    u, v, scale = _post(canvas, x, z, height, 0.08, paint)
    r = max(size * scale, 1.5)
    if form == 0:
        canvas.disc(u, v, r, red, SIGN)
        canvas.disc(u, v, r * 0.72, white)
        canvas.disc(u, v, r * text * 0.6, grey(30.0))
    elif form == 1:
        outer = [(u, v - r), (u + r, v + r * 0.8), (u - r, v + r * 0.8)]
        inner = [(u, v - r * 0.5), (u + r * 0.6, v + r * 0.58), (u - r * 0.6, v + r * 0.58)]
        canvas.poly(outer, red, SIGN)
        canvas.poly(inner, white)
    elif form == 2:
        canvas.disc(u, v, r, blue, SIGN)
        w, t = 0.15 * r, 0.6 * r
        bar = [(u - w, v - t), (u + w, v - t), (u + w, v + t), (u - w, v + t)]
        canvas.poly(bar, white)
    elif form == 3:
        diamond = [(u, v - r), (u + r, v), (u, v + r), (u - r, v)]
        canvas.poly(diamond, white, SIGN)
        inner = [(u, v - r * 0.65), (u + r * 0.65, v), (u, v + r * 0.65), (u - r * 0.65, v)]
        canvas.poly(inner, yellow)
    else:
        w = r * 2.4
        board = [(u - w, v - r), (u + w, v - r), (u + w, v + r), (u - w, v + r)]
        back = (blue, yellow, white, (70, 120, 30))[int(4 * text) % 4]
        canvas.poly(board, back, SIGN)
        line = [(u - w * 0.8, v - r * 0.2), (u + w * 0.5, v - r * 0.2), (u + w * 0.5, v + r * 0.15),
                (u - w * 0.8, v + r * 0.15)]  # fmt: skip
        canvas.poly(line, white if back != white else grey(40.0))
    if two:
        low = [
            (u - r, v + 1.2 * r),
            (u + r, v + 1.2 * r),
            (u + r, v + 1.9 * r),
            (u - r, v + 1.9 * r),
        ]
        canvas.poly(low, white, SIGN)
