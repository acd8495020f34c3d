"""Learning rates over the steps of a stage."""

import math
from fractions import Fraction

from edgeseg.training.recipe import Schedule

__all__ = ["rate"]


def rate(schedule: Schedule, step: int, steps: int, epoch_length: Fraction | int) -> float:
    """Factor on the peak learning rate at ``step`` (from 0) of ``steps``, 0 to 1.

    poly: (1 - step / steps)^power (Liu et al. 2015, ParseNet); per epoch, step counts whole epochs:
    lambda(t) = (1 - (t - 1) / T)^power at epoch t of T. cosine: (1 + cos(pi step / steps)) / 2
    (Loshchilov & Hutter 2017, without restarts).

    Args:
        schedule: which course.
        step: from 0.
        steps: of the stage.
        epoch_length: steps that one pass over the sources takes, exactly: seldom a whole number.
            T is the whole number nearest to steps / epoch_length, 1 at least.
    """
    warm = schedule.warmup * steps
    rising = min(1.0, 0.02 + 0.98 * step / warm) if warm else 1.0
    done = step / steps
    if schedule.per == "epoch":
        epochs = max(1, round(steps / epoch_length))
        done = min(int(step / epoch_length), epochs - 1) / epochs
    if schedule.name == "poly":
        return float(rising * (1.0 - done) ** schedule.power)
    if schedule.name == "cosine":
        return rising * 0.5 * (1.0 + math.cos(math.pi * done))
    return rising
