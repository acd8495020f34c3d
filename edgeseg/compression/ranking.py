"""Which channels go: filters by their L2 norm, widths by what vector units like.

Filters of small norm do little (Li et al. 2017, "Pruning Filters for Efficient ConvNets", ICLR,
with the L1 norm; L2 here). A class of coupled channels is one filter in each of several layers, so
its score is the root of the mean of their squared norms, each divided by the mean squared norm of
its layer: 1 is an average filter, in every group and network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeseg.compression.coupling import Coupling, Group, Mask
from edgeseg.compression.dead_filters import Dead, Floats, find_dead
from edgeseg.compression.surgery import filter_norms
from edgeseg.compression.topology import couple
from edgeseg.errors import UsageError
from edgeseg.networks.base import Network

__all__ = ["RANKINGS", "Counts", "Planner", "Rules", "scores"]

RANKINGS: Final = ("local", "global")
Counts = tuple[int, ...]
"""How many channels each group of a coupling keeps."""
_OVERSHOOT: Final = 0.1
_LEAST: Final = 0.1
_EPS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Rules:
    """What a choice of channels obeys."""

    ranking: str = "local"
    """``local``: every group loses the same share; ``global``: one threshold for all scores."""
    round_to: int = 16
    """Widths become multiples of it; layers that are no wider than it stay whole, because they
    fill one vector and would not get faster. 1: any width."""
    protect: tuple[str, ...] = ()
    """Names of layers, or of what they are in, whose filters all stay."""

    def __post_init__(self) -> None:
        """Raise UsageError where a value does not exist."""
        if self.ranking not in RANKINGS:
            raise UsageError(
                f"ranking '{self.ranking}' is unknown; choose one of {', '.join(RANKINGS)}"
            )
        if not 1 <= self.round_to <= 256:
            raise UsageError(f"widths cannot be rounded to {self.round_to}; give 1 to 256")


def scores(network: Network, coupling: Coupling, dead: Dead) -> Floats:
    """The score of every class, float64 ``[classes]``; larger matters more.

    Dead filters take no part in a layer's mean.
    """
    modules = dict(network.named_modules())
    total = np.zeros(coupling.num_classes)
    for step in coupling.convolutions:
        classes = coupling.wires[step.output]
        squares = filter_norms(modules[step.module]).numpy() ** 2
        alive = squares[~dead.classes[classes]]
        mean = float(alive.mean()) if len(alive) else 0.0
        total[classes] += squares / mean if mean > 0 else 1.0
    return np.asarray(np.sqrt(total / np.maximum(coupling.filters, 1)))


class Planner:
    """Chooses the channels of one network that stay."""

    def __init__(self, network: Network, rules: Rules = Rules()) -> None:
        """Args:
        network: in eval mode.
        rules: what to obey.

        Raises:
            UsageError: a protected layer that there is not.
        """
        self.network, self.rules = network, rules
        self.coupling = couple(network)
        self.dead = find_dead(network, self.coupling)
        self.scores = scores(network, self.coupling, self.dead)
        self.groups = self.coupling.groups
        names = [s.module for s in self.coupling.convolutions]
        for layer in rules.protect:
            if not any(_within(name, layer) for name in names):
                close = get_close_matches(layer, names, 1, 0.0)
                raise UsageError(
                    f"there is no layer '{layer}' to protect in a {network.structure.network}; "
                    f"give a name such as '{close[0]}' or the beginning of one"
                )
        self.free = tuple(not g.training_only and not self.protects(g) for g in self.groups)
        """Of every group, whether it may lose channels."""
        self._order = tuple(self._ordered(g) for g in self.groups)
        self._companies = tuple(self._company(i) for i in range(len(self.groups)))

    def protects(self, group: Group) -> bool:
        """Whether a layer that writes the group is protected."""
        return any(_within(w, layer) for w in group.writers for layer in self.rules.protect)

    def whole(self) -> Counts:
        """All channels."""
        return tuple(len(g.classes) for g in self.groups)

    def alive(self) -> Counts:
        """All channels but the dead ones, widths not rounded."""
        return tuple(
            len(g.classes) - int(self.dead.classes[g.classes].sum()) * free
            for g, free in zip(self.groups, self.free, strict=True)
        )

    def counts(self, amount: float) -> Counts:
        """How many channels stay where a share of those that are not dead goes.

        Args:
            amount: the share of every group (``local``) or of all channels together (``global``);
                0 takes dead channels alone.

        Returns:
            Rounded counts: to the nearest width, but upwards where going down would take a tenth
            of the group more than was asked for. Dead channels go first, and only fill up widths.
        """
        if not 0 <= amount < 1:
            raise UsageError(f"an amount of {amount} cannot be taken; give 0 to below 1")
        alive = self.alive()
        wanted = self._shares(amount, alive)
        result = list(self.whole())
        # Narrow streams first: wider ones contain them, and their sum is what is rounded.
        for i in sorted(range(len(result)), key=lambda i: len(self._home(i))):
            if self.free[i]:
                result[i] = self._rounded(i, wanted[i], alive[i], result)
        return tuple(result)

    def between(self, first: Counts, last: Counts, share: float) -> Counts:
        """Counts on the way from ``first`` (at 0) to ``last`` (at 1), rounded upwards.

        None is below ``last``: that may keep dead channels to fill up a width, which ``first`` does
        not count, and what goes on the way does not come back.
        """
        step = self.rules.round_to
        return tuple(
            max(b, min(a, b + -(-round((a - b) * (1 - share)) // step) * step))
            for a, b in zip(first, last, strict=True)
        )

    def keep(self, counts: Sequence[int]) -> Mask:
        """The classes that stay, bool ``[classes]``: of every group the best ``counts``."""
        mask = self.coupling.fixed.copy()
        for order, count in zip(self._order, counts, strict=True):
            mask[order[:count]] = True
        return mask

    def _ordered(self, group: Group) -> npt.NDArray[np.intp]:
        """The group's classes from the most to the least important, dead ones last."""
        classes = group.classes
        rank = np.where(self.dead.classes[classes], -1.0, self.scores[classes])
        return np.asarray(classes[np.argsort(-rank, kind="stable")])

    def _shares(self, amount: float, alive: Counts) -> list[float]:
        """Channels that should stay, before rounding."""
        if self.rules.ranking == "local":
            return [count * (1 - amount) for count in alive]
        ranked = [
            self.scores[order[:count]]
            for order, count, free in zip(self._order, alive, self.free, strict=True)
            if free
        ]
        everything = np.sort(np.concatenate(ranked)) if ranked else np.zeros(0)
        cut = int(amount * len(everything))
        threshold = everything[cut] if cut < len(everything) else np.inf
        wanted = []
        for order, count in zip(self._order, alive, strict=True):
            above = int((self.scores[order[:count]] >= threshold).sum())
            # A group that vanishes cuts the network in two.
            wanted.append(max(float(above), _LEAST * count))
        return wanted

    def _home(self, i: int) -> npt.NDArray[np.intp]:
        return self.coupling.wires[self.groups[i].home]

    def _company(self, i: int) -> tuple[int, tuple[int, ...]]:
        """What else is in the tensor that is rounded: fixed channels, and other groups."""
        others = np.setdiff1d(self._home(i), self.groups[i].classes)
        groups = (k for k, g in enumerate(self.groups) if np.isin(g.classes, others).any())
        return int(self.coupling.fixed[others].sum()), tuple(k for k in groups if k != i)

    def _rounded(self, i: int, wanted: float, alive: int, decided: Sequence[int]) -> int:
        size, step = len(self.groups[i].classes), self.rules.round_to
        if step > 1 and len(self._home(i)) <= step:
            return size
        fixed, groups = self._companies[i]
        base = fixed + sum(decided[k] for k in groups)
        up = max(-(-math.ceil(base + wanted - _EPS) // step) * step, base + 1)
        down = up - step
        excess = base + wanted - down
        near = excess <= up - base - wanted - _EPS
        cheap = excess <= _OVERSHOOT * size + _EPS
        exact = wanted >= alive  # nothing that is alive may go
        chosen = down if near and cheap and not exact and down > base else up
        return min(max(chosen - base, 1), size)


def _within(name: str, layer: str) -> bool:
    return f"{name}.".startswith(f"{layer}.")
