"""What a source delivers: frames, and frames that could not be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["BadFrame", "Frame", "Notice", "Source", "now_utc"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a source."""

    index: int
    """Position in the source, from 0; frames that could not be read are counted too."""
    image: npt.NDArray[np.uint8]
    """``[h, w, 3]`` BGR at the source's size."""
    name: str
    """For messages: the file's path within the folder, or ``clip.mp4#12``."""
    stem: str
    """For output files: relative, without suffix."""
    captured_at: datetime
    """UTC. For files: when the frame was handed over, as if a camera had just taken it."""
    captured_mono_ns: int
    """The same moment on ``time.monotonic_ns``'s clock."""
    decode_ms: float


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A frame that is corrupt or missing; the run goes on without it."""

    index: int
    reason: str
    """One sentence that names it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to the source itself."""

    event: Literal["camera_lost", "camera_back"]
    detail: str
    """One sentence that names the source."""


class Source(Protocol):
    """Where frames come from. Iterate once, then close; closing from another thread ends the
    iteration.
    """

    label: str
    """For messages."""
    live: bool
    """Whether frames come at their own pace (and old ones are worth nothing)."""
    length: int | None
    """How many frames there are, where that is known; video containers only estimate it."""
    fps: float | None
    """Frames per second of the source, where it has a rate."""
    skipped: int
    """Frames of a live source that were replaced by newer ones before anyone took them."""

    def __iter__(self) -> Iterator[Frame | BadFrame | Notice]: ...

    def close(self) -> None:
        """Let go of the files or the device; safe to call twice."""
        ...


def now_utc() -> datetime:
    """Wall-clock time with its zone."""
    return datetime.now(timezone.utc)
