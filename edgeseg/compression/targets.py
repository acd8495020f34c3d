"""Choosing widths for a target: a share of the multiply-accumulates, or milliseconds.

Both searches walk a ladder of plans from the whole network downwards. Neighbours differ in the
width of one group, so that the steps are small though widths are rounded.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgeseg.compression.ranking import Counts, Planner
from edgeseg.compression.surgery import remove_classes
from edgeseg.errors import BudgetExceededError
from edgeseg.networks.base import Network

__all__ = ["TOLERANCE", "MacsModel", "Stopwatch", "Timing", "for_macs", "for_ms", "ladder"]

TOLERANCE: Final = 0.1
"""Largest relative distance from a target."""
_CLOSE: Final = 0.03
_PROBES: Final = 10
_LARGEST_AMOUNT: Final = 0.97
_WARMUP: Final = 3

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a frame: class map and score of a uint8 frame in memory."""

    reference_ms: float
    """Of the unpruned network."""
    ms: float
    """Of the pruned one."""
    backend: str = ""
    """Engine that both ran on."""


def ladder(planner: Planner) -> list[Counts]:
    """Plans from the whole network, dead filters left out, to the smallest."""
    rungs = [planner.counts(0.0)]
    for amount in np.arange(0.01, _LARGEST_AMOUNT, 0.01):
        goal = planner.counts(float(amount))
        for i, count in enumerate(goal):
            # A stream that another one contains may take its rounding along, upwards too.
            if count < rungs[-1][i]:
                rungs.append((*rungs[-1][:i], count, *rungs[-1][i + 1 :]))
    return rungs


class MacsModel:
    """Multiply-accumulates of plans, without building them."""

    def __init__(self, planner: Planner, size: tuple[int, int]) -> None:
        """Args:
        planner: of the unpruned network.
        size: height and width of the frame, pixels.

        Raises:
            UsageError: the network does not take frames of this size.
        """
        self._planner = planner
        macs = _layer_macs(planner.network, *size)
        self._steps = [s for s in planner.coupling.convolutions if s.module in macs]
        self._macs = np.array([macs[s.module] for s in self._steps], float)

    def __call__(self, counts: Counts) -> float:
        """Multiply-accumulates of the deployed graph; they fall with both widths of a layer."""
        coupling = self._planner.coupling
        keep = self._planner.keep(counts)
        shares = [
            keep[coupling.wires[s.output]].mean() * keep[coupling.wires[s.inputs[0]]].mean()
            for s in self._steps
        ]
        return float(self._macs @ np.array(shares))

    @property
    def whole(self) -> float:
        """Of the unpruned network."""
        return float(self._macs.sum())


def _layer_macs(network: Network, height: int, width: int) -> dict[str, int]:
    """Of every layer of the deployed graph, counted as in :mod:`edgeseg.networks.counts`."""
    network.check_size(height, width)
    with torch.device("meta"):
        ghost = type(network)(network.structure).eval()
    macs: dict[str, int] = {}

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        macs[names[layer]] = pixels.numel() * weight[0].numel()

    names = {m: n for n, m in ghost.named_modules()}
    for layer in names:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        ghost(torch.empty(1, 3, height, width, device="meta"))
    return macs


def for_macs(planner: Planner, share: float, size: tuple[int, int]) -> Counts:
    """The plan with the most channels of which the multiply-accumulates are within the target.

    Args:
        planner: of the unpruned network.
        share: of the unpruned network's, 0 to 1.
        size: height and width of the frame, pixels.

    Raises:
        BudgetExceededError: no plan comes within a tenth of the target.
    """
    macs = MacsModel(planner, size)
    rungs = ladder(planner)
    target = share * macs.whole
    if macs(rungs[-1]) > target:
        raise BudgetExceededError(
            f"{share:g} of the multiply-accumulates cannot be reached: {_least(planner)} leaves "
            f"{macs(rungs[-1]) / macs.whole:.2f}; {_advice(planner)}"
        )
    high = _first(lambda index: macs(rungs[index]), target, -1, len(rungs) - 1)
    near = rungs[high]
    if high > 0 and macs(near) < (1 - TOLERANCE) * target:
        # One width took too much at once; a little above the target is nearer.
        near = min(near, rungs[high - 1], key=lambda counts: abs(macs(counts) - target))
        if abs(macs(near) - target) > TOLERANCE * target:
            raise BudgetExceededError(
                f"no widths give {share:g} of the multiply-accumulates within a tenth, the "
                f"nearest {macs(near) / macs.whole:.2f}; {_advice(planner)}"
            )
    return near


