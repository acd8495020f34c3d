"""Pinhole camera and painter's canvas on which the scene is drawn, with its label map.

Ground coordinates are metres: ``x`` to the right of the road's centre line, ``z`` ahead of the
camera, ``y`` up. Drawing order decides what hides what, so callers draw from far to near.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Camera", "Canvas", "Colour", "Face", "grey", "jitter", "noise_tile", "scaled"]

Colour = tuple[float, float, float]
Points = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]

NEAR = 0.7  # metres; what is closer is clamped to this plane
_SHIFT = 4
_LIMIT = 30000.0  # pixels; keeps fixed-point vertices far below OpenCV's overflow


@functools.lru_cache(maxsize=4)
def noise_tile(grain: int) -> npt.NDArray[np.int16]:
    """Zero-mean noise, int16 [512, 512], standard deviation 32, ``grain`` pixels per blob.

    Fixed content: scenes differ by the offset at which they cut the tile, which is hundreds of
    times cheaper than fresh normal deviates for every pixel.
    """
    rng = np.random.Generator(np.random.PCG64(7919 + grain))
    total = np.zeros((512, 512), np.float32)
    size = 512 // grain
    for octave in range(3):
        coarse = max(4, size >> octave)
        layer = rng.standard_normal((coarse, coarse), dtype=np.float32)
        total += cv2.resize(layer, (512, 512), interpolation=cv2.INTER_LINEAR)
    total -= total.mean()
    total *= 32.0 / float(total.std())
    tile: npt.NDArray[np.int16] = np.clip(total, -120, 120).astype(np.int16)
    tile.setflags(write=False)
    return tile


def grey(value: float) -> Colour:
    """A neutral colour, 0-255."""
    return (value, value, value)


def jitter(rng: np.random.Generator, base: Sequence[float], amount: float) -> Colour:
    """``base`` (BGR, 0-255) with a common and a per-channel random change."""
    common, db, dg, dr = rng.random(4).tolist()
    shift = (2.0 * common - 1.4) * amount  # the channels' own changes are -0.4 to 0.4
    step = 0.8 * amount
    return (
        min(255.0, max(0.0, base[0] + shift + step * db)),
        min(255.0, max(0.0, base[1] + shift + step * dg)),
        min(255.0, max(0.0, base[2] + shift + step * dr)),
    )


def scaled(colour: Colour, factor: float) -> Colour:
    """``colour`` times ``factor``, saturated at 255."""
    return (
        min(255.0, colour[0] * factor),
        min(255.0, colour[1] * factor),
        min(255.0, colour[2] * factor),
    )


@dataclass(frozen=True)
class Camera:
    """Pinhole camera above a flat road whose centre line bends as ``bend * z**2``.

    ``focal``, ``cx`` and ``horizon`` are pixels, ``height`` (above the road) and ``x`` (right of
    the centre line) metres, ``bend`` 1/metre.
    """

    focal: float
    cx: float
    horizon: float
    height: float
    x: float
    bend: float

    def pixel(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel of the ground-frame point (x, y, z)."""
        z = z if z > NEAR else NEAR
        scale = self.focal / z
        u = self.cx + (x - self.x + self.bend * z * z) * scale
        return u, self.horizon + (self.height - y) * scale


