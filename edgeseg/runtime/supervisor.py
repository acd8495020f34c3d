"""Judges every frame, counts misses, and decides when the run is in the safe state."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from edgeseg.runtime.deadline import Deadline, Problem, State
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import Frame
from edgeseg.runtime.health import FrameHealth

__all__ = ["Supervisor"]

# A capture time a little ahead of ours is rounding; more is a clock that is wrong.
_AHEAD_MS: Final = 1.0
# A camera may take so long for its first frame.
_FIRST_MS: Final = 10_000.0
_REPEAT_MS: Final = 1_000.0
# Drivers that reset a device which hangs take a few seconds; an engine that comes back by then
# lets the run end in order.
_GRACE_MS: Final = 5_000.0


class Supervisor:
    """The state of a run. Safe to call from the loop and from a watching thread.

    Who judges a frame and writes down the verdict holds :attr:`lock` for both, so that no
    verdict is written after a later one.

    Args:
        deadline: ``None``: every frame is ``ok``.
        live: whether silence and sameness mean something, as with a camera.
        events: where transitions are told.
        clock: monotonic nanoseconds, the clock that frames are stamped with.
    """

    def __init__(
        self,
        deadline: Deadline | None = None,
        *,
        live: bool = False,
        events: EventLog | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.lock = threading.RLock()
        self.deadline = deadline
        self.watched = deadline is not None and deadline.watched
        """Whether frames and results are checked beyond their age."""
        self.events = events if events is not None else EventLog()
        self.safe = False
        """Whether the run is in the safe state."""
        self.final = False
        """Whether it is there for good."""
        self.reason = ""
        """Why it went there last."""
        self.silent = False
        """Whether the source or the engine has been silent for too long."""
        self.problems: Counter[str] = Counter()
        """Misses by kind."""
        self.entries = 0
        """How often the run went into the safe state."""
        self.misses = 0
        """Consecutive ones."""
        self._clock = clock
        self._live = live
        self._health = FrameHealth() if self.watched and live else None
        self._good = 0
        self._arrived: int | None = None
        self._started = clock()
        self._busy_since: int | None = None
        self._told = self._entered = 0
        self._streak = Counter[str]()

    def begin(self) -> None:
        """Count the wait for the first frame from now on, and not from when this was made: what
        is opened in between takes its time.
        """
        with self.lock:
            self._started = self._clock()

    def age_ms(self, frame: Frame) -> float:
        """Milliseconds since the frame's capture; negative where its clock is ahead of ours."""
        return (self._clock() - frame.captured_mono_ns) / 1e6

    def accept(self, frame: Frame) -> Problem | None:
        """Whether the frame is worth an inference: ``None``, or what is wrong with it."""
        self._arrived = self._clock()
        if not self.watched:
            return None
        unusable = self._health.check(frame.image) if self._health is not None else None
        return unusable or self._untimely(self.age_ms(frame))

    def infers(self, busy: bool) -> None:
        """Told by the loop when an inference begins and ends."""
        now = self._clock()
        self._busy_since = now if busy else None
        if not busy:
            self._arrived = now  # while the engine worked, nobody waited for the source

    def judge(self, name: str, age_ms: float | None, problem: Problem | None) -> State:
        """The state of a frame whose result is there, or was given up.

        Args:
            name: of the frame, for messages.
            age_ms: at this moment; ``None``: the frame could not be read.
            problem: what :meth:`accept` or the checks of the result found.

        Returns:
            ``reused`` stands for the wish: whether there is a result to reuse, the caller knows.
        """
        with self.lock:
            deadline = self.deadline
            if deadline is None:
                return "ok"
            if problem is None and age_ms is not None:
                problem = self._untimely(age_ms)
            if problem is None:
                return self._good_frame(deadline)
            self.problems[problem.kind] += 1
            if deadline.on_miss is None:
                return "late"
            self._miss(name, problem)
            if self.safe:
                return "safe"
            if deadline.limit is not None and self.misses >= deadline.limit:
                more = f" ({self.misses} misses in a row)" if deadline.limit > 1 else ""
                self._enter(f"{name}: {problem.detail}{more}")
                return "safe"
            return "reused" if deadline.on_miss == "reuse" else "dropped"

    def lose(self, detail: str) -> bool:
        """Told by the loop that the camera is gone; whether that leads into the safe state now:
        no frame will come whose misses could be counted.
        """
        with self.lock:
            self._good = 0
            limited = self.deadline is not None and self.deadline.limit is not None
            if not (self.watched and limited) or self.safe:
                return False
            self.problems["camera_lost"] += 1
            self._enter(detail)
            return True

    def listen(self) -> Problem | None:
        """Called from time to time by a watching thread: has the source or the engine gone
        silent?

        Returns:
            the problem, where a record in the safe state is due: at once, then every second.
        """
        with self.lock:
            deadline = self.deadline
            now, busy, arrived = self._clock(), self._busy_since, self._arrived
            if deadline is None or not self.watched or (self.final and busy is None):
                return None  # where the state is final and the engine done, the run is ending
            if busy is None and not self._live:
                self._end_silence()
                return None
            patience = deadline.silence_ms
            if busy is None and arrived is None:
                patience = max(patience, _FIRST_MS)
            since = busy if busy is not None else arrived
            gone = (now - (self._started if since is None else since)) / 1e6
            if gone <= patience:
                self._end_silence()
                return None
            kind = "source_silent" if busy is None else "engine_hung"
            what = "no frame has come" if busy is None else "the engine has not answered"
            problem = Problem(kind, f"{what} for {gone:.0f} ms")
            first = not self.silent
            self.silent = True
            if first:
                self.problems[kind] += 1
                self.events.write(kind, "error", silent_ms=round(gone, 1))
                if deadline.limit is not None and not self.safe:
                    self._enter(problem.detail)
            self._good = 0
            if not self.safe or (not first and now - self._told < _REPEAT_MS * 1e6):
                return None
            self._told = now
            return problem

    def busy_ms(self) -> float:
        """How long the inference that is running has been; 0 between two."""
        since = self._busy_since
        return 0.0 if since is None else (self._clock() - since) / 1e6

    @property
    def stuck(self) -> bool:
        """Whether the safe state is final and the engine, some seconds later, still inside an
        inference: the loop cannot end the run then.
        """
        with self.lock:
            hangs = self.final and self._busy_since is not None
            return hangs and self._clock() - self._entered > _GRACE_MS * 1e6

    def _end_silence(self) -> None:
        if self.silent:
            self.silent = False
            self.events.write("silence_ended")

    def _untimely(self, age_ms: float) -> Problem | None:
        deadline = self.deadline
        if deadline is None:
            return None
        if age_ms > deadline.ms:
            return Problem(
                "late", f"it was {age_ms:.1f} ms old, past the deadline of {deadline.ms:g} ms"
            )
        if self.watched and age_ms < -_AHEAD_MS:
            return Problem("future", f"its capture time is {-age_ms:.1f} ms ahead of the clock")
        return None

    def _miss(self, name: str, problem: Problem) -> None:
        self.misses += 1
        self._good = 0
        self._streak[problem.kind] += 1
        if self._streak[problem.kind] == 1:
            # Only the first of a row: a log that grows with every frame says nothing.
            self.events.write(
                "miss", "warning", kind=problem.kind, frame=name, detail=problem.detail
            )

    def _good_frame(self, deadline: Deadline) -> State:
        if self._streak:
            self.events.write("misses_ended", misses=dict(self._streak))
            self._streak.clear()
        self.misses = 0
        if not self.safe:
            return "ok"
        self._good += 1
        if deadline.recover_after is None or self._good < deadline.recover_after:
            return "safe"
        self.safe = False
        self.events.write("recovered", after_frames=self._good)
        return "ok"

    def _enter(self, reason: str) -> None:
        assert self.deadline is not None
        self.safe = True
        self._entered = self._clock()
        self.entries += 1
        self.reason = reason
        self._good = 0
        self.final = self.deadline.recover_after is None
        self.events.write("safe_state", "error", reason=reason, final=self.final)