def for_ms(
    planner: Planner,
    target: float,
    size: tuple[int, int],
    measure: Callable[[Network], Timing],
    progress: Progress = lambda _: None,
) -> tuple[Counts, Timing]:
    """The plan whose measured time is nearest to a target.

    Args:
        planner: of the unpruned network.
        target: milliseconds a frame.
        size: height and width of the frame, pixels.
        measure: times a network beside the unpruned one (:class:`Stopwatch`).
        progress: is told what is being done.

    Returns:
        The plan and its time. A network that is quick enough already loses its dead filters alone.

    Raises:
        BudgetExceededError: no plan comes within a tenth of the target.
    """
    macs = MacsModel(planner, size)
    rungs = ladder(planner)
    found: dict[int, Timing] = {}

    def probe(index: int) -> float:
        counts = rungs[index]
        keep = planner.keep(counts)
        network = remove_classes(planner.network, planner.coupling, keep, planner.dead)
        found[index] = measure(network)
        share = macs(counts) / macs.whole
        progress(f"{share:.3f} of the multiply-accumulates: {found[index].ms:.2f} ms")
        return found[index].ms

    slow, quick = 0, len(rungs) - 1
    if probe(slow) <= target * (1 + _CLOSE) or quick == 0:
        quick = slow
    times = {slow: found[slow].ms}
    while quick - slow > 1 and len(found) < _PROBES:
        index = _guess(lambda i: macs(rungs[i]), times, slow, quick, target)
        times[index] = probe(index)
        if abs(times[index] - target) <= _CLOSE * target:
            break
        slow, quick = (index, quick) if times[index] > target else (slow, index)
        if quick - slow == 1 and quick not in found:
            times[quick] = probe(quick)
    best = min(found, key=lambda index: abs(found[index].ms - target))
    timing = found[best]
    too_slow = timing.ms > target * (1 + TOLERANCE)
    if too_slow or (best and timing.ms < target * (1 - TOLERANCE)):
        raise BudgetExceededError(
            f"{target:g} ms cannot be met on this machine: the unpruned network takes "
            f"{timing.reference_ms:.2f} ms and the nearest pruned one {timing.ms:.2f} ms; "
            f"{_advice(planner) if too_slow else 'try again when the machine is quiet'}"
        )
    return rungs[best], timing


def _guess(
    macs: Callable[[int], float], times: dict[int, float], slow: int, quick: int, target: float
) -> int:
    """The rung between two where the target should lie if time were linear in the operations.

    What was not measured yet is taken to be proportional to them.
    """
    most, least = macs(slow), macs(quick)
    upper = times[slow]
    lower = times.get(quick, upper * least / most)
    share = (upper - target) / (upper - lower) if upper > lower else 1.0
    wanted = most + min(max(share, 0.05), 1.0) * (least - most)
    index = _first(macs, wanted, slow, quick)
    # An end that was measured already tells nothing new.
    return index - (index == quick and quick in times)


def _first(macs: Callable[[int], float], wanted: float, low: int, high: int) -> int:
    """The first rung behind ``low`` with at most ``wanted`` operations; ``high`` at the latest."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) > wanted else (low, middle)
    return high


class Stopwatch:
    """Times networks as bundles on this machine, frame by frame in turn with the unpruned one.

    What slows the machine down slows both, so the quotient of their times holds still; it is
    multiplied with the unpruned network's time, measured once.
    """

    def __init__(
        self,
        reference: Network,
        size: tuple[int, int],
        *,
        backend: str = "auto",
        threads: int | None = None,
        rounds: int = 15,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Args:
        reference: the unpruned network.
        size: height and width of the frame, pixels.
        backend: engine, as :class:`edgeseg.runtime.session.Session` takes it; ``auto`` takes the
            one that is quickest on the unpruned network for all.
        threads: of the engine; default: all cores.
        rounds: frames per measurement.
        clock: nanoseconds.

        Raises:
            MissingDependencyError: no engine, or not the one asked for.
        """
        self._size, self._rounds, self._threads, self._clock = size, rounds, threads, clock
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="edgeseg-")))
        # Noise rather than zeros: multiplications by zero have times of their own.
        self._frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        self._count = 0
        try:
            self._reference = self._open(self._stack, reference, backend)
            self.backend: str = self._reference.backend_name
            """The engine in use."""
            own = [self._once(self._reference) for _ in range(_WARMUP + self._rounds)]
        except BaseException:
            self._stack.close()
            raise
        self.reference_ms = float(np.median(own[_WARMUP:]))
        """Of the unpruned network."""

    def __call__(self, network: Network) -> Timing:
        """Time a network."""
        with ExitStack() as stack:
            session = self._open(stack, network, self.backend)
            pairs = [
                (self._once(self._reference), self._once(session))
                for _ in range(_WARMUP + self._rounds)
            ]
        quotient = float(np.median([b / a for a, b in pairs[_WARMUP:]]))
        return Timing(self.reference_ms, quotient * self.reference_ms, self.backend)

    def close(self) -> None:
        """Free the engine and the temporary bundles."""
        self._stack.close()

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, stack: ExitStack, network: Network, backend: str) -> Any:
        from edgeseg.export.exporter import export_bundle
        from edgeseg.runtime.session import Session

        self._count += 1
        path = self._folder / f"{self._count}"
        height, width = self._size
        bundle = export_bundle(network, path, height=height, width=width)
        return stack.enter_context(Session(bundle, backend=backend, threads=self._threads))

    def _once(self, session: Any) -> float:
        begin = self._clock()
        session.run(self._frame)
        return (self._clock() - begin) / 1e6


def _least(planner: Planner) -> str:
    return f"the smallest network at --round-to {planner.rules.round_to}"


def _advice(planner: Planner) -> str:
    if planner.rules.protect:
        return "protect fewer layers, give a smaller --round-to or another target"
    if planner.rules.round_to > 1:
        return "give a smaller --round-to or another target"
    return "give another target"
