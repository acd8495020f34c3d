"""A run with a camera and an engine that can be told to fail, for ``tools/soak.py``."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.errors import InputError
from edgeseg.runtime.backends import Backend, BodySpec, open_backend
from edgeseg.runtime.buffering import NewestFrame
from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import BadFrame, Frame, now_utc
from edgeseg.runtime.live_sources import ReconnectingSource
from edgeseg.runtime.pipeline import Pipeline, Report
from edgeseg.runtime.session import Session
from edgeseg.runtime.watch import Watch
from edgeseg.runtime.watchdog import Notifier

__all__ = ["PERIOD_S", "Bench", "Camera"]

WAIT_S = 30.0
PERIOD_S = 0.03


class Camera:
    """A camera that can be told to fail: ``fault`` is one of the names in its loop."""

    live = True
    length: int | None = None
    fps: float | None = 1 / PERIOD_S
    skipped = 0
    label = "camera"

    def __init__(self, size: tuple[int, int], switch: SimpleNamespace) -> None:
        if switch.fault == "lost":
            raise InputError("the camera cannot be opened")
        self._switch = switch
        self._closed = threading.Event()
        rng = np.random.default_rng(0)
        self._bank = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(7)]

    def __iter__(self) -> Iterator[Frame | BadFrame]:
        for index in itertools.count():
            if self._closed.wait(PERIOD_S):
                return
            fault = self._switch.fault
            if fault == "lost":
                raise InputError("the camera stopped delivering frames")
            if fault == "silent":
                while self._switch.fault == "silent" and not self._closed.wait(0.005):
                    pass
            if fault == "corrupt":
                yield BadFrame(index, f"frame {index} is corrupt")
                continue
            image = self._bank[index % len(self._bank)]
            if fault == "frozen":
                image = self._bank[0]
            elif fault == "black":
                image = np.zeros_like(image)
            elif fault == "torn":
                image = image.copy()
                image[image.shape[0] // 2 :] = 128
            wall, mono = now_utc(), time.monotonic_ns()
            if fault == "wall_jump":
                wall -= timedelta(hours=1)
            elif fault == "ahead":
                mono += 10_000_000_000
            yield Frame(index, image, f"camera#{index}", f"frame_{index:06d}", wall, mono, 0.1)

    def close(self) -> None:
        """See :class:`Source`."""
        self._closed.set()


class Engine:
    """An engine that can be told to fail."""

    def __init__(self, inner: Backend, switch: SimpleNamespace) -> None:
        self.name = inner.name
        self._inner = inner
        self._switch = switch

    def infer(self, frame: Any) -> Any:
        """See :class:`Backend`."""
        fault = self._switch.fault
        if fault == "raises":
            raise RuntimeError("the engine's device is gone")
        if fault == "slow":
            time.sleep(self._switch.slow_s)
        while fault == "hangs" and self._switch.fault == "hangs":
            time.sleep(0.005)
        features = self._inner.infer(frame)
        if fault == "nan":
            features = features.copy()
            features.ravel()[:: features.size // 3] = np.nan
        elif fault == "saturated":
            features = np.full_like(features, np.inf)
        elif fault == "constant":
            features = np.zeros_like(features)
        return features

    def describe(self) -> dict[str, Any]:
        """See :class:`Backend`."""
        return self._inner.describe()

    def close(self) -> None:
        """See :class:`Backend`."""
        self._inner.close()


class Lines:
    """Takes the run's lines with the time at which they came.

    Args:
        deadline_ms: age past which a result must not be called good.
    """

    def __init__(self, deadline_ms: float) -> None:
        self._deadline_ms = deadline_ms
        self.frames = 0
        """Lines about a frame that was read."""
        self.stale = 0
        """Lines that call a result good that came too late."""
        self.lines: list[tuple[float, dict[str, Any]]] = []
        self.outputs: list[str] = []

    def write(self, record: dict[str, Any]) -> None:
        """Keep a line, if JSON can carry it."""
        json.dumps(record, allow_nan=False)
        self.frames += record["captured_mono_ns"] is not None
        self.stale += record["state"] == "ok" and record["age_ms"] > self._deadline_ms
        self.lines.append((time.monotonic(), dict(record)))
        del self.lines[:-5000]

    def close(self) -> None:
        """Nothing is open."""


class Bench:
    """A run in a thread, with everything that can be told to fail."""

    def __init__(self, bundle: Path, deadline: Deadline, **options: Any) -> None:
        self.switch = SimpleNamespace(fault=None, slow_s=0.0)
        opened = Bundle.open(bundle)
        spec = BodySpec(
            opened.body_path,
            opened.body_sha256,
            *opened.size,
            opened.manifest.compute_precision,
        )
        engine = Engine(open_backend("onnxruntime", spec, 1), self.switch)
        self.session = Session(opened, engine, threads=1)
        # A tiny network is done in a millisecond; ten times that is no fault on any road.
        self.switch.slow_s = max(10 * self._usual_s(), 1.5e-3 * deadline.ms)
        size = opened.size
        camera = ReconnectingSource(
            lambda: Camera(size, self.switch), give_up_s=WAIT_S, first_wait_s=0.05
        )
        self.events = EventLog()
        self.lines = Lines(deadline.ms)
        view = options.get("observer")
        self.pipeline = Pipeline(
            self.session,
            NewestFrame(camera),
            threshold=self.session.threshold,
            lines=self.lines,  # type: ignore[arg-type]
            deadline=deadline,
            events=self.events,
            **options,
        )
        self.watch = Watch(self.pipeline, Notifier())
        if view is not None:
            view.attach(self.pipeline, self.watch, self.events)
        self.stop = threading.Event()
        self.report: Report | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Bench":
        self.watch.__enter__()
        self._thread.start()
        # Well past what the health checks learn from their first frames, and all is well.
        self.wait(lambda: len(self.lines.lines) >= 15)
        self.wait(lambda: {line["state"] for _, line in self.lines.lines[-5:]} == {"ok"})
        return self

    def __exit__(self, *_: object) -> None:
        self.switch.fault = None
        self.stop.set()
        self._thread.join(WAIT_S)
        self.watch.__exit__()
        self.session.close()

    @property
    def sound(self) -> bool:
        """After the run: every frame taken has its line, and no late result was called good."""
        report = self.report
        return report is not None and report.frames == self.lines.frames and not self.lines.stale

    def wait(self, condition: Callable[[], Any]) -> bool:
        """Whether ``condition`` came true in time."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.002)
        return False

    def states_since(self, moment: float) -> list[tuple[float, str]]:
        """Time and state of the lines from ``moment`` (monotonic seconds) on."""
        return [(at, line["state"]) for at, line in self.lines.lines if at >= moment]

    def events_since(self, mono_ns: int) -> list[dict[str, Any]]:
        """Events from ``mono_ns`` on."""
        return [event for event in self.events.latest(100) if event["mono_ns"] >= mono_ns]

    def _run(self) -> None:
        self.report = self.pipeline.run(self.stop)

    def _usual_s(self) -> float:
        frame = np.zeros((*self.session.size, 3), np.uint8)
        start = time.perf_counter()
        for _ in range(5):
            self.session.run(frame)
        return (time.perf_counter() - start) / 5
