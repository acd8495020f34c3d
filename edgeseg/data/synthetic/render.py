"""Draw a planned street: single scenes and clips."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.data.synthetic import people, plants, posts, street, vehicles
from edgeseg.data.synthetic.canvas import Camera, Canvas
from edgeseg.data.synthetic.colours import jitter, scaled
from edgeseg.data.synthetic.ground import draw_ground
from edgeseg.data.synthetic.unknown import UNKNOWN_KINDS, unknown
from edgeseg.data.synthetic.weather import (
    Look,
    Options,
    develop,
    draw_sky,
    plan_look,
    surface_grain,
)
from edgeseg.data.synthetic.world import REACH, Item, World, plan_world
from edgeseg.errors import UsageError
from edgeseg.taxonomy import IGNORE

__all__ = ["SyntheticClip", "check_scene", "scene"]

UInt8 = npt.NDArray[np.uint8]

# Metres to each side that a kind's drawing spans at most; half the height of plants.
_REACH_OF = {
    "crossing": 7.0,
    "person": 1.4,
    "two_wheeler": 2.0,
    "unknown": 3.5,
    "lamp": 2.2,
    "sign": 1.4,
    "traffic_light": 4.0,
}


class _Dice:
    """One generator that is set to an item's seed: building a new one costs ten times as much."""

    def __init__(self) -> None:
        self._bits = np.random.PCG64(0)
        self._rng = np.random.Generator(self._bits)

    def at(self, seed: int) -> np.random.Generator:
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": seed << 64 | seed, "inc": 0x5851F42D4C957F2D14057B7EF767814F},
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._rng.random()  # the first draw of a set state is barely mixed
        return self._rng


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _mixed(*numbers: int) -> int:
    """62 bits that differ wherever the numbers do: what a seed sequence does, in a tenth of it."""
    bits = 0
    for number in numbers:
        bits = ((bits ^ number) + 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        bits ^= bits >> 31
    return bits >> 2


class _Stage:
    """A world with its camera and weather; draws it at any moment."""

    def __init__(
        self,
        seed: int,
        height: int,
        width: int,
        options: Options,
        travel: float = 0.0,
        speed: float = 0.0,
    ) -> None:
        check_scene(seed, height, width)
        self.seed, self.height, self.width = seed, height, width
        self._dice = _Dice()
        rng = _generator(seed, 1)
        self.world: World = plan_world(rng, REACH + travel, options.unknown, speed)
        self.look: Look = plan_look(_generator(seed, 2), options)
        lens = _generator(seed, 3)
        bend = 0.0 if lens.random() < 0.4 else float(lens.uniform(-1, 1)) * 1.6e-3
        self.camera = Camera(
            focal=float(lens.uniform(0.9, 1.3)) * max(width, height),
            cx=width * (0.5 + float(lens.uniform(-0.06, 0.06))),
            horizon=height * float(lens.uniform(0.36, 0.52)),
            height=float(lens.uniform(1.2, 1.9)),
            x=self.world.camera_x,
            bend=bend,
        )

    def draw(self, ahead: float, seconds: float, frame: int) -> tuple[UInt8, UInt8]:
        canvas = Canvas(self.height, self.width, self.camera)
        look = self.look
        canvas.fog_colour = look.haze
        canvas.visibility = look.visibility
        canvas.sun_left, canvas.sun_right = look.sun
        draw_sky(canvas, look, self._dice.at(_mixed(self.seed, 4)))
        draw_ground(canvas, self.world.ground, ahead)
        street.skyline(canvas, self._dice.at(_mixed(self.seed, 5)), self.world.urban)
        for item in _far_to_near(self.world.fronts, ahead, 0.0):
            self._item(canvas, item, item.z - ahead, 0.0, ahead)
        if look.cover < 0.55 and look.dusk < 0.3:
            self._long_shadows(canvas, ahead)
        for item in _far_to_near(self.world.items, ahead, seconds):
            z = item.z + item.speed * seconds - ahead
            self._item(canvas, item, z, seconds, ahead)
        canvas.flush()
        surface_grain(canvas, look)
        rng = self._dice.at(_mixed(self.seed, 6, frame))
        image = develop(canvas.image, look, self.camera.horizon, rng)
        if look.bonnet:
            self._bonnet(image, canvas.label)
        return image, canvas.label

    def _item(self, canvas: Canvas, item: Item, z: float, seconds: float, ahead: float) -> None:
        x, numbers = item.x + item.sideways * seconds, item.numbers
        if self._out_of_sight(item, x, z, ahead):
            return
        rng = self._dice.at(item.seed)
        kind = item.kind
        if kind == "vehicle":
            vehicles.vehicle(canvas, rng, int(numbers[0]), x, z, numbers[1] > 0)
        elif kind == "crossing":
            vehicles.crossing_vehicle(canvas, rng, int(numbers[0]), x, z)
        elif kind == "person":
            people.person(canvas, rng, x, z, 7.0 * seconds)
        elif kind == "two_wheeler":
            people.two_wheeler(canvas, rng, int(numbers[0]), x, z, numbers[1] > 0)
        elif kind == "unknown":
            unknown(canvas, rng, UNKNOWN_KINDS[int(numbers[0])], x, z, numbers[1])
        elif kind == "tree":
            plants.tree(canvas, rng, x, z, numbers[0], numbers[1] > 0)
        elif kind == "bush":
            plants.bush(canvas, rng, x, z, numbers[0])
        elif kind == "lamp":
            posts.lamp(canvas, rng, x, z, self.look.dusk > 0.4)
        elif kind == "sign":
            posts.sign(canvas, rng, x, z)
        elif kind == "traffic_light":
            posts.traffic_light(canvas, rng, x, z)
        else:
            z1 = min(numbers[0] - ahead, REACH * 1.6)
            if kind == "building":
                street.building(canvas, rng, x, z, z1, numbers[1], numbers[2] > 0)
            elif kind == "wall":
                street.wall(canvas, rng, x, z, z1, numbers[1])
            else:
                street.fence(canvas, rng, x, z, z1, numbers[1])

    def _out_of_sight(self, item: Item, x: float, z: float, ahead: float) -> bool:
        if item.kind in ("building", "wall", "fence"):
            return item.numbers[0] - ahead < 1.0
        if item.kind == "vehicle":
            return z < -14.0
        if z < 1.0:
            return True
        u, _ = self.camera.pixel(x, 0.0, z)
        reach = _REACH_OF.get(item.kind) or item.numbers[0] * 0.5
        return abs(u - self.width / 2) > self.width / 2 + reach * self.camera.focal / z + 2.0

    def _long_shadows(self, canvas: Canvas, ahead: float) -> None:
        """On clear days the houses of one side shade a strip of the street."""
        side = -1.0 if self.look.sun[0] < self.look.sun[1] else 1.0
        depth = 0.55 + 0.3 * self.look.cover
        for item in self.world.fronts:
            if item.kind != "building" or item.x * side < 0:
                continue
            z0, z1 = item.z - ahead, item.numbers[0] - ahead
            if z1 < 2 or z0 > 60:
                continue
            reach = item.x - side * 0.45 * item.numbers[1]
            slant = 0.3 * item.numbers[1]
            pixel = self.camera.pixel
            corners = (
                pixel(item.x, 0, max(z0, 1.2)),
                pixel(reach, 0, max(z0 + slant, 1.2)),
                pixel(reach, 0, z1 + slant),
                pixel(item.x, 0, z1),
            )
            # What stands nearer the camera is drawn later, so only the ground darkens.
            canvas.shade(corners, depth)

    def _bonnet(self, image: UInt8, label: UInt8) -> None:
        rng = self._dice.at(_mixed(self.seed, 7))
        height, width = self.height, self.width
        paint = scaled(jitter(rng, (70, 70, 72), 45), 1.0 - 0.6 * self.look.dusk)
        rise = float(rng.uniform(0.04, 0.12)) * height
        centre = (width // 2, height + int(rise))
        axes = (int(width * rng.uniform(0.45, 0.7)), int(2 * rise))
        cv2.ellipse(image, centre, axes, 0.0, 180.0, 360.0, paint, -1, cv2.LINE_AA)
        inner = (int(axes[0] * 0.8), int(axes[1] * 0.7))
        cv2.ellipse(image, centre, inner, 0.0, 180.0, 360.0, scaled(paint, 1.35), -1, cv2.LINE_AA)
        cv2.ellipse(label, centre, axes, 0.0, 180.0, 360.0, (float(IGNORE),), -1)


def _far_to_near(items: list[Item], ahead: float, seconds: float) -> list[Item]:
    near = [
        (item.z + item.speed * seconds - ahead, k)
        for k, item in enumerate(items)
        if item.z + item.speed * seconds - ahead < REACH
    ]
    near = [(z, k) for z, k in near if z > -30.0]
    near.sort(reverse=True)
    return [items[k] for _, k in near]


def check_scene(seed: int, height: int, width: int) -> None:
    """UsageError where :func:`scene` cannot draw with these numbers."""
    if height < 16 or width < 16:
        raise UsageError(f"a scene of {height}x{width} is too small; use at least 16x16")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; use 0 or more")


def scene(
    seed: int, height: int = 256, width: int = 512, *, options: Options | None = None
) -> tuple[UInt8, UInt8]:
    """One road scene.

    Args:
        seed: 0 or more. The same seed, size and options give the same bytes.
        height: pixels, at least 16.
        width: pixels, at least 16.
        options: what to fix; by default the seed decides on weather, light and sensor.

    Returns:
        The frame, uint8 BGR [height, width, 3], and its label map, uint8 [height, width]:
        trainIds 0-18, 19 for objects of no class, 255 for the ego vehicle's bonnet.

    >>> frame, label = scene(3, 64, 128)
    >>> frame.shape, label.shape
    ((64, 128, 3), (64, 128))
    """
    return _Stage(seed, height, width, options or Options()).draw(0.0, 0.0, 0)


class SyntheticClip:
    """A drive along one street: ``frames`` frames that can be read in any order.

    >>> clip = SyntheticClip(seed=1, height=64, width=128, frames=3)
    >>> [frame.shape for frame, label in clip]
    [(64, 128, 3), (64, 128, 3), (64, 128, 3)]
    """

    def __init__(
        self,
        seed: int,
        height: int = 256,
        width: int = 512,
        frames: int = 100,
        *,
        fps: float = 25.0,
        speed: float = 9.0,
        options: Options | None = None,
    ) -> None:
        """``speed`` of the camera in m/s. UsageError for sizes or counts that make no clip."""
        if frames < 1 or not fps > 0:
            raise UsageError(f"a clip of {frames} frames at {fps} per second cannot be made")
        self.fps = fps
        self.frames = frames
        self.speed = speed
        self._stage = _Stage(seed, height, width, options or Options(), speed * frames / fps, speed)

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> tuple[UInt8, UInt8]:
        """Frame and label map as :func:`scene` gives them."""
        if not -self.frames <= index < self.frames:
            raise IndexError(index)
        index %= self.frames
        seconds = index / self.fps
        return self._stage.draw(self.speed * seconds, seconds, index)

    def __iter__(self) -> Iterator[tuple[UInt8, UInt8]]:
        return (self[k] for k in range(self.frames))
