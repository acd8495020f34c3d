"""What INT8 costs and buys, group by group.

What it costs shows where the group alone is INT8 and all others float: with two groups that both
spoil the same figure, leaving one of them in float brings nothing back, and each by itself still
shows. What it buys shows the other way round, with the group alone in float and all others INT8:
among float neighbours an integer group pays for two conversions that it does not have in the
bundle. Each variant is made, measured and dropped before the next, so memory does not grow with
the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edgeseg.compression.gate import Gate, Verdict
from edgeseg.compression.groups import Group
from edgeseg.compression.timing import Comparison, compare
from edgeseg.compression.workbench import Workbench
from edgeseg.errors import ArtefactError
from edgeseg.runtime.session import Session

__all__ = ["GroupCost", "Timer", "analyse"]

_LEAST_MS: Final = 1e-3

Timer = Callable[[Session, Session], Comparison]
"""Time of the second session against the first."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GroupCost:
    """One group between INT8 and float."""

    group: Group
    alone: Verdict | None
    """On this group in INT8 and all others in float32; ``None`` where the engine refuses that."""
    time: Comparison | None
    """Of this group in float and all others in INT8, against INT8 throughout; ``None`` where the
    engine refuses that.
    """

    @property
    def usable(self) -> bool:
        """Whether the engine takes the group in float."""
        return self.time is not None

    @property
    def excess(self) -> float:
        """What INT8 here costs, in times of what is allowed; 0 where it costs nothing."""
        return max(self.alone.excess, 0.0) if self.alone is not None else 0.0

    @property
    def bought_ms(self) -> float:
        """By how much INT8 in this group makes a frame quicker; negative where it makes it slower.

        As measured: where ``faster`` is ``None`` it is no more than noise.
        """
        return self.time.difference_ms if self.time is not None else 0.0

    @property
    def faster(self) -> bool | None:
        """Whether INT8 is faster here than float; ``None`` where the times do not tell."""
        return self.time.slower if self.time is not None else None

    @property
    def price_ms(self) -> float:
        """What float costs here at most: a lucky measurement makes no group look free."""
        return max(self.time.most_ms, _LEAST_MS) if self.time is not None else _LEAST_MS


def analyse(
    bench: Workbench,
    groups: Sequence[Group],
    gate: Gate,
    *,
    timer: Timer | None = None,
    progress: Progress = lambda _: None,
) -> list[GroupCost]:
    """Cost and gain of INT8 in every group, in the order of ``groups``.

    Args:
        bench: makes the variants.
        groups: all there are.
        gate: says what INT8 costs.
        timer: by default :func:`edgeseg.compression.timing.compare` on one frame.
        progress: is told what is being done.
    """
    frame = gate.reference.frames[0]

    def measured(base: Session, variant: Session) -> Comparison:
        return compare(base.features, variant.features, frame)

    time_of = timer or measured
    costs = []
    # The base computes its little rest in float as the variants do: the difference is the group.
    with bench.open(bench.int8(compute_precision=bench.compute_precision)) as base:
        for number, group in enumerate(groups, start=1):
            progress(f"measuring group {number} of {len(groups)}: {group.name}")
            others = [g for g in groups if g is not group]
            alone, time = None, None
            try:
                with bench.open(bench.int8(others, compute_precision="f32")) as session:
                    alone = gate.judge(session)
            except ArtefactError:
                pass
            try:
                with bench.open(bench.int8([group])) as session:
                    time = time_of(base, session)
            except ArtefactError:
                pass
            costs.append(GroupCost(group, alone, time))
            progress(_in_words(costs[-1]))
    return costs


def _in_words(cost: GroupCost) -> str:
    words = "the engine refuses it"
    if cost.alone is not None:
        words = f"INT8 here alone: {cost.alone.worst}"
    if cost.time is not None:
        least, most = cost.time.least_ms, cost.time.most_ms
        words += f"; it buys {cost.bought_ms:.2f} ms ({least:.2f} .. {most:.2f})"
    return words
