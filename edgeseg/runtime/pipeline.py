"""From a source to the sinks: the stages overlap, each frame's times are kept apart.

Decoding and drawing run in threads beside the inference, so a stream costs the slowest of the
three and not their sum.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from edgeseg.errors import EdgesegError, InputError, SafeStateError, UsageError
from edgeseg.runtime.deadline import Deadline, OnMiss, Problem, State
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import BadFrame, Frame, Notice, Source
from edgeseg.runtime.inference import Inference
from edgeseg.runtime.outcome import Outcome, everything_anomalous, record
from edgeseg.runtime.report import Report
from edgeseg.runtime.safe import safe_maps, top_score
from edgeseg.runtime.session import Session
from edgeseg.runtime.shots import Shot, Sink
from edgeseg.runtime.sink_thread import SinkThread
from edgeseg.runtime.sinks import LinesSink
from edgeseg.runtime.supervisor import Supervisor

__all__ = ["Deadline", "Observer", "OnMiss", "Pipeline", "Report"]

# For the end of a video, where the loop itself cannot wait for it any more.
_FINISH_S: Final = 3.0


class Observer(Protocol):
    """Looks on; must return at once."""

    @property
    def wants_pictures(self) -> bool:
        """Whether somebody watches, so that maps are worth copying."""
        ...

    def notice(self, line: dict[str, Any], frame: Frame | None, shot: Shot | None) -> None:
        """A line of the run, the frame that it is about, and its result where there is one."""
        ...


class Pipeline:
    """Runs a session over a source.

    Args:
        session: opened; stays the caller's.
        source: opened; closed at the end.
        threshold: of the score; ``None``: no fraction and no regions.
        roi: bool ``[H, W]`` at network size; where it is false, pixels do not count.
        sink: takes the pictures, in a thread; closed at the end.
        lines: takes a record per frame.
        deadline: see :class:`Deadline`.
        limit: stop after so many frames.
        on_frame: called after each frame with the number so far.
        on_bad: called with each frame that could not be read.
        events: takes what happens; stays the caller's.
        observer: sees every line and, where it wants them, pictures.
        on_stuck: ends the process; called from the watching thread where the safe state is final
            and the engine does not come back, so that :meth:`run` cannot end. By then the outputs
            are finished, as far as that was possible. ``None``: the wait goes on.
        clock: monotonic nanoseconds, the clock that frames are stamped with.
    """

    def __init__(
        self,
        session: Session,
        source: Source,
        *,
        threshold: float | None = None,
        roi: npt.NDArray[np.bool_] | None = None,
        sink: Sink | None = None,
        lines: LinesSink | None = None,
        deadline: Deadline | None = None,
        limit: int | None = None,
        on_frame: Callable[[int], None] = lambda _: None,
        on_bad: Callable[[BadFrame], None] = lambda _: None,
        events: EventLog | None = None,
        observer: Observer | None = None,
        on_stuck: Callable[[SafeStateError], NoReturn] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if roi is not None and (roi.shape != session.size or not roi.any()):
            raise UsageError("the region of interest is empty or not at the network's size")
        self._session = session
        self._source = source
        self._sink = sink
        self._lines = lines
        self._limit = limit
        self._on_frame = on_frame
        self._on_bad = on_bad
        self._events = events if events is not None else EventLog(clock=clock)
        self._observer = observer
        self._on_stuck = on_stuck
        self.supervisor = Supervisor(deadline, live=source.live, events=self._events, clock=clock)
        self.report = Report()
        self._inference = Inference(session, self.supervisor, threshold, roi)
        self._last: Outcome | None = None
        self._failure: EdgesegError | None = None
        self._looping = False
        self._saving: SinkThread | None = None
        self._save_failed = False
        self._source_size = session.size
        known = session.bundle.head.num_known
        self._top = top_score(session.scorer, known)
        self._safe_maps = safe_maps(session.size, session.scorer, known, session.score_dtype)

    def run(self, stop: threading.Event | None = None) -> Report:
        """Process frames until the source ends, ``limit`` is reached, ``stop`` is set or the
        safe state ends the run.

        Returns:
            the report; an expected error on the way stands in it, after the outputs were
            finished.
        """
        report = self.report
        guard = self.supervisor
        sink = self._saving = SinkThread(self._sink) if self._sink is not None else None
        start = time.perf_counter()
        guard.begin()
        self._looping = True
        try:
            self._loop(report, sink, stop or threading.Event())
        except EdgesegError as error:
            report.error = error
        finally:
            with guard.lock:
                self._looping = False  # what takes long from here on is no silence
            self._source.close()
            report.skipped = self._source.skipped
            try:
                if sink is not None:
                    report.outputs += sink.close()
                    self._collect(report, sink)
            except EdgesegError as error:
                report.error = report.error or error
            finally:
                self._close_lines(report)
        report.seconds = time.perf_counter() - start
        return report

    @property
    def skipped(self) -> int:
        """Frames of a live source that newer ones replaced so far."""
        return self._source.skipped

    def refuse(self, problem: Problem) -> Report:
        """Instead of :meth:`run`, after a self-test that failed: one line that says so."""
        self._source.close()
        guard = self.supervisor
        guard.safe = guard.final = True
        guard.reason = f"the self-test failed: {problem.detail}"
        analysis = everything_anomalous(self._source_size, self._top)
        line = record(None, None, None, analysis, "self_test_failed")
        if self._observer is not None:
            self._observer.notice(line, None, None)
        report = self.report
        report.states["self_test_failed"] += 1
        report.error = SafeStateError(f"{guard.reason}; no frame was run")
        try:
            if self._lines is not None:
                self._lines.write(line)
        except EdgesegError as error:
            # What the machine computes is worse news than a full disk.
            report.error = report.error or error
        finally:
            self._close_outputs()
        return report

    def abandon(self) -> None:
        """Instead of :meth:`run`, where nothing is known that a line could say."""
        self._source.close()
        self._close_outputs()

    def listen(self) -> None:
        """Called from time to time by a watching thread: writes the safe state's lines while the
        source or the engine is silent, and ends the wait where that state is final.

        Nothing is silent before :meth:`run` waits for frames, nor after.
        """
        guard = self.supervisor
        with guard.lock:
            if not self._looping:
                return
            due = guard.listen()
            if guard.silent:
                self._last = None  # what was seen before is not what is there after
            if due is None:
                return
            try:
                line = self._put_safe(None)
            except EdgesegError as error:
                self._failure = error
                line = None
            if self._on_stuck is not None and guard.stuck:
                # The lock is kept: an engine that comes back now must not meet half of an end.
                self._finish_without_loop()
                self._on_stuck(
                    SafeStateError(
                        f"the engine has not answered for {guard.busy_ms():.0f} ms; the run "
                        "stopped in the safe state without waiting for it: start it again, and "
                        "the machine where that does not help"
                    )
                )
        self._show(line)
        # While the engine works nobody waits for the source, and closing it may take seconds.
        if self._failure is not None or (guard.final and not guard.busy_ms()):
            self._source.close()

    def _finish_without_loop(self) -> None:
        self._close_lines(self.report)
        saving = self._saving
        if saving is None:
            return

        def finish() -> None:
            with contextlib.suppress(Exception):  # nobody is left to be told
                saving.close()

        # In a thread: a disk that hangs as well must not keep the process either.
        thread = threading.Thread(target=finish, name="finish", daemon=True)
        thread.start()
        thread.join(_FINISH_S)

    def _close_outputs(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self.report.outputs += self._sink.outputs
        self._close_lines(self.report)

    def _close_lines(self, report: Report) -> None:
        with self.supervisor.lock:
            lines, self._lines = self._lines, None
            if lines is None:
                return
            try:
                lines.close()
            except EdgesegError as error:
                report.error = report.error or error
            report.outputs += lines.outputs

    def _items(self) -> Iterator[Frame | BadFrame | Notice]:
        """What the source delivers. A camera that is lost for good leaves no calm last line."""
        lost = False
        try:
            for item in self._source:
                if isinstance(item, Notice):
                    lost = item.event == "camera_lost"
                yield item
        except InputError as error:
            if self.supervisor.watched and self._source.live:
                notice = Notice("camera_lost", str(error))
                if not lost:
                    self._events.write(notice.event, "warning", detail=notice.detail)
                # The loss is what the run ends with, even where the disk is full as well.
                with contextlib.suppress(UsageError):
                    self._lose(notice)
            raise

    def _loop(self, report: Report, sink: SinkThread | None, stop: threading.Event) -> None:
        guard = self.supervisor
        for item in self._items():
            if stop.is_set():
                break
            if isinstance(item, Notice):
                self._events.write(item.event, "warning", detail=item.detail)
                if item.event == "camera_lost":
                    self._lose(item)
                if guard.final:
                    break
                continue
            if isinstance(item, BadFrame):
                report.corrupt += 1
                self._on_bad(item)
                if guard.watched and self._source.live:
                    self._give_up(item, report)
            else:
                report.frames += 1
                self._process(item, report, sink)
                self._on_frame(report.frames)
            if guard.final or stop.is_set() or report.frames == self._limit:
                break
        else:
            if not (report.frames or guard.safe or stop.is_set()) and report.corrupt:
                raise InputError(
                    f"none of the {report.corrupt} frames of '{self._source.label}' could be "
                    "read; check the input"
                )
        if self._failure is not None:
            raise self._failure
        if guard.safe:
            raise SafeStateError(f"{guard.reason}; the run stopped in the safe state")

    def _process(self, frame: Frame, report: Report, sink: SinkThread | None) -> None:
        guard = self.supervisor
        report.stages_ms["decode"].append(frame.decode_ms)
        self._source_size = (frame.image.shape[0], frame.image.shape[1])
        watching = self._observer is not None and self._observer.wants_pictures
        drawn = sink is not None or watching
        outcome: Outcome | None = None
        latency: float | None = None
        # A frame that is too old or unusable is not worth the inference.
        problem = guard.accept(frame)
        if problem is None:
            outcome, latency, problem = self._inference.run(frame, report, keep=drawn)
        # Whoever writes a line holds the lock from the verdict on: a line must not follow one
        # that is newer.
        with guard.lock:
            age = guard.age_ms(frame)
            state = guard.judge(frame.name, age, problem)
            state, outcome = self._settle(state, outcome)
            report.missed += state != "ok"
            report.states[state] += 1
            analysis = None if outcome is None else outcome.analysis
            line = record(frame, age, latency, analysis, state)
            if self._lines is not None:
                self._lines.write(line)
        shot = self._shot(frame, outcome, state, latency)
        if sink is not None:
            self._save(shot, sink, report)
        if self._observer is not None:
            self._observer.notice(line, frame, shot if watching else None)

    def _settle(self, state: State, outcome: Outcome | None) -> tuple[State, Outcome | None]:
        """What is told in ``state``, where the frame itself gave ``outcome``."""
        if state == "ok" and outcome is not None:
            self._last = outcome
        elif state == "reused":
            return ("dropped", None) if self._last is None else ("reused", self._last)
        elif state == "safe":
            self._last = None  # after the safe state nothing from before it may be reused
            analysis = everything_anomalous(self._source_size, self._top)
            return state, Outcome(analysis, *self._safe_maps)
        elif state == "dropped":
            return state, None
        return state, outcome

    def _give_up(self, bad: BadFrame, report: Report) -> None:
        """A camera's frame that could not be decoded has no result in time."""
        guard = self.supervisor
        with guard.lock:
            state = guard.judge(f"frame {bad.index}", None, Problem("corrupt", bad.reason))
            report.missed += 1
            line = self._put_safe(bad) if state == "safe" else None
        self._show(line)

    def _lose(self, notice: Notice) -> None:
        guard = self.supervisor
        with guard.lock:
            self._last = None  # a camera that comes back may look elsewhere
            line = self._put_safe(None) if guard.lose(notice.detail) else None
        self._show(line)

    def _put_safe(self, bad: BadFrame | None) -> dict[str, Any]:
        """Write the safe state's line where there is no frame to speak of."""
        self.report.states["safe"] += 1
        analysis = everything_anomalous(self._source_size, self._top)
        line = record(bad, None, None, analysis, "safe")
        if self._lines is not None:
            self._lines.write(line)
        return line

    def _show(self, line: dict[str, Any] | None) -> None:
        if line is not None and self._observer is not None:
            self._observer.notice(line, None, None)

    def _shot(
        self, frame: Frame, outcome: Outcome | None, state: State, latency: float | None
    ) -> Shot | None:
        if outcome is None or outcome.class_map is None or outcome.score is None:
            return None
        note = f"{latency:.1f} ms" if latency is not None and state == "ok" else state
        reason = self.supervisor.reason if state == "safe" else ""
        return Shot(frame.stem, frame.image, outcome.class_map, outcome.score, note, state, reason)

    def _save(self, shot: Shot | None, sink: SinkThread, report: Report) -> None:
        if shot is None:
            pass
        elif not (self.supervisor.watched and self._source.live):
            sink.put(shot)
        elif not sink.offer(shot):
            # A slow or full disk must not make the next frame late.
            report.unsaved += 1
            if sink.failure is not None and not self._save_failed:
                self._save_failed = True
                self._events.write("save_failed", "error", detail=sink.failure)
        self._collect(report, sink)

    @staticmethod
    def _collect(report: Report, sink: SinkThread) -> None:
        for draw, encode in sink.take_timings():
            report.stages_ms["draw"].append(draw)
            report.stages_ms["encode"].append(encode)
