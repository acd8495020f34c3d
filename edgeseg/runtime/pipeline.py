"""From a source to the sinks: the stages overlap, each frame's times are kept apart.

Decoding and drawing run in threads beside the inference, so a stream costs the slowest of the
three and not their sum.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from edgeseg.errors import EdgesegError, InputError, SafeStateError, UsageError
from edgeseg.runtime.frames import BadFrame, Frame, Source
from edgeseg.runtime.regions import Analysis, Region, analyse
from edgeseg.runtime.session import Session
from edgeseg.runtime.sinks import LinesSink, Shot, Sink, SinkThread
from edgeseg.scoring.kernels import resize_bilinear
from edgeseg.scoring.scorers import score_range

__all__ = ["Deadline", "OnMiss", "Pipeline", "Report"]

OnMiss = Literal["drop", "reuse", "safe"]
State = Literal["ok", "late", "reused", "dropped", "safe"]

# Of an endless stream the figures are those of the last frames.
_KEPT: Final = 1 << 16
_STAGES: Final = ("decode", "resize", "body", "head", "analyse", "draw", "encode")


@dataclass(frozen=True, slots=True)
class Deadline:
    """How old a frame may be when its result is there, and what happens to an older one."""

    ms: float
    on_miss: OnMiss | None = None
    """``None``: the result stands and is marked ``late``."""


@dataclass(slots=True)
class Report:
    """What a run did."""

    frames: int = 0
    """Frames that were read, those past their deadline included."""
    corrupt: int = 0
    skipped: int = 0
    """Frames of a live source that newer ones replaced."""
    missed: int = 0
    """Frames past their deadline."""
    seconds: float = 0.0
    """From the wait for the first frame to the last byte written."""
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """Frame at network size in memory to class map and score in memory: body and head."""
    stages_ms: dict[str, deque[float]] = field(
        default_factory=lambda: {stage: deque(maxlen=_KEPT) for stage in _STAGES}
    )
    outputs: list[str] = field(default_factory=list)
    error: EdgesegError | None = None
    """What ended the run early, where something did; what was written until then is whole."""

    def summary(self) -> dict[str, Any]:
        """The figures as JSON has them; ``None`` where nothing was measured."""
        latency = np.asarray(self.latency_ms)
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
                stage: round(float(np.median(times)), 3)
                for stage, times in self.stages_ms.items()
                if times
            },
            "outputs": self.outputs,
        }


@dataclass(frozen=True, slots=True)
class _Outcome:
    analysis: Analysis
    class_map: npt.NDArray[np.uint8] | None
    score: npt.NDArray[Any] | None


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
    ) -> None:
        if roi is not None and (roi.shape != session.size or not roi.any()):
            raise UsageError("the region of interest is empty or not at the network's size")
        self._session = session
        self._source = source
        self._threshold = threshold
        self._roi = roi
        self._sink = sink
        self._lines = lines
        self._deadline = deadline
        self._limit = limit
        self._on_frame = on_frame
        self._on_bad = on_bad
        self._buffer = np.zeros((*session.size, 3), np.uint8)
        self._last: _Outcome | None = None

    def run(self, stop: threading.Event | None = None) -> Report:
        """Process frames until the source ends, ``limit`` is reached or ``stop`` is set.

        Returns:
            the report; an expected error on the way stands in it, after the outputs were
            finished.
        """
        report = Report()
        sink = SinkThread(self._sink) if self._sink is not None else None
        start = time.perf_counter()
        try:
            self._loop(report, sink, stop or threading.Event())
        except EdgesegError as error:
            report.error = error
        finally:
            self._source.close()
            report.skipped = self._source.skipped
            try:
                if sink is not None:
                    report.outputs += sink.close()
                    self._collect(report, sink)
            except EdgesegError as error:
                report.error = report.error or error
            finally:
                if self._lines is not None:
                    self._lines.close()
                    report.outputs += self._lines.outputs
        report.seconds = time.perf_counter() - start
        return report

    def _loop(self, report: Report, sink: SinkThread | None, stop: threading.Event) -> None:
        for item in self._source:
            if stop.is_set():
                break
            if isinstance(item, BadFrame):
                report.corrupt += 1
                self._on_bad(item)
                continue
            report.frames += 1
            self._process(item, report, sink)
            self._on_frame(report.frames)
            if stop.is_set() or report.frames == self._limit:
                break
        else:
            if not report.frames and report.corrupt:
                raise InputError(
                    f"none of the {report.corrupt} frames of '{self._source.label}' could be "
                    "read; check the input"
                )

    def _process(self, frame: Frame, report: Report, sink: SinkThread | None) -> None:
        report.stages_ms["decode"].append(frame.decode_ms)
        deadline = self._deadline
        outcome: _Outcome | None = None
        latency: float | None = None
        # A frame that is too old already is not worth the inference.
        if deadline is None or deadline.on_miss is None or _age_ms(frame) <= deadline.ms:
            outcome, latency = self._infer(frame, report, keep=sink is not None)
        age = _age_ms(frame)
        state: State = "ok"
        if deadline is not None and (outcome is None or age > deadline.ms):
            report.missed += 1
            state, outcome = self._missed(deadline, frame, outcome)
        elif outcome is not None:
            self._last = outcome
        if self._lines is not None:
            self._lines.write(_record(frame, age, latency, outcome, state))
        if sink is not None:
            if outcome is not None and outcome.class_map is not None:
                assert outcome.score is not None
                note = f"{latency:.1f} ms" if latency is not None and state == "ok" else state
                shot = Shot(frame.stem, frame.image, outcome.class_map, outcome.score, note)
                sink.put(shot)
            self._collect(report, sink)
        if state == "safe":
            raise SafeStateError(
                f"{frame.name} was {age:.1f} ms old when its result came, past the deadline of "
                f"{self._deadline_ms():g} ms; the run stopped in the safe state"
            )

    def _infer(self, frame: Frame, report: Report, *, keep: bool) -> tuple[_Outcome, float]:
        image = frame.image
        height, width = self._session.size
        start = time.perf_counter_ns()
        if image.shape[:2] != (height, width):
            image = resize_bilinear(
                image, height, width, threads=self._session.threads, out=self._buffer
            )
        resized = time.perf_counter_ns()
        result = self._session.run(image)
        scored = time.perf_counter_ns()
        analysis = analyse(
            result.score,
            self._threshold,
            roi=self._roi,
            source_size=(frame.image.shape[0], frame.image.shape[1]),
        )
        done = time.perf_counter_ns()
        stages = report.stages_ms
        stages["resize"].append((resized - start) / 1e6)
        stages["body"].append(result.timings["body"])
        stages["head"].append(result.timings["head"])
        stages["analyse"].append((done - scored) / 1e6)
        latency = (scored - resized) / 1e6
        report.latency_ms.append(latency)
        # The session's arrays are overwritten by the next frame, and the sink is a frame behind.
        outcome = _Outcome(
            analysis,
            result.class_map.copy() if keep else None,
            result.score.copy() if keep else None,
        )
        return outcome, latency

    def _missed(
        self, deadline: Deadline, frame: Frame, outcome: _Outcome | None
    ) -> tuple[State, _Outcome | None]:
        if deadline.on_miss is None:
            return "late", outcome
        if deadline.on_miss == "reuse" and self._last is not None:
            return "reused", self._last
        if deadline.on_miss == "safe":
            height, width = frame.image.shape[:2]
            _, top = score_range(self._session.scorer, self._session.bundle.head.num_known)
            whole = Region((0, 0, width, height), height * width, top)
            return "safe", _Outcome(Analysis(top, 1.0, (whole,)), None, None)
        return "dropped", None

    def _deadline_ms(self) -> float:
        return self._deadline.ms if self._deadline is not None else 0.0

    @staticmethod
    def _collect(report: Report, sink: SinkThread) -> None:
        for draw, encode in sink.take_timings():
            report.stages_ms["draw"].append(draw)
            report.stages_ms["encode"].append(encode)


def _age_ms(frame: Frame) -> float:
    return (time.monotonic_ns() - frame.captured_mono_ns) / 1e6


def _record(
    frame: Frame, age: float, latency: float | None, outcome: _Outcome | None, state: State
) -> dict[str, Any]:
    analysis = outcome.analysis if outcome is not None else None
    return {
        "frame": frame.index,
        "captured_at": frame.captured_at.isoformat(timespec="microseconds"),
        "captured_mono_ns": frame.captured_mono_ns,
        "age_ms": round(age, 3),
        "latency_ms": None if latency is None else round(latency, 3),
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
