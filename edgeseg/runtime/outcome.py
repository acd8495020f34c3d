"""What a frame's line says: the analysis, the state, and what stands for a missing result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.deadline import State
from edgeseg.runtime.frames import BadFrame, Frame
from edgeseg.runtime.regions import Analysis, Region

__all__ = ["Outcome", "everything_anomalous", "record"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a frame; the maps where somebody draws them."""

    analysis: Analysis
    class_map: npt.NDArray[np.uint8] | None = None
    score: npt.NDArray[Any] | None = None


def everything_anomalous(size: Sequence[int], top: float) -> Analysis:
    """The safe state's analysis of a frame of ``size`` (height, width): one region, all of it."""
    height, width = size[0], size[1]
    return Analysis(top, 1.0, (Region((0, 0, width, height), height * width, top),))


def record(
    frame: Frame | BadFrame | None,
    age_ms: float | None,
    latency_ms: float | None,
    analysis: Analysis | None,
    state: State,
) -> dict[str, Any]:
    """A line of ``--jsonl``; what is not known is ``None``, as for the safe state's lines while
    no frame comes.
    """
    good = frame if isinstance(frame, Frame) else None
    return {
        "frame": None if frame is None else frame.index,
        "captured_at": (
            None if good is None else good.captured_at.isoformat(timespec="microseconds")
        ),
        "captured_mono_ns": None if good is None else good.captured_mono_ns,
        "age_ms": None if age_ms is None else round(age_ms, 3),
        "latency_ms": None if latency_ms is None else round(latency_ms, 3),
        "anomaly_max": None if analysis is None else round(analysis.peak, 6),
        "anomaly_fraction": (
            None if analysis is None or analysis.fraction is None else round(analysis.fraction, 8)
        ),
        "regions": [
            {"box": list(region.box), "area": region.area, "peak": round(region.peak, 6)}
            for region in (analysis.regions if analysis is not None else ())
        ],
        "state": state,
    }
