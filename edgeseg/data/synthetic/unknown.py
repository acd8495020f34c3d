"""Objects that belong to none of the 19 classes: label void (19)."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic.canvas import Camera, Canvas, Face
from edgeseg.data.synthetic.colours import Colour, Image, between, grey, jitter, scaled
from edgeseg.taxonomy import VOID

__all__ = ["UNKNOWN_KINDS", "textured_shape", "unknown", "void_cutout"]

UNKNOWN_KINDS = (
    "animal",
    "box",
    "tyre",
    "chair",
    "sofa",
    "debris",
    "shape",
    "cone",
    "ball",
    "suitcase",
    "bin",
    "bird",
)


def _any_colour(rng: np.random.Generator) -> Colour:
    b, g, r = rng.uniform(15, 240, 3)
    return (float(b), float(g), float(r))


def _pattern(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """A random texture, uint8 [rows, columns, 3]: stripes, checks, blotches, a ramp or plain."""
    one = np.array(_any_colour(rng), np.float32)
    two = np.array(_any_colour(rng), np.float32)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    kind = int(rng.integers(5))
    if kind == 0:
        angle, period = between(rng, 0, 3.14), between(rng, 4, 14)
        mix = (np.sin((x * np.cos(angle) + y * np.sin(angle)) * 6.28 / period) > 0) * 1.0
    elif kind == 1:
        period = between(rng, 4, 14)
        mix = ((x // period + y // period) % 2) * 1.0
    elif kind == 2:
        coarse = rng.random((5, 5), dtype=np.float32)
        mix = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    elif kind == 3:
        mix = y / max(rows - 1, 1)
    else:
        mix = rng.random((rows, columns)) * 0.3
    mixed = one + (two - one) * np.asarray(mix, np.float32)[..., None]
    mixed += rng.standard_normal((rows, columns, 1), dtype=np.float32) * between(rng, 0, 14)
    picture: Image = mixed.clip(0, 255).astype(np.uint8)
    return picture


def textured_shape(
    rng: np.random.Generator, rows: int, columns: int
) -> tuple[Image, npt.NDArray[np.uint8]]:
    """A random closed outline filled with a random texture: BGR [rows, columns, 3] and mask 0/1."""
    corners = int(rng.integers(3, 12))
    angle = np.sort(rng.uniform(0, 6.283, corners))
    reach = rng.uniform(0.45, 1.0, corners)
    points = np.stack([np.cos(angle) * reach, np.sin(angle) * reach], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - low) / np.maximum(high - low, 1e-3)
    points *= np.array([columns - 1, rows - 1])
    if rng.random() < 0.5:  # rounded: subdivide the outline (Chaikin)
        for _ in range(2):
            after = np.roll(points, -1, axis=0)
            points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1)
            points = points.reshape(-1, 2)
    mask = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], (1.0,))
    return _pattern(rng, rows, columns), mask


def _animal(face: Face, rng: np.random.Generator) -> None:
    fur = jitter(rng, ((40, 60, 90), (60, 70, 80), (30, 30, 32), (190, 200, 205))[
        int(rng.integers(4))], 20)  # fmt: skip
    dark = scaled(fur, 0.7)
    for s in (0.2, 0.3, 0.66, 0.76):
        face.stroke((s, 0.45), (s + between(rng, -0.05, 0.05), 0.0), 0.08, dark, VOID)
    face.oval(0.48, 0.52, 0.34, 0.2, fur, VOID)
    face.stroke((0.74, 0.58), (0.86, 0.8), 0.18, fur, VOID)
    face.oval(0.88, 0.82, 0.12, 0.11, fur, VOID)
    face.stroke((0.84, 0.88), (0.82, 1.02), 0.06, dark, VOID)
    face.stroke((0.16, 0.58), (0.04, 0.4), 0.06, dark, VOID)
    face.oval(0.98, 0.79, 0.04, 0.04, dark, VOID)
    if rng.random() < 0.4:  # spots
        for _ in range(5):
            s, t = between(rng, 0.25, 0.7), between(rng, 0.42, 0.62)
            face.oval(s, t, 0.06, 0.05, scaled(fur, 0.45))


def _cuboid(canvas: Canvas, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    paint = jitter(rng, (95, 140, 175), 45) if rng.random() < 0.6 else _any_colour(rng)
    wide, deep, tall = size * between(rng, 0.6, 1.5), size * between(rng, 0.4, 1.2), size
    pixel = canvas.camera.pixel
    x0, x1 = x - wide / 2, x + wide / 2
    canvas.at(z)
    lid = [(x0, tall, z), (x1, tall, z), (x1, tall, z + deep), (x0, tall, z + deep)]
    offset = x - canvas.camera.x
    if abs(offset) > wide / 2:
        edge = x1 if offset < 0 else x0
        side = canvas.face((edge, z), (edge, z + deep), tall)
        side.box(0, 0, 1, 1, scaled(paint, 0.72), VOID)
    if canvas.camera.height > tall:
        canvas.poly([pixel(*p) for p in lid], scaled(paint, 1.2), VOID)
    front = canvas.face((x0, z), (x1, z), tall)
    front.box(0, 0, 1, 1, paint, VOID)
    if front.pixels > 10:
        front.stroke((0.5, 0), (0.5, 1), 0.05, scaled(paint, 0.75))
        front.box(0.1, 0.6, 0.35, 0.85, scaled(paint, 1.3))


def _furniture(face: Face, rng: np.random.Generator, sofa: bool) -> None:
    paint = _any_colour(rng)
    wood = jitter(rng, (50, 80, 120), 25)
    if sofa:
        face.box(0.0, 0.08, 1.0, 0.5, scaled(paint, 0.8), VOID)
        face.box(0.08, 0.45, 0.92, 1.0, paint, VOID)
        face.box(0.0, 0.08, 0.14, 0.68, scaled(paint, 1.15), VOID)
        face.box(0.86, 0.08, 1.0, 0.68, scaled(paint, 1.15), VOID)
        face.stroke((0.5, 0.48), (0.5, 0.98), 0.03, scaled(paint, 0.7))
        return
    for s in (0.12, 0.38, 0.72, 0.9):
        face.stroke((s, 0), (s, 0.48), 0.06, wood, VOID)
    face.box(0.05, 0.44, 0.95, 0.53, scaled(wood, 1.2), VOID)
    if rng.random() < 0.6:
        face.stroke((0.1, 0.5), (0.06, 1.0), 0.06, wood, VOID)
        face.stroke((0.9, 0.5), (0.9, 1.0), 0.06, wood, VOID)
        face.box(0.06, 0.78, 0.9, 0.95, paint, VOID)
        face.box(0.06, 0.6, 0.9, 0.68, paint, VOID)


def _shape(canvas: Canvas, rng: np.random.Generator, face: Face) -> None:
    picture, mask = textured_shape(rng, 32, 32)
    quad = face.points(((0, 1), (1, 1), (1, 0), (0, 0)))
    u, v = zip(*quad, strict=True)
    x0, y0 = round(min(u)), round(min(v))
    wide, tall = max(round(max(u)) - x0, 2), max(round(max(v)) - y0, 2)
    if max(wide, tall) > 4 * max(canvas.width, canvas.height):
        return
    picture = cv2.resize(picture, (wide, tall), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask, (wide, tall), interpolation=cv2.INTER_NEAREST)
    top, left = max(-y0, 0), max(-x0, 0)
    bottom, right = min(tall, canvas.height - y0), min(wide, canvas.width - x0)
    if bottom <= top or right <= left:
        return
    ys, xs = slice(y0 + top, y0 + bottom), slice(x0 + left, x0 + right)
    picture, inside = picture[top:bottom, left:right], mask[top:bottom, left:right]

    def paste(_: object) -> None:
        cv2.copyTo(picture, inside, canvas.image[ys, xs])
        canvas.label[ys, xs][inside > 0] = VOID

    canvas.later(paste)


def unknown(
    canvas: Canvas, rng: np.random.Generator, kind: str, x: float, z: float, size: float
) -> None:
    """Draw one unknown object of about ``size`` metres at (x, z)."""
    if z < 2.2:
        return
    if kind != "bird":
        canvas.contact_shadow(x - size * 0.5, x + size * 0.5, z - 0.1, z + 0.3 * size, 0.5)
    if kind == "box":
        _cuboid(canvas, rng, x, z, size)
        return
    wide = {"animal": 1.3, "sofa": 1.9, "cone": 0.6, "suitcase": 0.7, "bin": 0.6}.get(kind, 1.0)
    base = between(rng, 1.0, 4.0) if kind == "bird" else 0.0
    ends = ((x - size * wide / 2, z), (x + size * wide / 2, z))
    face = canvas.face(*(ends if rng.random() < 0.5 else ends[::-1]), size, base)
    if kind == "animal":
        _animal(face, rng)
    elif kind in ("sofa", "chair"):
        _furniture(face, rng, kind == "sofa")
    elif kind == "tyre":
        rubber = jitter(rng, (32, 32, 34), 10)
        face.oval(0.5, 0.5, 0.5, 0.5, rubber, VOID)
        face.oval(0.5, 0.5, 0.26, 0.26, scaled(rubber, 2.4))
        if rng.random() < 0.4:
            face.oval(0.75, 0.14, 0.5, 0.14, scaled(rubber, 1.3), VOID)
    elif kind == "debris":
        for _ in range(int(rng.integers(4, 10))):
            s, t = between(rng, 0, 1), between(rng, 0, 0.35)
            piece = [(s + float(d), max(0.0, t + float(e))) for d, e in rng.normal(0, 0.16, (4, 2))]
            face.poly(piece, jitter(rng, (90, 110, 130), 70), VOID)
    elif kind == "cone":
        orange: Colour = (30, 90, 235)
        face.box(0.0, 0.0, 1.0, 0.08, scaled(orange, 0.6), VOID)
        face.poly(((0.15, 0.06), (0.85, 0.06), (0.56, 1.0), (0.44, 1.0)), orange, VOID)
        face.poly(((0.28, 0.4), (0.72, 0.4), (0.64, 0.62), (0.36, 0.62)), grey(235.0))
    elif kind == "ball":
        paint = _any_colour(rng)
        face.oval(0.5, 0.5, 0.5, 0.5, paint, VOID)
        face.oval(0.4, 0.65, 0.22, 0.2, scaled(paint, 1.35))
        face.stroke((0.1, 0.35), (0.9, 0.6), 0.1, scaled(paint, 0.5))
    elif kind == "suitcase":
        paint = _any_colour(rng)
        face.box(0.0, 0.04, 1.0, 0.8, paint, VOID)
        face.stroke((0.3, 0.8), (0.3, 1.0), 0.05, grey(50.0), VOID)
        face.stroke((0.7, 0.8), (0.7, 1.0), 0.05, grey(50.0), VOID)
        face.stroke((0.28, 0.99), (0.72, 0.99), 0.05, grey(50.0), VOID)
        for s in (0.25, 0.5, 0.75):
            face.stroke((s, 0.08), (s, 0.76), 0.03, scaled(paint, 0.7))
    elif kind == "bin":
        paint = jitter(rng, (60, 75, 60), 45)
        face.poly(((0.1, 0), (0.9, 0), (1, 0.85), (0, 0.85)), paint, VOID)
        face.box(-0.05, 0.83, 1.05, 1.0, scaled(paint, 0.6), VOID)
    elif kind == "bird":
        paint = jitter(rng, (60, 60, 62), 40)
        face.poly(((0, 0.8), (0.45, 0.35), (0.5, 0.2), (0.55, 0.35), (1, 0.9), (0.5, 0.6)),
                  paint, VOID)  # fmt: skip
    else:
        _shape(canvas, rng, face)


def void_cutout(
    rng: np.random.Generator, rows: int, columns: int
) -> tuple[Image, npt.NDArray[np.uint8]]:
    """An unknown object for pasting into a photo: BGR [rows, columns, 3] and mask 0/1."""
    if rng.random() < 0.4:
        return textured_shape(rng, rows, columns)
    kind = UNKNOWN_KINDS[int(rng.integers(len(UNKNOWN_KINDS) - 1))]
    # A camera of one pixel per centimetre or so, far enough away to look straight at the object.
    distance = 20.0
    camera = Camera(rows * distance, columns / 2, 0.5 * rows, 0.5, 0.0, 0.0)
    canvas = Canvas(rows, columns, camera)
    unknown(canvas, rng, kind, 0.0, distance, 0.9)
    canvas.flush()
    mask = (canvas.label == VOID).astype(np.uint8)
    if int(mask.sum()) * 12 < rows * columns:
        return textured_shape(rng, rows, columns)
    return canvas.image, mask
