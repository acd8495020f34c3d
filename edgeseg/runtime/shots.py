"""A frame with its result, and what takes such."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.deadline import State
from edgeseg.runtime.overlay import Painter
from edgeseg.runtime.safe import mark_safe

__all__ = ["Shot", "Sink"]


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame with its result; the arrays belong to it."""

    stem: str
    image: npt.NDArray[np.uint8]
    class_map: npt.NDArray[np.uint8]
    score: npt.NDArray[Any]
    note: str
    """Added to the caption."""
    state: State = "ok"
    """``safe``: the picture is marked as showing no result."""
    reason: str = ""
    """Why it is in the safe state."""

    def draw(self, painter: Painter) -> npt.NDArray[np.uint8]:
        """The picture of the shot, uint8 BGR."""
        if self.state != "safe":
            return painter.draw(self.image, self.class_map, self.score, self.note)
        # The top of an unbounded score would stretch the scale of all later pictures.
        low = painter.scale.low if np.isfinite(painter.scale.low) else 0.0
        calm = np.full(self.score.shape, low, self.score.dtype)
        picture = painter.draw(self.image, self.class_map, calm, self.note)
        return mark_safe(picture, self.reason)


class Sink(Protocol):
    """Takes shots in order."""

    outputs: list[str]
    """What was written, for the report."""

    def write(self, shot: Shot) -> tuple[float, float]:
        """Write one; returns the milliseconds of drawing and of encoding."""
        ...

    def close(self) -> None:
        """Finish: afterwards everything is under its final name."""
        ...
