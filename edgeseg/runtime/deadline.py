"""When a frame's result comes too late, and what happens then."""

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Deadline", "OnMiss", "Problem", "State"]

OnMiss = Literal["drop", "reuse", "safe"]
State = Literal["ok", "late", "reused", "dropped", "safe", "self_test_failed"]

_SILENT_DEADLINES: Final = 5.0
_SILENT_MS: Final = 500.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """How old a frame may be when its result is there, and what happens to an older one."""

    ms: float
    """From the frame's capture to its result."""
    on_miss: OnMiss | None = None
    """``None``: the result stands and is marked ``late``; nothing else is watched."""
    max_misses: int | None = None
    """Consecutive misses that lead into the safe state. ``None``: the first one with ``safe``,
    never with ``drop`` and ``reuse``."""
    recover_after: int | None = None
    """Consecutive frames in time that lead out of the safe state. ``None``: it ends the run."""

    @property
    def watched(self) -> bool:
        """Whether frames, results and the silence between them are checked as well."""
        return self.on_miss is not None

    @property
    def limit(self) -> int | None:
        """Consecutive misses that lead into the safe state; ``None``: there is no such state."""
        if self.max_misses is None and self.on_miss == "safe":
            return 1
        return self.max_misses

    @property
    def silence_ms(self) -> float:
        """Without a frame, or inside one inference, for longer than this something is broken:
        five deadlines, at least half a second (a camera that adapts its exposure pauses that
        long).
        """
        return max(_SILENT_MS, _SILENT_DEADLINES * self.ms)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a frame has no result that may be trusted."""

    kind: str
    """``late``, ``future``, ``black``, ``blank``, ``frozen``, ``torn``, ``corrupt``,
    ``not_finite``, ``constant``, ``saturated``, ``engine_error``, ``engine_hung``,
    ``source_silent``."""
    detail: str
    """One clause for people."""
