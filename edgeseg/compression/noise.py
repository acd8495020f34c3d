"""The noise equivalent: how much noise in the picture costs the float network the same.

"INT8 moves the scores as much as uniform noise of +-1.4 grey levels does" can be judged by anyone
who knows the camera; a change of logits cannot. Noise of +-k is, for every value of the frame by
itself, one of the whole numbers from -k to k with equal probability.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.compression.label_free import Features, Reference, ScoreChange

__all__ = [
    "LEVELS",
    "add_noise",
    "equivalents",
    "limit_from_noise",
    "noise_cost_at",
    "noise_equivalent",
    "noise_ladder",
]

LEVELS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

UInt8 = npt.NDArray[np.uint8]


def add_noise(frame: UInt8, level: int, seed: int) -> UInt8:
    """``frame`` with uniform noise of +-``level`` grey levels, cut off at 0 and 255."""
    noise = np.random.default_rng(seed).integers(-level, level + 1, frame.shape, dtype=np.int16)
    noisy: UInt8 = np.clip(frame + noise, 0, 255).astype(np.uint8)
    return noisy


def noise_ladder(
    reference: Reference, features: Features, until: Sequence[ScoreChange], least: float = 0.0
) -> dict[int, ScoreChange]:
    """What noise of growing level costs, up to the first that costs as much as all of ``until``.

    Args:
        reference: of the float network.
        features: of the float network.
        until: changes to reach, in every quantity; at most the largest of :data:`LEVELS` is tried.
        least: level to reach whatever it costs.
    """
    target = {k: max(c.values[k] for c in until) for k in until[0].values}
    ladder: dict[int, ScoreChange] = {}
    for level in LEVELS:

        def disturb(frame: UInt8, index: int, level: int = level) -> UInt8:
            # Each frame has its own noise, and the same one whenever it is measured.
            return add_noise(frame, level, 1000 * level + index)

        ladder[level] = reference.change(features, disturb)
        if level >= least and all(ladder[level].values[k] >= v for k, v in target.items()):
            break
    return ladder


def noise_equivalent(costs: Mapping[int, float], cost: float) -> float | None:
    """Level of noise that costs ``cost``, interpolated; no noise costs nothing.

    Args:
        costs: by level. More noise is taken to cost at least as much as less.
        cost: to look up.

    Returns:
        grey levels; ``None`` where it costs more than the largest level that was measured.
    """
    levels, values = [0.0], [0.0]
    for level in sorted(costs):
        levels.append(float(level))
        values.append(max(costs[level], values[-1]))
    if cost <= 0:
        return 0.0
    if cost > values[-1]:
        return None
    above = next(i for i, value in enumerate(values) if value >= cost)
    low, high = values[above - 1], values[above]
    return levels[above - 1] + (cost - low) / (high - low) * (levels[above] - levels[above - 1])


def noise_cost_at(costs: Mapping[int, float], level: float) -> float:
    """Inverse of :func:`noise_equivalent`; beyond the largest level as the last two go on."""
    levels, values = [0.0], [0.0]
    for known in sorted(costs):
        levels.append(float(known))
        values.append(max(costs[known], values[-1]))
    if level <= levels[-1]:
        return float(np.interp(level, levels, values))
    slope = (values[-1] - values[-2]) / (levels[-1] - levels[-2])
    return values[-1] + slope * (level - levels[-1])


def limit_from_noise(costs: Mapping[int, ScoreChange], level: float) -> ScoreChange:
    """The change of scores that noise of ``level`` grey levels makes."""
    values: dict[str, Any] = {
        name: noise_cost_at({k: c.values[name] for k, c in costs.items()}, level)
        for name in next(iter(costs.values())).values
    }
    return ScoreChange(**values)


def equivalents(costs: Mapping[int, ScoreChange], change: ScoreChange) -> dict[str, float | None]:
    """Noise equivalent of each quantity of a change, grey levels; see :func:`noise_equivalent`."""
    return {
        name: noise_equivalent({k: c.values[name] for k, c in costs.items()}, value)
        for name, value in change.values.items()
    }
