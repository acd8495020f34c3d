"""Sky, light, rain and what the camera adds: exposure, blur, noise, JPEG artefacts."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic.canvas import Canvas
from edgeseg.data.synthetic.colours import Colour, Image, jitter, noise_tile
from edgeseg.errors import UsageError

__all__ = ["Look", "Options", "develop", "draw_sky", "plan_look", "surface_grain"]

# Standard deviation of the grain (grey levels) that each label's surface gets, index = label.
_RAMP = np.arange(256, dtype=np.float32) / np.float32(255.0)
_GRAIN = np.zeros(256, np.int16)
_GRAIN[:20] = (2, 2, 6, 9, 14, 5, 4, 3, 24, 8, 1, 8, 8, 5, 5, 5, 5, 7, 8, 7)


@dataclass(frozen=True)
class Options:
    """What a scene may hold; ``None`` leaves it to the seed.

    ``unknown``: chance (0-1) that unknown objects lie about. ``fog``: visibility in metres, 0 for
    clear air. ``rain``, ``dusk``: amount, 0-1. ``noise``: standard deviation of the sensor noise
    in grey levels. ``jpeg``: quality 1-100, 0 for none. ``bonnet``: the ego vehicle's bonnet at
    the lower edge, label 255.
    """

    unknown: float = 0.6
    fog: float | None = None
    rain: float | None = None
    dusk: float | None = None
    noise: float | None = None
    jpeg: int | None = None
    bonnet: bool | None = None

    def __post_init__(self) -> None:
        """UsageError where a value lies outside of its range."""
        for name, low, high in (
            ("unknown", 0.0, 1.0),
            ("fog", 0.0, 1e9),
            ("rain", 0.0, 1.0),
            ("dusk", 0.0, 1.0),
            ("noise", 0.0, 64.0),
            ("jpeg", 0, 100),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"option '{name}' is {value}; use {low:g} to {high:g}")


@dataclass(frozen=True)
class Look:
    """The weather and the camera of one scene, all drawn."""

    zenith: Colour
    haze: Colour
    cover: float
    sun: tuple[float, float]
    visibility: float
    rain: float
    dusk: float
    gain: float
    gamma: float
    tint: tuple[float, float, float]
    contrast: float
    blur: float
    noise: float
    jpeg: int
    bonnet: bool
    offset: tuple[int, int]


def plan_look(rng: np.random.Generator, options: Options) -> Look:
    """Draw the weather and the camera; what ``options`` fixes does not change the rest."""
    fog = 0.0 if rng.random() > 0.25 else float(rng.uniform(25, 160))
    rain = 0.0 if rng.random() > 0.15 else float(rng.uniform(0.2, 1.0))
    dusk = 0.0 if rng.random() > 0.2 else float(rng.uniform(0.2, 0.9))
    noise = 0.0 if rng.random() < 0.4 else float(rng.uniform(1, 9))
    jpeg = 0 if rng.random() < 0.7 else int(rng.integers(35, 95))
    bonnet = bool(rng.random() < 0.3)
    fog = fog if options.fog is None else options.fog
    dusk = dusk if options.dusk is None else options.dusk
    cover = float(rng.uniform(0, 1))
    blue = jitter(rng, (225, 175, 115), 22)
    dull = jitter(rng, (205, 203, 200), 20)
    zenith = _mix(blue, dull, cover)
    haze = _mix(jitter(rng, (238, 232, 224), 10), dull, cover * 0.7)
    if dusk > 0.3:
        haze = _mix(haze, jitter(rng, (110, 150, 230), 25), dusk * float(rng.uniform(0, 0.9)))
    light = rng.uniform(0.6, 1.15, 2) if cover < 0.6 else rng.uniform(0.85, 1.05, 2)
    b, g, r = rng.uniform(0.93, 1.07, 3)
    return Look(
        zenith=zenith,
        haze=haze,
        cover=cover,
        sun=(float(light[0]), float(light[1])),
        visibility=fog if fog > 0 else float(rng.uniform(250, 900)),
        rain=rain if options.rain is None else options.rain,
        dusk=dusk,
        gain=float(2 ** rng.uniform(-0.45, 0.3)),
        gamma=float(2 ** rng.uniform(-0.3, 0.3)),
        tint=(float(b), float(g), float(r)),
        contrast=float(rng.uniform(0.75, 1.1)),
        blur=0.0 if rng.random() < 0.6 else float(rng.uniform(0.4, 1.1)),
        noise=noise if options.noise is None else options.noise,
        jpeg=jpeg if options.jpeg is None else options.jpeg,
        bonnet=bonnet if options.bonnet is None else options.bonnet,
        offset=(int(rng.integers(512)), int(rng.integers(512))),
    )


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def draw_sky(canvas: Canvas, look: Look, rng: np.random.Generator) -> None:
    """Gradient and clouds down to the horizon, where the ground begins."""
    below = min(canvas.height, max(1, int(canvas.camera.horizon) + 2))
    # The sky is smooth: an eighth of the resolution shows the same at a fraction of the price.
    rows, columns = -(-below // 8), -(-canvas.width // 8)
    down = np.linspace(0.0, 1.0, rows, dtype=np.float32)[:, None]
    down *= np.sqrt(down)
    zenith = np.array(look.zenith, np.float32)
    haze = np.array(look.haze, np.float32)
    gradient = zenith + (haze - zenith) * down  # [rows, 3]
    coarse = rng.random((5, 9), dtype=np.float32)
    fine = rng.random((12, 24), dtype=np.float32)
    size = (columns, rows)
    clouds = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC) * 0.7
    clouds += cv2.resize(fine, size, interpolation=cv2.INTER_LINEAR) * 0.3
    share = ((clouds - (0.75 - 0.5 * look.cover)) * 2.2).clip(0.0, 0.85)
    white = np.float32(245.0 - 60.0 * look.cover * float(rng.uniform(0, 1)))
    sky = gradient[:, None, :] * (1.0 - share[..., None]) + share[..., None] * white
    fog = float(np.exp(-look.visibility / 120.0))
    if fog > 0.02:
        sky += (np.array(canvas.fog_colour, np.float32) - sky) * np.float32(fog)
    cv2.resize(cv2.convertScaleAbs(sky), (canvas.width, below), canvas.image[:below])


@functools.lru_cache(maxsize=8)
def _spread(channels: int, height: int, width: int) -> npt.NDArray[Any]:
    """Noise from which any [height, width] can be cut at an offset of up to 511, without a copy.

    One channel: int16, for the grain of surfaces. Three: uint8 around 128, for a sensor.
    """
    rows, columns = np.arange(height + 511) & 511, np.arange(width + 511) & 511
    if channels == 1:
        spread: npt.NDArray[Any] = noise_tile(2)[rows[:, None], columns]
    else:
        tile = (noise_tile(1) + 128).astype(np.uint8)
        turned = [np.roll(tile, (-171 * k, -89 * k), (0, 1)) for k in range(channels)]
        spread = cv2.merge(turned)[rows[:, None], columns]
    spread.setflags(write=False)
    return spread


def surface_grain(canvas: Canvas, look: Look) -> None:
    """Roughen every surface by its label's grain."""
    y, x = look.offset
    height, width = canvas.height, canvas.width
    # A blob of fixed angular size: sharper frames resolve finer grain.
    noise = _spread(1, height, width)[y : y + height, x : x + width]
    step = max(1, 32768 // width)  # rows at a time, so that what lies between stays in the cache
    for top in range(0, height, step):
        rows = slice(top, top + step)
        grain = cv2.LUT(canvas.label[rows], _GRAIN)
        grain *= noise[rows]
        grain >>= 5
        grain += 128  # +-120 of noise and at most 24 of grain: stays within uint8
        spread = cv2.cvtColor(grain.astype(np.uint8), cv2.COLOR_GRAY2BGR)
        cv2.addWeighted(canvas.image[rows], 1.0, spread, 1.0, -128.0, canvas.image[rows])


def _wet(image: Image, horizon: int, amount: float) -> None:
    """Mirror what stands above the horizon in the ground below it."""
    depth = min(horizon, image.shape[0] - horizon)
    if depth < 2:
        return
    below = image[horizon : horizon + depth]
    mirrored = cv2.blur(image[horizon - depth : horizon][::-1], (3, 9))
    cv2.addWeighted(below, 1.0 - 0.3 * amount, mirrored, 0.25 * amount, 0.0, below)


def develop(image: Image, look: Look, horizon: float, rng: np.random.Generator) -> Image:
    """Rain, dusk, exposure, blur, sensor noise and JPEG; returns the finished frame."""
    height, width = image.shape[:2]
    if look.rain > 0.1:
        _wet(image, int(min(max(horizon, 0), height)), look.rain)
        streaks = int(height * width * 0.0006 * look.rain)
        at = rng.uniform(0, 1, (streaks, 2))
        size = rng.uniform(0.01, 0.04, streaks) * height
        slant = float(rng.uniform(-0.3, 0.3))
        layer = image.copy()
        for (u, v), s in zip(at, size, strict=True):
            a = (int(u * width), int(v * height))
            cv2.line(layer, a, (a[0] + int(slant * s), a[1] + int(s)), (205.0, 205.0, 205.0), 1)
        cv2.addWeighted(image, 0.72, layer, 0.28, 0.0, image)
    dark = 1.0 - 0.65 * look.dusk
    b, g, r = look.tint
    cool = np.array((b * (1.0 + 0.15 * look.dusk), g, r * (1.0 - 0.12 * look.dusk)), np.float32)
    tone = np.maximum(_RAMP * look.contrast + (0.5 - 0.5 * look.contrast), 0.0) ** look.gamma
    table = np.multiply.outer(tone * (look.gain * dark * 255.0), cool)
    cv2.LUT(image, np.minimum(table, 255.0).astype(np.uint8)[None], image)
    if look.blur > 0.0:
        sigma = look.blur * height / 256
        # OpenCV's own choice reaches three sigmas; the last changes no grey level that noise hides.
        size = 2 * math.ceil(2.0 * sigma) + 1
        image = cv2.GaussianBlur(image, (size, size), sigma)
    if look.noise > 0.0:
        y, x = (int(v) for v in rng.integers(0, 512, 2))
        noise = _spread(3, height, width)[y : y + height, x : x + width]
        share = round(look.noise * (1.0 + look.dusk) * 8) / 256
        cv2.addWeighted(image, 1.0, noise, share, -128.0 * share, image)
    if look.jpeg:
        quality = [int(cv2.IMWRITE_JPEG_QUALITY), look.jpeg]
        decoded = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        assert decoded is not None  # it was encoded a line ago
        image = decoded
    return image
