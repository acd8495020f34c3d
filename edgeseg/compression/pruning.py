"""Structured pruning: a network with fewer channels, of the same class.

Filters that do not matter go first and change nothing (:mod:`edgeseg.compression.dead_filters`).
Then those of the smallest L2 norm go, as many as an amount says or a target of operations or
milliseconds asks for. What is left is a smaller network that exports, quantizes, trains and is
pruned again like any other.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edgeseg.compression.ranking import Counts, Planner, Rules
from edgeseg.compression.surgery import filter_norms, remove_classes, zeroed
from edgeseg.compression.targets import Timing, for_macs, for_ms
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.files import write_whole
from edgeseg.networks.base import Network

__all__ = ["MODES", "GroupChange", "Pruned", "Request", "prune"]

MODES: Final = ("remove", "zero")
Measure = Callable[[Network], Timing]
Progress = Callable[[str], None]
Recover = Callable[[Network, int], Network]
"""Trains a pruned network; told which step it is, from 1."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; one of ``amount``, ``target_macs`` and ``target_ms``."""

    amount: float | None = None
    """Share of the channels to remove, 0 to below 1, of those that are not dead."""
    target_macs: float | None = None
    """Share of the multiply-accumulates to keep, above 0 and below 1."""
    target_ms: float | None = None
    """Milliseconds a frame, above 0."""
    rules: Rules = field(default_factory=Rules)
    steps: int = 1
    """In how many steps; between two the network may be trained."""
    mode: str = "remove"
    """``remove`` takes channels out; ``zero`` sets filters to zero, layer by layer."""
    size: tuple[int, int] = (512, 1024)
    """Height and width of the frame that operations and time are of, pixels."""

    def check(self) -> None:
        """Raise UsageError where values do not make sense."""
        goals = (self.amount, self.target_macs, self.target_ms)
        if sum(goal is not None for goal in goals) != 1:
            raise UsageError(
                "how much is to go: give one of --amount SHARE, --target-macs SHARE and "
                "--target-ms MS"
            )
        if self.amount is not None and not 0 <= self.amount < 1:
            raise UsageError(f"--amount {self.amount:g} is no share; give 0 to below 1")
        if self.target_macs is not None and not 0 < self.target_macs < 1:
            raise UsageError(
                f"--target-macs {self.target_macs:g} is no share of the unpruned network's; give "
                "a number between 0 and 1"
            )
        if self.target_ms is not None and not 0 < self.target_ms < float("inf"):
            raise UsageError(f"--target-ms {self.target_ms:g} is no time; give a number above 0")
        if self.mode not in MODES:
            raise UsageError(f"--mode '{self.mode}' is unknown; choose one of {', '.join(MODES)}")
        if self.mode == "zero" and (self.amount is None or self.rules.ranking != "local"):
            raise UsageError(
                "zeroed filters cost as much as before, and are chosen layer by layer: --mode zero "
                "takes --amount and --ranking local"
            )
        if self.steps < 1:
            raise UsageError(f"pruning takes at least one step, not {self.steps}")

    def document(self) -> dict[str, Any]:
        """The request as JSON types."""
        return {
            "amount": self.amount,
            "target_macs": self.target_macs,
            "target_ms": self.target_ms,
            "ranking": self.rules.ranking,
            "round_to": self.rules.round_to,
            "protect": list(self.rules.protect),
            "steps": self.steps,
            "mode": self.mode,
            "size": "{}x{}".format(*self.size),
        }


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What became of channels that go together."""

    name: str
    """The first layer that writes them."""
    layers: int
    """How many convolutions have a filter for each."""
    before: int
    dead: int
    """Those that do not matter."""
    after: int
    protected: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned network and what was done to it."""

    network: Network
    groups: list[GroupChange]
    dead: dict[str, Any]
    """``filters``: all; ``zero``: of zeros alone; ``removable``: without a change of any output,
    ``zero_removable`` of zeros; ``zero_shared`` and ``zero_border``: of zeros and not removable,
    because others write to their channels or because padding meets their constant; ``removed``:
    those that went; ``max_abs_difference``: of logits on a random frame, when all of them go.
    """
    zeroed: int = 0
    """Filters that ``mode`` zero set to zero."""
    timing: Timing | None = None
    """Where a time was the target."""
    request: Request = field(default_factory=Request)

    @property
    def removed_percent(self) -> float:
        """Share of the channels that went, percent."""
        before = sum(g.before for g in self.groups)
        return 100 * (1 - sum(g.after for g in self.groups) / before)


