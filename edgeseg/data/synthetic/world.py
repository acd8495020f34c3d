"""Lay out a street: what stands where, before any pixel is drawn."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np

from edgeseg.data.synthetic.ground import Band, Cross, GroundPlan
from edgeseg.data.synthetic.people import BICYCLE, MOTORCYCLE
from edgeseg.data.synthetic.unknown import UNKNOWN_KINDS
from edgeseg.data.synthetic.vehicles import BUS, CAR, TRAIN, TRUCK

__all__ = ["Item", "World", "plan_world"]

REACH = 90.0  # metres ahead of the camera within which things are drawn


@dataclass
class Item:
    """One thing: ``kind`` names the drawing routine, ``seed`` fixes its looks.

    ``x`` and ``z`` in metres, ``speed`` along the road in m/s (negative: towards the camera);
    ``numbers`` are the routine's other arguments.
    """

    kind: str
    x: float
    z: float
    seed: int
    numbers: tuple[float, ...] = ()
    speed: float = 0.0
    sideways: float = 0.0


@dataclass
class World:
    """A street: the ground, what fronts it (outermost, drawn first) and what stands on it."""

    ground: GroundPlan
    camera_x: float
    urban: float
    fronts: list[Item] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)


class _Planner:
    """Walks along both sides of the road and fills a world."""

    def __init__(
        self, rng: np.random.Generator, length: float, unknown: float, speed: float
    ) -> None:
        self.rng = rng
        self.draw: Callable[[], float] = rng.random
        self.raw: Callable[[], int] = rng.bit_generator.random_raw
        self.length = length
        self.unknown = unknown
        self.speed = speed
        kinds = ("city", "residential", "boulevard", "highway", "country")
        self.kind = kinds[self.pick((0.45, 0.22, 0.14, 0.08, 0.11))]
        self.plan = GroundPlan(
            stain=float(rng.uniform(0.1, 1.0)),
            offset=(int(rng.integers(512)), int(rng.integers(512))),
        )
        urban = {"city": 0.85, "residential": 0.5, "boulevard": 0.7, "highway": 0.1}
        self.world = World(self.plan, 0.0, urban.get(self.kind, 0.05))

    def seed(self) -> int:
        return self.raw() >> 2  # what integers(1 << 62) gives, at a fifth of the price

    def put(
        self, kind: str, x: float, z: float, *numbers: float, speed: float = 0.0, side: float = 0.0
    ) -> None:
        self.world.items.append(Item(kind, x, z, self.seed(), numbers, speed, side))

    def front(self, kind: str, x: float, z: float, *numbers: float) -> None:
        self.world.fronts.append(Item(kind, x, z, self.seed(), numbers))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.draw()  # Generator.uniform takes twice as long

    def chance(self, p: float) -> bool:
        return self.draw() < p

    def pick(self, shares: tuple[float, ...]) -> int:
        """An index, each as likely as its share; the shares sum to 1."""
        # Generator.choice checks its arguments at five times the price.
        return min(bisect_right(list(accumulate(shares)), self.draw()), len(shares) - 1)

    def run(self) -> World:
        rng, plan = self.rng, self.plan
        lanes = int(rng.integers(1, 3)) if self.kind in ("city", "residential", "country") else (
            int(rng.integers(2, 4)))  # fmt: skip
        wide = self.uniform(2.8, 3.6)
        both = self.kind != "highway"
        left_lanes = lanes if both else 0
        x0, x1 = -left_lanes * wide, lanes * wide
        if self.kind == "highway":
            x0 = 0.0
        plan.paint = (225.0, 228.0, 230.0) if self.chance(0.9) else (70.0, 190.0, 220.0)
        plan.dash, plan.period = self.uniform(2, 6), self.uniform(8, 14)
        plan.add(rng, -41, 41, "grass" if self.chance(0.6) else "soil")
        plan.add(rng, x0, x1, "road")
        marked = self.chance(0.75)
        if marked:
            plan.dashed += [k * wide for k in range(-left_lanes + 1, lanes) if k != 0]
            (plan.solid if self.chance(0.5) else plan.dashed).append(0.0)
            if self.chance(0.5):
                plan.solid += [x0 + 0.2, x1 - 0.2]
        lane = int(rng.integers(lanes))
        self.world.camera_x = (lane + 0.5) * wide + self.uniform(-0.3, 0.3)
        city = self.kind in ("city", "residential", "boulevard")
        self.crossings(city)
        edges = [self.side(-1.0, x0), self.side(1.0, x1)]
        plan.road = (edges[0], edges[1])
        self.traffic(lanes, left_lanes, wide)
        self.people(edges, city)
        self.strange(x0, x1)
        if self.chance(0.25 if city else 0.1):
            side = -1.0 if self.chance(0.6) else 1.0
            x = (x0 if side < 0 else x1) + side * self.uniform(1.6, 3.0)
            self.put("vehicle", x, self.uniform(8, 40), TRAIN, float(side < 0), speed=-side * 4)
        return self.world

    def crossings(self, city: bool) -> None:
        if not self.chance(0.55 if city else 0.15):
            return
        at = self.uniform(14, 45)
        while at < self.length:
            self.plan.crosses.append(Cross(at, at + self.uniform(7, 13), self.chance(0.6)))
            at += self.uniform(55, 110)

    def in_cross(self, z0: float, z1: float) -> bool:
        return any(z0 < c.z1 + 1 and z1 > c.z0 - 1 for c in self.plan.crosses)

    def side(self, sign: float, edge: float) -> float:
        """One side of the road from its edge outwards; returns the lateral position of the kerb."""
        rng, plan = self.rng, self.plan
        x = edge
        city = self.kind in ("city", "boulevard")
        parking = self.chance(
            {"city": 0.75, "residential": 0.6, "boulevard": 0.4}.get(self.kind, 0)
        )
        if parking:
            plan.bands.append(_parking(plan, x, x + sign * 2.2))
            self.parked(x + sign * 1.05, sign)
            x += sign * 2.2
        kerb = x
        if self.kind in ("highway", "country") and self.chance(0.8):
            plan.add(rng, x, x + sign * self.uniform(0.3, 2.0), "road")
            x += sign * self.uniform(1.0, 3.0)
        else:
            plan.add(rng, x, x + sign * 0.25, "kerb")
            width = self.uniform(1.8, 5.5)
            plan.add(rng, x + sign * 0.25, x + sign * width, "sidewalk")
            x += sign * width
            if self.chance(0.25):
                plan.add(rng, x - sign * 1.0, x, "grass")
        self.furniture(kerb + sign * 0.5, sign)
        setback = self.uniform(0, 1.5) if city else self.uniform(1.0, 7.0)
        if city and self.chance(0.5):
            plan.add(rng, x, x + sign * 30, "sidewalk")
        self.frontage(x, x + sign * setback, sign)
        return kerb

    def parked(self, x: float, sign: float) -> None:
        z = self.uniform(-4, 12)
        density = self.uniform(0.35, 0.95)
        while z < self.length:
            if self.chance(density) and not self.in_cross(z, z + 5):
                kind = CAR if self.chance(0.94) else TRUCK
                self.put("vehicle", x, z, kind, float(self.chance(0.25 if sign > 0 else 0.75)))
                z += 2.5 if kind == CAR else 8.0
            z += self.uniform(3.2, 5.0)

    def furniture(self, x: float, sign: float) -> None:
        """Lamps, signs, lights and trees near the kerb."""
        z = self.uniform(4, 22)
        step = self.uniform(14, 34)
        while z < self.length:
            self.put("lamp", x, z)
            z += step
        z = self.uniform(5, 25)
        while z < self.length:
            self.put("sign", x + sign * self.uniform(0, 0.6), z)
            z += self.uniform(10, 45)
        for cross in self.plan.crosses:
            if self.chance(0.75):
                self.put("traffic_light", x, cross.z0 - self.uniform(1.0, 5.5))
            if self.chance(0.4):
                self.put("traffic_light", x, cross.z1 + 1.0)
        if self.chance(0.12):
            self.put("traffic_light", x, self.uniform(10, 40))
        trees = {"city": 0.4, "residential": 0.55, "boulevard": 0.8, "highway": 0.2, "country": 0.5}
        if self.chance(trees[self.kind]):
            z, step = self.uniform(3, 14), self.uniform(6, 16)
            inset = self.uniform(0.4, 2.4)
            while z < self.length:
                if not self.in_cross(z, z) and self.chance(0.8):
                    self.put("tree", x + sign * inset, z, self.uniform(4.0, 9.5), 0.0)
                z += step * self.uniform(0.7, 1.3)

    def frontage(self, line: float, house: float, sign: float) -> None:
        """Houses, walls, fences, hedges and gardens, side by side."""
        share = {
            "city": (0.78, 0.06, 0.05, 0.06, 0.05),
            "residential": (0.42, 0.1, 0.18, 0.2, 0.1),
            "boulevard": (0.55, 0.08, 0.1, 0.2, 0.07),
            "highway": (0.05, 0.3, 0.2, 0.35, 0.1),
            "country": (0.1, 0.05, 0.2, 0.45, 0.2),
        }[self.kind]
        tall = self.uniform(8, 24) if self.kind in ("city", "boulevard") else self.uniform(5, 10)
        z = self.uniform(-12, 0)
        gap = True
        while z < self.length:
            end = z + self.uniform(7, 24)
            for cross in self.plan.crosses:
                if z < cross.z1 + 2 and end > cross.z0 - 2:
                    end = cross.z0 - 2
            if end - z < 3:
                z += 4.0
                gap = True
                continue
            pick = self.pick(share)
            if pick == 0:
                self.front("building", house, z, end, tall * self.uniform(0.75, 1.3), float(gap))
                gap = self.chance(0.25)
            else:
                gap = True
                self.garden(("wall", "fence", "hedge", "open")[pick - 1], line, z, end, sign)
            if pick == 0 and self.kind == "residential" and self.chance(0.6):
                self.front("fence" if self.chance(0.6) else "wall", line, z, end,
                           self.uniform(0.7, 1.5))  # fmt: skip
            z = end + (self.uniform(1, 6) if gap else 0.0)

    def garden(self, kind: str, line: float, z: float, end: float, sign: float) -> None:
        """A stretch without a house."""
        count = int((end - z) / self.uniform(3.0, 7.0))
        for _ in range(count):  # what grows behind
            at = line + sign * self.uniform(2, 14)
            self.front(
                "tree", at, self.uniform(z, end), self.uniform(4, 11), float(self.chance(0.25))
            )
        if kind in ("wall", "fence"):
            high = self.uniform(0.8, 2.4) if self.kind != "highway" else self.uniform(1.5, 4.0)
            self.front(kind, line, z, end, high)
        elif kind == "hedge":
            size = self.uniform(1.8, 3.4)
            at = z
            while at < end:
                self.front("bush", line + sign * 0.5, at, size)
                at += size * 0.8

    def traffic(self, lanes: int, left_lanes: int, wide: float) -> None:
        rng = self.rng
        kinds = (CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE)
        busy = self.uniform(0.2, 1.0)
        for lane in range(-left_lanes, lanes):
            oncoming = lane < 0
            z = self.uniform(7, 40) if not oncoming else self.uniform(4, 40)
            x = (lane + 0.5) * wide
            while z < self.length:
                if self.chance(busy):
                    kind = kinds[self.pick((0.74, 0.09, 0.06, 0.06, 0.05))]
                    speed = -self.uniform(6, 12) if oncoming else self.uniform(2, 11)
                    if abs(x - self.world.camera_x) < 1.0:  # nobody to run into
                        speed = self.speed + self.uniform(0.0, 2.0)
                    at = x + self.uniform(-0.3, 0.3)
                    if kind in (MOTORCYCLE, BICYCLE):
                        self.put("two_wheeler", at, z, kind, 1.0, speed=speed)
                    else:
                        self.put("vehicle", at, z, kind, float(oncoming), speed=speed)
                    z += 8.0
                z += self.uniform(5, 30)
        for cross in self.plan.crosses:
            if self.chance(0.35):
                kind = CAR if self.chance(0.8) else (TRUCK, BUS)[int(rng.integers(2))]
                z = (cross.z0 + cross.z1) / 2 + self.uniform(-2, 2)
                way = 1.0 if self.chance(0.5) else -1.0
                self.put("crossing", self.uniform(-12, 12), z, kind, side=way * self.uniform(0, 4))

    def people(self, edges: list[float], city: bool) -> None:
        rng = self.rng
        crowd = int(rng.poisson(5.0 if city else 0.6))
        for _ in range(crowd):
            sign = -1.0 if self.chance(0.5) else 1.0
            x = edges[0 if sign < 0 else 1] + sign * self.uniform(0.5, 3.5)
            z = self.uniform(4, 50)
            for _ in range(1 if self.chance(0.65) else int(rng.integers(2, 4))):
                self.put("person", x + rng.normal(0, 0.6), z + rng.normal(0, 0.5),
                         speed=self.uniform(-1.4, 1.4))  # fmt: skip
        if city and self.chance(0.3) and self.speed == 0:  # somebody crosses the road
            self.put("person", self.uniform(min(edges), max(edges)), self.uniform(9, 30), side=1.2)
        for _ in range(int(rng.poisson(1.0 if city else 0.2))):
            sign = -1.0 if self.chance(0.5) else 1.0
            x = edges[0 if sign < 0 else 1] + sign * self.uniform(0.6, 2.0)
            kind = BICYCLE if self.chance(0.7) else MOTORCYCLE
            z = self.uniform(4, 30)
            for k in range(int(rng.integers(1, 4))):
                self.put("two_wheeler", x, z + 1.1 * k, kind, 0.0)
        for _ in range(int(rng.poisson(0.8 if city else 0.3))):
            x = self.uniform(min(edges), max(edges))
            if self.speed > 0 and abs(x - self.world.camera_x) < 1.6:
                x = self.world.camera_x + 1.6 * (1.0 if x > self.world.camera_x else -1.0)
            kind = BICYCLE if self.chance(0.75) else MOTORCYCLE
            self.put("two_wheeler", x, self.uniform(6, 35), kind, 1.0, speed=self.uniform(-3, 3))

    def strange(self, x0: float, x1: float) -> None:
        """Objects that belong to no class, mostly on the road."""
        rng = self.rng
        count = 0
        if self.chance(self.unknown):
            count = 1 + int(rng.poisson(0.8 + self.length / 150))
        for _ in range(count):
            kind = int(rng.integers(len(UNKNOWN_KINDS)))
            x = self.uniform(x0, x1) if self.chance(0.75) else self.uniform(x0 - 4, x1 + 4)
            far = 32 if self.speed == 0 else self.length
            size = float(2.0 ** self.uniform(-1.6, 0.7))
            self.put("unknown", x, self.uniform(4.5, far), kind, size)


def _parking(plan: GroundPlan, x0: float, x1: float) -> Band:
    """A parking strip of the road's own asphalt."""
    road = next(band for band in plan.bands if band.label == 0)
    return replace(road, x0=min(x0, x1), x1=max(x0, x1))


def plan_world(
    rng: np.random.Generator, length: float, unknown: float, speed: float = 0.0
) -> World:
    """Lay out a street of ``length`` metres.

    ``unknown`` is the chance (0-1) of unknown objects, ``speed`` (m/s) the camera's: what shares
    its lane is no slower.
    """
    return _Planner(rng, length, unknown, speed).run()
