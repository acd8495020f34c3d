"""How much quantization moves the scores, measured without a label.

Two quantities stand for all scorers, both linear in the logits f, so that a saturated probability
does not hide a change: the maximum logit over the known classes K, max f_c, and the log-odds of
void, f_void - log sum over K of exp f_c, whose logistic function is the void score. The measure
is the 95th percentile over all pixels of all frames of their absolute change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.scoring.head import Head
from edgeseg.scoring.kernels import HeadKernel

__all__ = ["PERCENTILE", "Reference", "ScoreChange", "ScoreProbe"]

PERCENTILE: Final = 95.0
# Of more pixels than this only every n-th is compared: the percentile does not move.
_MAX_PIXELS: Final = 1 << 22

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Features = Callable[[UInt8], Float32]
"""Frame to features, as :meth:`Session.features <edgeseg.runtime.session.Session.features>`."""


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """95th percentile of the absolute change of either quantity, in logits."""

    max_logit: float
    void_log_odds: float | None = None
    """``None`` for a network without a void output."""

    @property
    def values(self) -> dict[str, float]:
        """By name, those that there are."""
        both = {"void_log_odds": self.void_log_odds, "max_logit": self.max_logit}
        return {name: value for name, value in both.items() if value is not None}

    def energy(self, unit: "ScoreChange") -> float:
        """Sum of the squares of the changes, each in units of that of ``unit``: one number for
        both. Changes of independent causes add in squares, so each cause has its share of it.
        """
        mine, units = self.values, unit.values
        return float(sum((mine[k] / max(units[k], 1e-12)) ** 2 for k in units))


class ScoreProbe:
    """Maximum logit and void log-odds of features, by the head kernel, which writes no logits."""

    def __init__(self, head: Head, height: int, width: int, threads: int) -> None:
        self._kernel = HeadKernel(head, height, width, "maxlogit", 1.0, threads, np.float32)
        self._void: HeadKernel | None = None
        self._head = head
        if head.void_index is not None:
            self._void = HeadKernel(
                _single(head, head.void_index), height, width, "maxlogit", 1.0, threads, np.float32
            )

    def measure(self, features: Float32) -> dict[str, Float32]:
        """``max_logit`` and, where there is one, ``void_log_odds``: ``[H, W]`` float32 each.

        Args:
            features: float32 ``[1, ...]`` in the head's layout.
        """
        self._kernel.set_scorer("maxlogit")
        result = {"max_logit": -self._score(self._kernel, features)}
        if self._void is not None and self._head.void_index is not None:
            self._kernel.set_scorer("energy")
            energy = self._score(self._kernel, features)
            if self._head.weight is None:  # the features are the logits, of which one is taken
                axis = -1 if self._head.layout == "nhwc" else 1
                one = np.take(features, [self._head.void_index], axis)
                features = np.ascontiguousarray(one)
            result["void_log_odds"] = energy - self._score(self._void, features)
        return result

    def close(self) -> None:
        """Free the kernels."""
        self._kernel.close()
        if self._void is not None:
            self._void.close()

    def __enter__(self) -> "ScoreProbe":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _score(self, kernel: HeadKernel, features: Float32) -> Float32:
        _, score = kernel.run(features)
        return np.asarray(score, np.float32)


class Reference:
    """What the float network says about some frames, to compare others with.

    Args:
        probe: of the network's head.
        frames: uint8 ``[H, W, 3]`` BGR at the network's size.
        features: of the float network.
    """

    def __init__(self, probe: ScoreProbe, frames: Sequence[UInt8], features: Features) -> None:
        self.frames = list(frames)
        self._probe = probe
        pixels = sum(f.shape[0] * f.shape[1] for f in self.frames)
        # Odd: an even step would meet every row at the same columns.
        self._step = max(1, -(-pixels // _MAX_PIXELS)) | 1
        self._maps = [self._take(features(frame)) for frame in self.frames]

    def change(
        self, features: Features, disturb: Callable[[UInt8, int], UInt8] | None = None
    ) -> ScoreChange:
        """The measure of a network against this one.

        Args:
            features: of the network.
            disturb: changes a frame, given its number, before the network sees it.
        """
        changes: dict[str, list[Float32]] = {name: [] for name in self._maps[0]}
        for index, (frame, before) in enumerate(zip(self.frames, self._maps, strict=True)):
            after = self._take(features(disturb(frame, index) if disturb else frame))
            for name, values in changes.items():
                values.append(np.abs(after[name] - before[name]))
        result: dict[str, Any] = {
            name: float(np.percentile(np.concatenate(values), PERCENTILE))
            for name, values in changes.items()
        }
        return ScoreChange(**result)

    def _take(self, features: Float32) -> dict[str, Float32]:
        maps = self._probe.measure(features)
        return {name: value.reshape(-1)[:: self._step].copy() for name, value in maps.items()}


def _single(head: Head, output: int) -> Head:
    """The head with one of its outputs alone, as its only class."""
    isomax = head.isomax
    if isomax is not None:
        isomax = replace(isomax, prototypes=isomax.prototypes[output : output + 1])
    return replace(
        head,
        num_outputs=1,
        num_known=1,
        void_index=None,
        weight=None if head.weight is None else head.weight[:, output : output + 1],
        bias=None if head.bias is None else head.bias[output : output + 1],
        isomax=isomax,
    )
