"""People on foot, bicycles and motorcycles with and without a rider."""

from __future__ import annotations

import math

import numpy as np

from edgeseg.data.synthetic.canvas import Canvas, Face
from edgeseg.data.synthetic.colours import Colour, between, grey, jitter, scaled
from edgeseg.data.synthetic.vehicles import LOUD_PAINT

__all__ = ["BICYCLE", "MOTORCYCLE", "person", "two_wheeler"]

PERSON, RIDER, MOTORCYCLE, BICYCLE = 11, 12, 17, 18

_CLOTHES: tuple[Colour, ...] = (
    (40, 35, 35),
    (80, 60, 40),
    (120, 110, 110),
    (60, 60, 160),
    (150, 90, 50),
    (70, 110, 70),
    (200, 200, 200),
    (40, 120, 190),
)
_SKIN: tuple[Colour, ...] = ((140, 170, 215), (95, 130, 180), (60, 85, 125))
_TYRE: Colour = (26, 26, 26)


def _body(face: Face, rng: np.random.Generator, label: int, stride: float, seated: bool) -> None:
    """A human figure on a face whose width is half its height."""
    top = jitter(rng, _CLOTHES[int(rng.integers(len(_CLOTHES)))], 15)
    legs = jitter(rng, _CLOTHES[int(rng.integers(4))], 12)
    skin = _SKIN[int(rng.integers(len(_SKIN)))]
    hair = jitter(rng, (30, 40, 60), 25)
    wide = between(rng, 0.16, 0.24)
    skirt = rng.random() < 0.2
    bag = rng.random() < 0.3
    hip, shoulder = 0.48, 0.82
    lean = 0.1 if seated else 0.0
    if not seated:
        for sign in (-1.0, 1.0):
            foot = 0.5 + sign * (0.07 + stride * 0.14)
            face.stroke((0.5 + sign * 0.07, hip), (foot, 0.02), 0.095, legs, label)
            if face.pixels > 26:
                face.box(foot - 0.06, 0.0, foot + 0.09, 0.035, grey(30.0), label)
        if skirt:
            face.poly(((0.34, 0.28), (0.66, 0.28), (0.6, 0.55), (0.4, 0.55)), top, label)
    else:
        face.stroke((0.45, hip), (0.62, 0.3), 0.1, legs, label)
        face.stroke((0.62, 0.32), (0.52, 0.1), 0.08, legs, label)
    trunk = (
        (0.5 - wide * 0.8, hip - 0.03),
        (0.5 + wide * 0.8, hip - 0.03),
        (0.5 + wide + lean, shoulder - 0.02),
        (0.5 + wide * 0.6 + lean, shoulder + 0.02),
        (0.5 - wide * 0.6 + lean, shoulder + 0.02),
        (0.5 - wide + lean, shoulder - 0.02),
    )
    face.poly(trunk, top, label)
    swing = stride * 0.12
    sleeve = scaled(top, 0.8)
    reach = 0.25 if seated else 0.0
    for sign in (-1.0, 1.0):
        hand = (0.5 + sign * (wide + 0.03 + swing) + reach, 0.46 + reach * 0.4)
        face.stroke((0.5 + sign * wide + lean, shoulder - 0.03), hand, 0.06, sleeve, label)
    if bag and not seated:
        face.box(0.5 + wide, 0.42, 0.5 + wide + 0.16, 0.58, jitter(rng, (60, 60, 70), 50), label)
    face.oval(0.5 + lean, 0.925, 0.13, 0.075, skin, label)
    if face.pixels > 18:
        face.poly(((0.37 + lean, 0.93), (0.63 + lean, 0.93), (0.6 + lean, 1.0),
                   (0.4 + lean, 1.0)), hair, label)  # fmt: skip


def person(canvas: Canvas, rng: np.random.Generator, x: float, z: float, phase: float) -> None:
    """Somebody on foot; ``phase`` (radians) moves the legs."""
    height = between(rng, 1.5, 1.92) if rng.random() < 0.88 else between(rng, 0.95, 1.4)
    turn = between(rng, 0.0, 1.0)
    if z < 1.6:
        return
    canvas.contact_shadow(x - 0.28, x + 0.28, z - 0.12, z + 0.25, 0.55)
    ends = ((x - height / 4, z), (x + height / 4, z))
    face = canvas.face(*(ends if rng.random() < 0.5 else ends[::-1]), height)
    _body(face, rng, PERSON, turn * math.sin(phase + 6.28 * turn), False)


def two_wheeler(
    canvas: Canvas, rng: np.random.Generator, kind: int, x: float, z: float, rider: bool
) -> None:
    """A bicycle or motorcycle, parked or with a rider, seen from the side, rear or obliquely."""
    if z < 1.6:
        return
    turn = ((0.12, 0.2, 0.6, 1.0) if rider else (0.12, 0.5, 0.85, 1.0))[int(rng.integers(4))]
    motor = kind == MOTORCYCLE
    length = 2.05 if motor else 1.75
    height = 1.15 if motor else 1.05
    paint = jitter(rng, LOUD_PAINT[int(rng.integers(len(LOUD_PAINT)))], 30)
    dark = jitter(rng, (35, 35, 38), 12)
    half = length / 2
    dx, dz = half * turn, half * math.sqrt(1.0 - turn * turn)
    canvas.contact_shadow(x - dx - 0.15, x + dx + 0.15, z - 0.1, z + 2 * dz + 0.2, 0.6)
    ends = ((x - dx, z), (x + dx, z + 2 * dz))
    face = canvas.face(*(ends if rng.random() < 0.5 else ends[::-1]), height)
    radius = 0.31 if motor else 0.34
    rs, rt = radius / length, radius / height
    for s in (rs, 1 - rs):
        face.oval(s, rt, rs, rt, _TYRE, kind)
        if not motor and face.pixels > 20:  # the ground shows through the spokes, as it does
            face.oval(s, rt, rs * 0.8, rt * 0.8, grey(105.0))
        elif face.pixels > 16:
            face.oval(s, rt, rs * 0.5, rt * 0.5, grey(120.0))
    if motor:
        face.poly(((0.2, 0.4), (0.75, 0.36), (0.82, 0.72), (0.62, 0.86), (0.45, 0.66),
                   (0.1, 0.74)), paint, kind)  # fmt: skip
        face.box(0.34, 0.2, 0.68, 0.45, dark, kind)
        face.stroke((0.83, 0.3), (0.74, 0.92), 0.07, dark, kind)
    else:
        for a, b in (
            ((rs, rt), (0.42, 0.36)),
            ((0.42, 0.36), (0.68, 0.78)),
            ((0.36, 0.78), (0.68, 0.78)),
            ((0.36, 0.84), (0.42, 0.36)),
            ((1 - rs, rt), (0.7, 0.95)),
            ((rs, rt), (0.37, 0.72)),
        ):
            face.stroke(a, b, 0.055, paint, kind)
        face.stroke((0.3, 0.86), (0.43, 0.86), 0.07, dark, kind)
    face.stroke((0.66, 0.95), (0.78, 0.98), 0.06, dark, kind)
    if rider:
        tall = between(rng, 1.5, 1.75)
        wide = tall / 2
        middle = x - 0.05
        ends = ((middle - wide / 2, z + dz), (middle + wide / 2, z + dz))
        figure = canvas.face(*ends, tall, 0.2)
        _body(figure, rng, RIDER, 0.1, True)
        if rng.random() < 0.5:
            figure.oval(0.6, 0.95, 0.15, 0.07, jitter(rng, (90, 90, 160), 80), RIDER)
