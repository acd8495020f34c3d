"""Learning rates over the steps of a stage."""

import math

from edgeseg.training.recipe import Schedule

__all__ = ["rate"]


def rate(schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """Factor on the peak learning rate at ``step`` (from 0) of ``steps``, 0 to 1.

    poly: (1 - step / steps)^power (Liu et al. 2015, ParseNet); per epoch, step counts whole epochs:
    lambda(t) = (1 - (t - 1) / T)^power at epoch t of T. cosine: (1 + cos(pi step / steps)) / 2
    (Loshchilov & Hutter 2017, without restarts).
    """
    warm = schedule.warmup * steps
    rising = min(1.0, 0.02 + 0.98 * step / warm) if warm else 1.0
    done = step / steps
    if schedule.per == "epoch":
        epochs = max(1, math.ceil(steps / steps_per_epoch))
        done = min(step // steps_per_epoch, epochs - 1) / epochs
    if schedule.name == "poly":
        return float(rising * (1.0 - done) ** schedule.power)
    if schedule.name == "cosine":
        return rising * 0.5 * (1.0 + math.cos(math.pi * done))
    return rising
