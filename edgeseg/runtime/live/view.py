"""What a run looks like from outside: its state, its health, its figures."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import Frame
from edgeseg.runtime.live.metrics import Histogram, render
from edgeseg.runtime.live.pictures import Gallery, Painters, Picture
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.shots import Shot
from edgeseg.runtime.watch import Watch
from edgeseg.scoring.scorers import score_range

__all__ = ["LiveView"]

_CHART: Final = 240
_EVENTS: Final = 12
_NO_RESULT_MS: Final = 5_000.0
_BOUNDED: Final = ("msp", "void", "entropy")


class LiveView:
    """An observer of a pipeline that answers a server's questions.

    Args:
        painters: makes what draws a view at a threshold (``None``: the run's).
        about: network, scorer and so on, as the run's summary has them.
        num_known: known classes of the network.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        painters: Painters,
        about: dict[str, Any],
        *,
        num_known: int = 19,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.about = about
        self.gallery = Gallery(painters)
        self._num_known = num_known
        self._clock = clock
        self._lock = threading.Lock()
        self._chart: deque[tuple[float | None, float | None, str]] = deque(maxlen=_CHART)
        self._times: deque[float] = deque(maxlen=_CHART)
        self._line: dict[str, Any] | None = None
        self._image: Any = None
        self._states: Counter[str] = Counter()
        self._latency, self._age = Histogram(), Histogram()
        self._started = self._good_at = clock()
        self._pipeline: Pipeline | None = None
        self._watch: Watch | None = None
        self._events: EventLog | None = None

    def attach(self, pipeline: Pipeline, watch: Watch, events: EventLog) -> None:
        """Where the figures come from that no line carries."""
        self._pipeline, self._watch, self._events = pipeline, watch, events

    @property
    def wants_pictures(self) -> bool:
        """See :class:`~edgeseg.runtime.pipeline.Observer`."""
        return self.gallery.viewers > 0

    def notice(self, line: dict[str, Any], frame: Frame | None, shot: Shot | None) -> None:
        """See :class:`~edgeseg.runtime.pipeline.Observer`."""
        now, state = self._clock(), line["state"]
        reason = self._pipeline.supervisor.reason if self._pipeline is not None else ""
        with self._lock:
            self._line = line
            self._states[state] += 1
            self._chart.append((line["latency_ms"], line["age_ms"], state))
            if frame is not None:
                self._image = frame.image
                self._times.append(now)
            if state in ("ok", "late"):
                self._good_at = now
            if line["latency_ms"] is not None:
                self._latency.add(line["latency_ms"] / 1e3)
            if line["age_ms"] is not None:
                self._age.add(line["age_ms"] / 1e3)
            image = self._image
        # A result that nobody had asked to see in time is no missing result.
        if shot is not None or state in ("dropped", "safe", "self_test_failed"):
            self.gallery.put(Picture(shot, image, state, reason))

    def health(self) -> tuple[bool, str, float | None]:
        """Whether results come that may be trusted; the state in a word; milliseconds since the
        last such result (``None``: there was none).
        """
        with self._lock:
            line, good_at = self._line, self._good_at
            any_good = bool(self._states["ok"] or self._states["late"])
        since = 1e3 * (self._clock() - good_at)
        gone = round(since, 1) if any_good else None
        pipeline = self._pipeline
        guard = pipeline.supervisor if pipeline is not None else None
        if line is not None and line["state"] == "self_test_failed":
            return False, "self_test_failed", gone
        if guard is not None and guard.safe:
            return False, "safe", gone
        if guard is not None and guard.silent:
            return False, "silent", gone
        if line is None:
            return False, "starting", gone
        deadline = guard.deadline if guard is not None else None
        limit = max(_NO_RESULT_MS, deadline.silence_ms if deadline is not None else 0.0)
        if since > limit:
            return False, "silent" if line["state"] == "ok" else "no_result", gone
        return True, str(line["state"]), gone

    def status(self) -> dict[str, Any]:
        """What the page shows."""
        healthy, state, gone = self.health()
        with self._lock:
            chart, times = list(self._chart), list(self._times)
            line, states = self._line, dict(self._states)
        span = times[-1] - times[0] if len(times) > 1 else 0.0
        pipeline, watch = self._pipeline, self._watch
        guard = pipeline.supervisor if pipeline is not None else None
        machine = watch.machine if watch is not None else None
        low, high = score_range(self.about["scorer"], self._num_known)
        bounded = self.about["scorer"] in _BOUNDED
        return {
            "about": self.about,
            "healthy": healthy,
            "state": state,
            "reason": guard.reason if guard is not None and guard.safe else "",
            "since_result_ms": gone,
            "deadline_ms": (
                guard.deadline.ms if guard is not None and guard.deadline is not None else None
            ),
            "frame": None if line is None else line["frame"],
            "anomaly_max": None if line is None else line["anomaly_max"],
            "anomaly_fraction": None if line is None else line["anomaly_fraction"],
            "fps": round((len(times) - 1) / span, 2) if span > 0 else None,
            "latency_ms": [latency for latency, _, _ in chart],
            "age_ms": [age for _, age, _ in chart],
            "states": [name for _, _, name in chart],
            "counts": states,
            "missed": pipeline.report.missed if pipeline is not None else 0,
            "corrupt": pipeline.report.corrupt if pipeline is not None else 0,
            "skipped": pipeline.skipped if pipeline is not None else 0,
            "viewers": self.gallery.viewers,
            "temperature_c": None if machine is None else machine.temperature_c,
            "score_range": [low, high] if bounded else None,
            "events": self._events.latest(_EVENTS) if self._events is not None else [],
            "uptime_s": round(self._clock() - self._started, 1),
        }

    def metrics(self) -> str:
        """Prometheus' text format."""
        healthy, _, _ = self.health()
        with self._lock:
            states = dict(self._states)
            latency, age = self._latency.lines(), self._age.lines()
        return render(
            about=self.about,
            healthy=healthy,
            states=states,
            latency=latency,
            age=age,
            pipeline=self._pipeline,
            machine=self._watch.machine if self._watch is not None else None,
            events=dict(self._events.counts) if self._events is not None else {},
            events_lost=self._events.lost if self._events is not None else 0,
            gallery=self.gallery,
            uptime_s=self._clock() - self._started,
        )

    def close(self) -> None:
        """End the viewers; safe to call twice."""
        self.gallery.close()
