"""What a run did, in figures."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import EdgesegError

__all__ = ["Recent", "Report"]

_KEPT: Final = 1 << 14
_STAGES: Final = ("decode", "resize", "body", "head", "analyse", "draw", "encode")


class Recent:
    """The last values of an endless series, in memory that does not grow."""

    def __init__(self, kept: int = _KEPT) -> None:
        # Filled, not merely reserved: pages that are touched one by one look like a leak.
        self._values = np.full(kept, np.nan)
        self._count = 0

    def append(self, value: float) -> None:
        """Add one; the oldest goes where the memory is full."""
        self._values[self._count % self._values.size] = value
        self._count += 1

    def values(self) -> npt.NDArray[np.float64]:
        """A copy, the oldest first."""
        at = self._count % self._values.size
        if self._count < self._values.size:
            return self._values[:at].copy()
        return np.concatenate([self._values[at:], self._values[:at]])

    def __len__(self) -> int:
        return min(self._count, self._values.size)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values().tolist())


@dataclass(slots=True)
class Report:
    """What a run did. Of an endless stream the times are those of the last 16384 frames."""

    frames: int = 0
    """Frames that were read, those past their deadline included."""
    corrupt: int = 0
    skipped: int = 0
    """Frames of a live source that newer ones replaced."""
    missed: int = 0
    """Frames past their deadline, or without a result that may be trusted."""
    unsaved: int = 0
    """Pictures that a slow or full disk did not take, where the run does not wait for it."""
    states: Counter[str] = field(default_factory=Counter)
    """Frames by state."""
    seconds: float = 0.0
    """From the wait for the first frame to the last byte written."""
    latency_ms: Recent = field(default_factory=Recent)
    """Frame at network size in memory to class map and score in memory: body and head."""
    stages_ms: dict[str, Recent] = field(
        default_factory=lambda: {stage: Recent() for stage in _STAGES}
    )
    outputs: list[str] = field(default_factory=list)
    error: EdgesegError | None = None
    """What ended the run early, where something did; what was written until then is whole."""

    def summary(self) -> dict[str, Any]:
        """The figures as JSON has them; ``None`` where nothing was measured."""
        latency = self.latency_ms.values()
        levels = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
        return {
            "frames": self.frames,
            "corrupt": self.corrupt,
            "skipped": self.skipped,
            "missed": self.missed,
            "fps": round(self.frames / self.seconds, 3) if self.seconds else None,
            "latency_ms": {
                name: round(float(np.percentile(latency, level)), 3) if latency.size else None
                for name, level in levels.items()
            },
            "stages_ms": {
                stage: round(float(np.median(times.values())), 3)
                for stage, times in self.stages_ms.items()
                if len(times)
            },
            "outputs": self.outputs,
        }
