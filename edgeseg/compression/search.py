"""Which groups to leave in float so that the accuracy gate holds.

Groups whose INT8 alone breaks the gate come first, then the others, each in the order of what INT8
costs there for a millisecond given back. Of that order the shortest beginning that holds is looked
for by halving, which assumes that more float does not hurt; what it finds is measured, not assumed.
Then groups of it are made integer again one by one, dearest first, as long as the gate goes on
holding. A search takes a bounded number of looks through the gate, and leaves at least one group
in INT8.

Groups that INT8 makes slower are in float in every look; where those are all groups there is
nothing to search for, and that is said. Of a group whose times do not tell, INT8 is kept, and it is
as cheap as the uncertainty of its time allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from edgeseg.compression.gate import Gate, Verdict
from edgeseg.compression.groups import Group
from edgeseg.compression.sensitivity import GroupCost
from edgeseg.compression.workbench import Workbench
from edgeseg.errors import ArtefactError, GateFailedError

__all__ = ["MAX_LOOKS", "SearchResult", "order", "search"]

MAX_LOOKS: Final = 16
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Where a search ended."""

    keep: tuple[Group, ...]
    """Groups to leave in float."""
    verdict: Verdict
    """On the body with these groups in float: of all data where it holds."""
    looks: int
    """How many bodies went through the gate."""

    @property
    def holds(self) -> bool:
        """Whether the gate holds."""
        return self.verdict.holds


def order(costs: Sequence[GroupCost], budget_ms: float) -> list[GroupCost]:
    """Groups worth trying in float, the best first, as many as may be given back.

    Args:
        costs: of all groups.
        budget_ms: how much time may be given back in all, by the groups' own times.
    """
    worth = [c for c in costs if c.usable and c.faster is not False and c.excess > 0]
    chosen, spent = [], 0.0
    for cost in sorted(worth, key=lambda c: (c.excess > 1, c.excess / c.price_ms), reverse=True):
        bought = max(0.0, cost.bought_ms)
        if spent + bought <= budget_ms:
            spent += bought
            chosen.append(cost)
    return chosen


@dataclass
class _Looks:
    """Gate evaluations so far; the same groups are looked at once."""

    bench: Workbench
    gate: Gate
    progress: Progress
    limit: int
    done: dict[frozenset[str], Verdict] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.limit - len(self.done)

    def at(self, keep: Sequence[Group], *, in_full: bool = False) -> Verdict | None:
        """The verdict on ``keep``, with all figures where it holds or is wanted ``in_full``;
        ``None`` where the engine refuses the body.
        """
        key = frozenset(g.name for g in keep)
        if key not in self.done:
            self.progress(
                f"gate, look {len(self.done) + 1} of at most {self.limit}: {len(keep)} groups "
                f"in float"
            )
            try:
                with self.bench.open(self.bench.int8(keep)) as session:
                    self.done[key] = self.gate.judge(session, stop_early=not in_full)
            except ArtefactError:
                self.limit -= 1
                return None
            self.progress(f"worst: {self.done[key].worst}")
        return self.done[key]


def search(
    bench: Workbench,
    gate: Gate,
    costs: Sequence[GroupCost],
    whole: Verdict,
    *,
    budget_ms: float,
    max_looks: int = MAX_LOOKS,
    progress: Progress = lambda _: None,
) -> SearchResult:
    """Find the fewest, cheapest groups to leave in float.

    Args:
        bench: makes the bodies.
        gate: that must hold.
        costs: of all groups; those that are slower in INT8 stay in float anyway.
        whole: the verdict on INT8 throughout.
        budget_ms: how much of INT8's gain may be given back.
        max_looks: how many bodies to send through the gate at most.
        progress: is told what is being done.

    Returns:
        Groups with which the gate holds, or the nearest to it that was found.

    Raises:
        GateFailedError: INT8 is slower in every group, so that no integer layer would be left.
    """
    looks = _Looks(bench, gate, progress, max_looks, {frozenset(): whole})
    idle = [c.group for c in costs if c.usable and c.faster is False]
    if len(idle) == len(costs):
        raise GateFailedError(
            f"INT8 gains nothing here: on {bench.backend}, {bench.compute_precision} is faster in "
            f"all {len(costs)} groups of layers; nothing was written; export without --int8, or "
            "let the gate measure on another engine with --backend"
        )
    ranked = order(costs, budget_ms)
    if len(idle) + len(ranked) >= len(costs):
        ranked = ranked[:-1]
    needed = sum(c.excess > 1 for c in ranked)
    groups = [c.group for c in ranked]
    price = {c.group.name: c.price_ms for c in costs}

    def holds(keep: Sequence[Group], *, in_full: bool = False) -> bool:
        verdict = looks.at(keep, in_full=in_full)
        return verdict is not None and verdict.holds

    if holds(idle):
        return _result(looks, idle)
    if looks.at(idle) is None:
        idle = []  # the engine takes each of them in float, but not all of them together
    fails, good = 0, len(groups)
    if 0 < needed < good:
        if holds([*idle, *groups[:needed]]):
            good = needed
        else:
            fails = needed
    if not groups or not holds([*idle, *groups[:good]], in_full=True):
        return _nearest(looks, {g.name: g for g in (*idle, *groups)})
    while good - fails > 1 and looks.left > 0:
        middle = (fails + good) // 2
        if holds([*idle, *groups[:middle]]):
            good = middle
        else:
            fails = middle
    chosen = groups[:good]
    for group in sorted(chosen, key=lambda g: price[g.name], reverse=True):
        if looks.left <= 0:
            break
        rest = [g for g in chosen if g is not group]
        if holds([*idle, *rest]):
            chosen = rest
    return _result(looks, [*idle, *chosen])


def _result(looks: _Looks, keep: Sequence[Group]) -> SearchResult:
    verdict = looks.done[frozenset(g.name for g in keep)]
    return SearchResult(tuple(keep), verdict, len(looks.done))


def _nearest(looks: _Looks, by_name: dict[str, Group]) -> SearchResult:
    names = min(looks.done, key=lambda k: looks.done[k].excess)
    keep = tuple(group for name, group in by_name.items() if name in names)
    return SearchResult(keep, looks.done[names], len(looks.done))
