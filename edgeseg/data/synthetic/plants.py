"""Trees and bushes."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from edgeseg.data.synthetic.canvas import Canvas
from edgeseg.data.synthetic.colours import Colour, Image, between, jitter, scaled

__all__ = ["LEAVES", "bush", "foliage", "tree"]

VEGETATION = 8

LEAVES: tuple[Colour, ...] = ((38, 72, 52), (34, 58, 40), (50, 95, 80), (40, 80, 95), (45, 60, 62))

_BRIGHTNESS = np.arange(256, dtype=np.uint8)[:, None]


@functools.lru_cache(maxsize=24)
def _crown(variant: int, flip: bool) -> tuple[Image, Image]:
    """Brightness (128 = the leaf's own) and mask (0 or the label) of a crown, uint8 [96, 96].

    Clumps of leaves, darker below and inside. Drawn once: a street needs dozens of crowns, and
    a hundred discs for each would cost more than the rest of the scene.
    """
    rng = np.random.Generator(np.random.PCG64(4001 + variant))
    size = 96
    light = np.full((size, size), 80, np.uint8)
    mask = np.zeros((size, size), np.uint8)
    ring = np.linspace(0, 6.283, 20, endpoint=False)
    reach = rng.uniform(0.72, 0.96, 20)
    outline = np.stack([np.cos(ring) * reach, np.sin(ring) * reach], axis=1) * 44 + 48
    cv2.fillPoly(mask, [outline.astype(np.int32)], VEGETATION)
    for count, low, high in ((26, 0.2, 0.34), (60, 0.07, 0.15), (120, 0.03, 0.07)):
        angle = rng.uniform(0, 6.283, count)
        far = np.sqrt(rng.uniform(0, 1, count)) * (1.0 - low)
        radius = rng.uniform(low, high, count)
        shade = rng.uniform(0.7, 1.4, count)
        for a, f, r, s in zip(angle, far, radius, shade, strict=True):
            at = (int(48 + 46 * f * np.cos(a)), int(48 + 46 * f * np.sin(a)))
            tone = 128.0 * s * (1.0 - 0.35 * f * np.sin(a))
            cv2.circle(light, at, int(46 * r), (float(min(tone, 255.0)),), -1)
            cv2.circle(mask, at, int(46 * r), VEGETATION, -1)
    if flip:
        light, mask = np.ascontiguousarray(light[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    return light, mask


def foliage(
    canvas: Canvas,
    rng: np.random.Generator,
    u: float,
    v: float,
    wide: float,
    tall: float,
    leaf: Colour,
) -> None:
    """A crown of leaves around (u, v), all in pixels."""
    variant, flip = int(rng.integers(12)), rng.random() < 0.5
    x0, y0 = int(u - wide / 2), int(v - tall / 2)
    columns, rows = max(int(wide), 2), max(int(tall), 2)
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + columns, canvas.width), min(y0 + rows, canvas.height)
    if right <= left or bottom <= top:
        return
    fog = canvas.fog
    clear = (1.0 - fog) / 128.0
    # A row per channel: what a brightness is multiplied by, and what is added.
    tint = [(c * clear, h * fog) for c, h in zip(leaf, canvas.fog_colour, strict=True)]
    place = (x0, y0, columns, rows)
    window = (left, top, right, bottom)
    canvas.later(functools.partial(_foliage, canvas, variant, flip, place, window, tint))


def _foliage(
    canvas: Canvas,
    variant: int,
    flip: bool,
    place: tuple[int, int, int, int],
    window: tuple[int, int, int, int],
    tint: list[tuple[float, float]],
    _: object,
) -> None:
    x0, y0, columns, rows = place
    left, top, right, bottom = window
    size = (right - left, bottom - top)
    light, mask = _crown(variant, flip)
    if size == (columns, rows):
        light = cv2.resize(light, size, interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    else:  # only the visible part is resampled: a near crown may be larger than the frame
        a, b = 96 / columns, 96 / rows
        matrix = np.array([[a, 0, (left - x0) * a], [0, b, (top - y0) * b]])
        flags = cv2.WARP_INVERSE_MAP
        light = cv2.warpAffine(light, matrix, size, flags=flags | cv2.INTER_LINEAR)
        mask = cv2.warpAffine(mask, matrix, size, flags=flags | cv2.INTER_NEAREST)
    table = cv2.transform(_BRIGHTNESS, np.array(tint, np.float32))
    cv2.copyTo(cv2.applyColorMap(light, table), mask, canvas.image[top:bottom, left:right])
    cv2.copyTo(mask, mask, canvas.label[top:bottom, left:right])


def tree(
    canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, conifer: bool
) -> None:
    """A tree; its trunk counts as vegetation too."""
    leaf = jitter(rng, LEAVES[int(rng.integers(len(LEAVES)))], 14)
    bark = jitter(rng, (45, 58, 72), 15)
    spread = between(rng, 0.5, 0.8) * height
    if z < 2.5:
        return
    canvas.at(z)
    u, foot = canvas.camera.pixel(x, 0, z)
    scale = canvas.camera.focal / z
    canvas.contact_shadow(x - spread * 0.3, x + spread * 0.3, z - 0.6, z + 0.6, 0.65)
    stem = max(0.035 * height * scale, 1.2)
    top = foot - height * scale
    trunk = ((u - stem / 2, foot), (u + stem / 2, foot), (u + stem / 3, top), (u - stem / 3, top))
    canvas.poly(trunk, bark, VEGETATION)
    if conifer:
        for k in range(5):
            y0 = foot - (0.12 + 0.17 * k) * height * scale
            half = spread * 0.42 * (1 - k / 6) * scale
            tier = [(u - half, y0), (u + half, y0), (u, y0 - 0.36 * height * scale)]
            canvas.poly(tier, scaled(leaf, 0.7 + 0.12 * k), VEGETATION)
        return
    foliage(
        canvas, rng, u, foot - 0.66 * height * scale, spread * scale, 0.7 * height * scale, leaf
    )


def bush(canvas: Canvas, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    """A bush or a piece of hedge, ``size`` metres wide."""
    leaf = jitter(rng, LEAVES[int(rng.integers(len(LEAVES)))], 16)
    tall = size * between(rng, 0.55, 0.95)
    if z < 1.8:
        return
    canvas.at(z)
    u, foot = canvas.camera.pixel(x, 0, z)
    scale = canvas.camera.focal / z
    foliage(canvas, rng, u, foot - tall * 0.45 * scale, size * scale, tall * scale, leaf)