def prune(
    network: Network,
    request: Request,
    *,
    measure: Measure | None = None,
    recover: Recover | None = None,
    notes: Path | None = None,
    progress: Progress = lambda _: None,
) -> Pruned:
    """Prune a network, which itself stays as it is.

    Args:
        network: in eval mode.
        request: what is asked for.
        measure: times a network; needed for a target in milliseconds
            (:class:`edgeseg.compression.targets.Stopwatch`).
        recover: trains after every step; ``None``: nothing is trained.
        notes: file that the chosen widths are kept in, so that a run that goes on has the same
            ones however the machine is loaded; ``None``: they are not kept.
        progress: is told what is being done.

    Raises:
        UsageError: a request that does not make sense, a protected layer that there is not, or
            notes of another request.
        BudgetExceededError: a target that cannot be met.
    """
    request.check()
    planner = Planner(network, request.rules)
    if request.mode == "zero":
        return _zero(planner, request, recover)
    dead = planner.dead
    lossless = remove_classes(network, planner.coupling, planner.keep(planner.alive()), dead)
    difference = _difference(network, lossless)
    goal, timing = _recall(notes, request, planner) or _choose(planner, request, measure, progress)
    _remember(notes, request, planner, goal, timing)
    current, own = network, planner
    for step in range(1, request.steps + 1):
        counts = planner.between(planner.alive(), goal, step / request.steps)
        if step == request.steps:
            counts = goal
        if step > 1:
            own = Planner(current, request.rules)
        current = remove_classes(current, own.coupling, own.keep(counts), own.dead)
        if recover is not None:
            current = recover(current, step)
    gone = dead.classes & ~planner.keep(goal)
    return Pruned(
        network=current,
        groups=_changes(planner, goal),
        dead={
            **_dead_counts(planner),
            "removed": int(planner.coupling.filters[gone].sum()),
            "max_abs_difference": difference,
        },
        timing=timing,
        request=request,
    )


def _zero(planner: Planner, request: Request, recover: Recover | None) -> Pruned:
    current, count = planner.network, 0
    assert request.amount is not None
    for step in range(1, request.steps + 1):
        share = request.amount * step / request.steps
        current, more = zeroed(current, share, request.rules.protect)
        count += more
        if recover is not None:
            _hold_zeros(current)
            current = recover(current, step)
    return Pruned(
        network=current,
        groups=_changes(planner, planner.whole()),
        dead={**_dead_counts(planner), "removed": 0, "max_abs_difference": 0.0},
        zeroed=count,
        request=request,
    )


def _hold_zeros(network: Network) -> None:
    """Let no gradient reach filters of zeros.

    The published script did not, so that its filters grew again while it trained.
    """
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            mask = (filter_norms(layer) > 0).float().view(-1, 1, 1, 1)
            layer.weight.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient, mask=mask: gradient * mask.to(gradient)
            )


def _choose(
    planner: Planner, request: Request, measure: Measure | None, progress: Progress
) -> tuple[Counts, Timing | None]:
    if request.amount is not None:
        return planner.counts(request.amount), None
    if request.target_macs is not None:
        return for_macs(planner, request.target_macs, request.size), None
    assert request.target_ms is not None
    if measure is None:
        raise UsageError("a target in milliseconds needs something that measures them")
    return for_ms(planner, request.target_ms, request.size, measure, progress)


def _changes(planner: Planner, counts: Counts) -> list[GroupChange]:
    dead = planner.dead.classes
    return [
        GroupChange(
            name=group.name,
            layers=len(group.writers),
            before=len(group.classes),
            dead=int(dead[group.classes].sum()),
            after=count,
            protected=planner.protects(group),
        )
        for group, count in zip(planner.groups, counts, strict=True)
        if not group.training_only
    ]


def _dead_counts(planner: Planner) -> dict[str, Any]:
    names = (
        "filters", "removable", "zero", "zero_removable", "zero_shared", "zero_border",
    )  # fmt: skip
    return {name: getattr(planner.dead, name) for name in names}


def _difference(first: Network, second: Network) -> float:
    """Largest difference of logits on a random frame."""
    side = 4 * max(first.size_divisor, 16)
    noise = np.random.default_rng(0).random((1, 3, side, 2 * side), dtype=np.float32)
    frame = torch.from_numpy(noise)
    with torch.inference_mode():
        return float((first(frame) - second(frame)).abs().max())


def _remember(
    notes: Path | None, request: Request, planner: Planner, counts: Counts, timing: Timing | None
) -> None:
    if notes is None:
        return
    times = None if timing is None else asdict(timing)
    document = {"request": request.document(), "before": planner.whole(), "counts": counts}
    write_whole(notes, json.dumps({**document, "timing": times}).encode())


def _recall(
    notes: Path | None, request: Request, planner: Planner
) -> tuple[Counts, Timing | None] | None:
    if notes is None or not notes.exists():
        return None
    try:
        document = json.loads(notes.read_text(encoding="utf-8"))
        asked, whole = document["request"], tuple(document["before"])
        counts = tuple(int(n) for n in document["counts"])
        timing = None if document["timing"] is None else Timing(**document["timing"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(f"'{notes}' is damaged; remove the folder and begin anew") from None
    if asked != request.document() or whole != planner.whole():
        raise UsageError(
            f"'{notes}' is of another request or network; give the same options as before, or "
            "another folder with -o"
        )
    return counts, timing