class Canvas:
    """uint8 BGR ``image`` [H, W, 3] and uint8 ``label`` [H, W], drawn together."""

    def __init__(self, height: int, width: int, camera: Camera) -> None:
        self.height = height
        self.width = width
        self.camera = camera
        self.image: Image = np.zeros((height, width, 3), np.uint8)
        self.label: Image = np.full((height, width), 10, np.uint8)
        self.fog_colour: Colour = grey(200.0)
        self.visibility = 1e9  # metres at which 63% of the light is the fog's
        self.sun_left = 1.0  # brightness of faces that look left
        self.sun_right = 1.0
        self.fog = 0.0

    def at(self, z: float) -> None:
        """Set the distance (metres) of what is drawn next; fog acts accordingly."""
        self.fog = 1.0 - math.exp(-max(z, 0.0) / self.visibility)

    def tone(self, colour: Colour) -> Colour:
        """``colour`` as seen through the fog at the current distance."""
        a = self.fog
        if a < 0.01:
            return colour
        f = self.fog_colour
        b = 1.0 - a
        return (colour[0] * b + f[0] * a, colour[1] * b + f[1] * a, colour[2] * b + f[2] * a)

    def poly(self, points: Points, colour: Colour, label: int | None = None) -> None:
        """Fill a polygon (pixels, [N, 2]); ``label=None`` leaves the label map alone."""
        x, y, w, h = cv2.boundingRect(points)
        if x + w < 0 or y + h < 0 or x > self.width or y > self.height:
            return
        if w > _LIMIT or h > _LIMIT:
            points = np.clip(points, -_LIMIT, _LIMIT)
        fixed = [(points * (1 << _SHIFT)).astype(np.int32)]
        cv2.fillPoly(self.image, fixed, self.tone(colour), cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.label, fixed, (float(label),), cv2.LINE_8, _SHIFT)

    def disc(
        self, u: float, v: float, radius: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fill a disc (pixels)."""
        if u + radius < 0 or v + radius < 0 or u - radius > self.width or v - radius > self.height:
            return
        one = 1 << _SHIFT
        centre = (round(u * one), round(v * one))
        size = max(round(radius * one), one // 2)
        cv2.circle(self.image, centre, size, self.tone(colour), -1, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.circle(self.label, centre, size, (float(label),), -1, cv2.LINE_8, _SHIFT)

    def shade(self, points: Points, factor: float) -> None:
        """Darken (``factor`` < 1) the pixels inside a convex polygon: a shadow."""
        x0, y0 = np.floor(points.min(axis=0)).astype(int)
        x1, y1 = np.ceil(points.max(axis=0)).astype(int)
        x0, y0 = max(int(x0), 0), max(int(y0), 0)
        x1, y1 = min(int(x1), self.width), min(int(y1), self.height)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        local = np.clip(points - np.array([x0, y0], np.float32), -_LIMIT, _LIMIT)
        fixed = (local * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(mask, fixed, (255.0,), cv2.LINE_8, _SHIFT)
        region = self.image[y0:y1, x0:x1]
        dark = cv2.convertScaleAbs(region, alpha=factor)
        cv2.copyTo(dark, mask, region)

    def ground_quad(self, x0: float, x1: float, z0: float, z1: float) -> Points:
        """Pixels [4, 2] of a rectangle on the ground."""
        pixel = self.camera.pixel
        return np.array(
            [pixel(x0, 0, z0), pixel(x1, 0, z0), pixel(x1, 0, z1), pixel(x0, 0, z1)], np.float32
        )

    def contact_shadow(self, x0: float, x1: float, z0: float, z1: float, factor: float) -> None:
        """The dark patch under an object that stands on the ground."""
        self.shade(self.ground_quad(x0, x1, z0, z1), factor)

    def face(
        self, p0: tuple[float, float], p1: tuple[float, float], height: float, base: float = 0.0
    ) -> Face:
        """Upright rectangle over the ground segment p0-p1, each (x, z)."""
        return Face(self, p0, p1, height, base)


class Face:
    """Upright rectangle in the scene with coordinates s (along) and t (up), both 0 to 1."""

    def __init__(
        self,
        canvas: Canvas,
        p0: tuple[float, float],
        p1: tuple[float, float],
        height: float,
        base: float,
    ) -> None:
        self.canvas = canvas
        self._p0, self._p1 = p0, p1
        self._height, self._base = height, base
        canvas.at(max(0.5 * (p0[1] + p1[1]), NEAR))
        pixel = canvas.camera.pixel
        u0, v0 = pixel(p0[0], base, p0[1])
        near = max(min(p0[1], p1[1]), NEAR)
        self.pixels = height * canvas.camera.focal / near
        """Height in pixels at the nearer end: decides which details are worth drawing."""
        # Seen frontally, (s, t) to pixels is affine; most faces are.
        self._affine = (u0, pixel(p1[0], base, p1[1])[0] - u0, v0) if p0[1] == p1[1] else None

    def points(self, corners: Sequence[tuple[float, float]]) -> Points:
        """Pixels [N, 2] of (s, t) pairs."""
        if self._affine is not None:
            u0, du, v0 = self._affine
            dv = self.pixels
            return np.array([(u0 + s * du, v0 - t * dv) for s, t in corners], np.float32)
        x0, z0 = self._p0
        x1, z1 = self._p1
        pixel = self.canvas.camera.pixel
        return np.array(
            [
                pixel(x0 + s * (x1 - x0), self._base + t * self._height, z0 + s * (z1 - z0))
                for s, t in corners
            ],
            np.float32,
        )

    def poly(
        self, corners: Sequence[tuple[float, float]], colour: Colour, label: int | None = None
    ) -> None:
        """Fill a polygon given in (s, t)."""
        self.canvas.poly(self.points(corners), colour, label)

    def box(
        self,
        s0: float,
        t0: float,
        s1: float,
        t1: float,
        colour: Colour,
        label: int | None = None,
    ) -> None:
        """Fill a rectangle given in (s, t)."""
        self.poly(((s0, t0), (s1, t0), (s1, t1), (s0, t1)), colour, label)

    def oval(
        self,
        s: float,
        t: float,
        rs: float,
        rt: float,
        colour: Colour,
        label: int | None = None,
    ) -> None:
        """Fill an ellipse given in (s, t)."""
        step = 1 if rt * self.pixels > 5 else 2
        self.poly([(s + rs * c, t + rt * d) for c, d in _CIRCLE[::step]], colour, label)

    def stroke(
        self,
        a: tuple[float, float],
        b: tuple[float, float],
        width: float,
        colour: Colour,
        label: int | None = None,
    ) -> None:
        """Draw a line between two (s, t) points, ``width`` in units of the face's height."""
        ends = self.points((a, b))
        along = ends[1] - ends[0]
        length = float(np.hypot(along[0], along[1])) + 1e-6
        half = max(width * self.pixels, 0.9) * 0.5 / length
        across = np.array([-along[1] * half, along[0] * half], np.float32)
        quad = np.stack([ends[0] + across, ends[1] + across, ends[1] - across, ends[0] - across])
        self.canvas.poly(quad, colour, label)

    def texture(self, picture: Image, label: int | None) -> None:
        """Map a small picture (BGR, row 0 at the top) onto the whole face."""
        canvas = self.canvas
        quad = self.points(((0, 1), (1, 1), (1, 0), (0, 0)))
        x0, y0 = np.floor(quad.min(axis=0))
        x1, y1 = np.ceil(quad.max(axis=0))
        left, top = int(max(x0, 0)), int(max(y0, 0))
        right, bottom = int(min(x1, canvas.width)), int(min(y1, canvas.height))
        if right <= left or bottom <= top:
            return
        if right - left < 4 or bottom - top < 4:
            b, g, r = picture.mean(axis=(0, 1))
            canvas.poly(quad, (float(b), float(g), float(r)), label)
            return
        rows, columns = picture.shape[:2]
        source = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
        target = quad - np.array([left, top], np.float32)
        matrix = cv2.getPerspectiveTransform(source, target.astype(np.float32))
        region = canvas.image[top:bottom, left:right]
        fog = canvas.fog
        if fog >= 0.01:
            tint = np.full_like(picture, np.array(canvas.fog_colour, np.float32).astype(np.uint8))
            picture = cv2.addWeighted(picture, 1.0 - fog, tint, fog, 0.0)
        size = (right - left, bottom - top)
        cv2.warpPerspective(picture, matrix, size, region, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
        if label is not None:
            fixed = (np.clip(quad, -_LIMIT, _LIMIT) * (1 << _SHIFT)).astype(np.int32)
            cv2.fillConvexPoly(canvas.label, fixed, (float(label),), cv2.LINE_8, _SHIFT)


_CIRCLE = [(math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16)]
