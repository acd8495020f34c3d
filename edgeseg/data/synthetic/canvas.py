"""Pinhole camera and painter's canvas on which the scene is drawn, with its label map.

Ground coordinates are metres: ``x`` to the right of the road's centre line, ``z`` ahead of the
camera, ``y`` up. Drawing order decides what hides what, so callers draw from far to near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic.colours import Colour, Image, grey

__all__ = ["Camera", "Canvas", "Face"]

Pixel = tuple[float, float]
Fixed = npt.NDArray[np.int32]
Draw = Callable[[Fixed], None]
_Step = tuple[int, int, Colour | Draw, int | None]
"""End of the corners, number of polygons, colour, label; or a function to call on the corners."""

NEAR = 0.7  # metres; what is closer is clamped to this plane
_SHIFT = 4  # vertices are given to OpenCV in 16ths of a pixel
_ONE = 1 << _SHIFT
_LIMIT = 30000.0 * _ONE  # keeps fixed-point vertices far below OpenCV's overflow


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
    """uint8 BGR ``image`` [H, W, 3] and uint8 ``label`` [H, W], drawn together.

    Drawing is put off until ``flush``: the vertices of hundreds of shapes become fixed-point
    numbers together. One by one, that took longer than filling.
    """

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
        self._corners: list[Pixel] = []
        self._steps: list[_Step] = []

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

    def poly(self, points: Sequence[Pixel], colour: Colour, label: int | None = None) -> None:
        """Fill a polygon (pixels); ``label=None`` leaves the label map alone."""
        self._corners.extend(points)
        self._steps.append((len(self._corners), 1, self.tone(colour), label))

    def polys(
        self, shapes: Sequence[Sequence[Pixel]], colour: Colour, label: int | None = None
    ) -> None:
        """Fill polygons that do not overlap and have as many corners each."""
        for points in shapes:
            self._corners.extend(points)
        self._steps.append((len(self._corners), len(shapes), self.tone(colour), label))

    def later(self, draw: Draw, points: Sequence[Pixel] = ()) -> None:
        """Have ``draw`` called in its turn, with ``points`` in 16ths of a pixel, int32 [N, 2]."""
        self._corners.extend(points)
        self._steps.append((len(self._corners), 0, draw, None))

    def flush(self) -> None:
        """Draw all that was asked for so far."""
        if not self._steps:
            return
        # Three times as fast as numpy.array on a list of pairs.
        flat = np.fromiter(chain.from_iterable(self._corners), np.float32, 2 * len(self._corners))
        fixed = (flat * _ONE).clip(-_LIMIT, _LIMIT).astype(np.int32).reshape(-1, 2)
        start = 0
        for stop, count, colour, label in self._steps:
            corners = fixed[start:stop]
            start = stop
            if callable(colour):
                colour(corners)
                continue
            polygons = [corners] if count == 1 else [*corners.reshape(count, -1, 2)]
            cv2.fillPoly(self.image, polygons, colour, cv2.LINE_AA, _SHIFT)
            if label is not None:
                cv2.fillPoly(self.label, polygons, label, cv2.LINE_8, _SHIFT)
        self._corners.clear()
        self._steps.clear()

    def disc(
        self, u: float, v: float, radius: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fill a disc (pixels)."""
        if u + radius < 0 or v + radius < 0 or u - radius > self.width or v - radius > self.height:
            return
        size = max(round(radius * _ONE), _ONE // 2)
        self.later(partial(self._disc, size, self.tone(colour), label), ((u, v),))

    def _disc(self, size: int, tone: Colour, label: int | None, centre: Fixed) -> None:
        at = tuple(centre[0].tolist())
        cv2.circle(self.image, at, size, tone, -1, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.circle(self.label, at, size, label, -1, cv2.LINE_8, _SHIFT)

    def window(self, points: Sequence[Pixel]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part of the picture around ``points``."""
        u, v = zip(*points, strict=True)
        return (
            max(math.floor(min(u)), 0),
            max(math.floor(min(v)), 0),
            min(math.ceil(max(u)), self.width),
            min(math.ceil(max(v)), self.height),
        )

    def shade(self, points: Sequence[Pixel], factor: float) -> None:
        """Darken (``factor`` < 1) the pixels inside a convex polygon: a shadow."""
        left, top, right, bottom = self.window(points)
        if right - left >= 2 and bottom - top >= 2:
            self.later(partial(self._shade, left, top, right, bottom, factor), points)

    def _shade(
        self, left: int, top: int, right: int, bottom: int, factor: float, corners: Fixed
    ) -> None:
        mask = np.zeros((bottom - top, right - left), np.uint8)
        corners[:, 0] -= left * _ONE
        corners[:, 1] -= top * _ONE
        cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_8, _SHIFT)
        region = self.image[top:bottom, left:right]
        cv2.copyTo(cv2.convertScaleAbs(region, alpha=factor), mask, region)

    def contact_shadow(self, x0: float, x1: float, z0: float, z1: float, factor: float) -> None:
        """The dark patch under an object that stands on the ground."""
        pixel = self.camera.pixel
        a, c = pixel(x0, 0, z0), pixel(x1, 0, z1)
        if a[1] - c[1] > 0.75:  # pixels; a thinner one cannot be seen
            self.shade((a, pixel(x1, 0, z0), c, pixel(x0, 0, z1)), factor)

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
        frontal = p0[1] == p1[1]
        self._affine = (u0, (p1[0] - p0[0]) * canvas.camera.focal / near, v0) if frontal else None

    def beside(self, margin: float) -> bool:
        """Whether a frontal face lies wholly left or right of the picture.

        ``margin``: how far, in face widths, what is drawn reaches over its sides.
        """
        if self._affine is None:
            return False
        u0, du, _ = self._affine
        reach = margin * abs(du) + 2.0
        return max(u0, u0 + du) < -reach or min(u0, u0 + du) > self.canvas.width + reach

    def points(self, corners: Sequence[tuple[float, float]]) -> list[Pixel]:
        """Pixels of (s, t) pairs."""
        if self._affine is not None:
            u0, du, v0 = self._affine
            dv = self.pixels
            return [(u0 + s * du, v0 - t * dv) for s, t in corners]
        # Camera.pixel, written out: most of the points of a scene pass here.
        camera = self.canvas.camera
        x, z = self._p0
        dx, dz = self._p1[0] - x, self._p1[1] - z
        x, y = x - camera.x, camera.height - self._base
        cx, horizon, focal, bend, tall = (
            camera.cx,
            camera.horizon,
            camera.focal,
            camera.bend,
            self._height,
        )
        if min(z, z + dz) - 0.2 * abs(dz) > NEAR:  # nothing to clamp, corners beside the face too
            return [
                (cx + (x + s * dx + bend * d * d) * (k := focal / d), horizon + (y - t * tall) * k)
                for s, t in corners
                for d in (z + s * dz,)
            ]
        return [
            (cx + (x + s * dx + bend * d * d) * (k := focal / d), horizon + (y - t * tall) * k)
            for s, t in corners
            for d in (max(z + s * dz, NEAR),)
        ]

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
        points = self.points(((s0, t0), (s1, t0), (s1, t1), (s0, t1)))
        self.canvas.poly(points, colour, label)

    def boxes(
        self,
        corners: Sequence[tuple[float, float, float, float]],
        colour: Colour,
        label: int | None = None,
    ) -> None:
        """Fill rectangles (s0, t0, s1, t1) that do not overlap."""
        points = self.points
        shapes = [points(((a, b), (c, b), (c, d), (a, d))) for a, b, c, d in corners]
        self.canvas.polys(shapes, colour, label)

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
        circle = _CIRCLE if rt * self.pixels > 5 else _OCTAGON
        points = self.points([(s + rs * c, t + rt * d) for c, d in circle])
        self.canvas.poly(points, colour, label)

    def stroke(
        self,
        a: tuple[float, float],
        b: tuple[float, float],
        width: float,
        colour: Colour,
        label: int | None = None,
    ) -> None:
        """Draw a line between two (s, t) points, ``width`` in units of the face's height."""
        (u0, v0), (u1, v1) = self.points((a, b))
        du, dv = u1 - u0, v1 - v0
        half = max(width * self.pixels, 0.9) * 0.5 / (math.hypot(du, dv) + 1e-6)
        du, dv = du * half, dv * half
        quad = ((u0 - dv, v0 + du), (u1 - dv, v1 + du), (u1 + dv, v1 - du), (u0 + dv, v0 - du))
        self.canvas.poly(quad, colour, label)

    def texture(self, picture: Image, label: int | None) -> None:
        """Map a small picture (BGR, row 0 at the top, fog within) onto the whole face."""
        canvas = self.canvas
        quad = self.points(((0, 1), (1, 1), (1, 0), (0, 0)))
        left, top, right, bottom = window = canvas.window(quad)
        if right <= left or bottom <= top:
            return
        if right - left < 4 or bottom - top < 4:
            fog, canvas.fog = canvas.fog, 0.0
            canvas.poly(quad, cv2.mean(picture)[:3], label)
            canvas.fog = fog
            return
        rows, columns = picture.shape[:2]
        source = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
        target = np.array([(u - left, v - top) for u, v in quad], np.float32)
        matrix = cv2.getPerspectiveTransform(source, target)
        canvas.later(partial(_texture, canvas, picture, matrix, window, label), quad)


def _texture(
    canvas: Canvas,
    picture: Image,
    matrix: npt.NDArray[np.float64],
    window: tuple[int, int, int, int],
    label: int | None,
    corners: Fixed,
) -> None:
    left, top, right, bottom = window
    region, size = canvas.image[top:bottom, left:right], (right - left, bottom - top)
    cv2.warpPerspective(picture, matrix, size, region, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    if label is not None:
        cv2.fillConvexPoly(canvas.label, corners, label, cv2.LINE_8, _SHIFT)


_CIRCLE = [(math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16)]
_OCTAGON = _CIRCLE[::2]
