"""A frame's way through the session: resize, body, head, analysis, and the checks on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.deadline import Problem
from edgeseg.runtime.frames import Frame
from edgeseg.runtime.health import check_features, check_result
from edgeseg.runtime.outcome import Outcome
from edgeseg.runtime.regions import analyse
from edgeseg.runtime.report import Report
from edgeseg.runtime.session import Result, Session
from edgeseg.runtime.supervisor import Supervisor
from edgeseg.scoring.kernels import resize_bilinear
from edgeseg.scoring.scorers import score_range

__all__ = ["Inference"]


class Inference:
    """Runs frames, and where the supervisor watches, checks what comes out.

    Args:
        session: opened.
        supervisor: of the run.
        threshold: of the score; ``None``: no fraction and no regions.
        roi: bool ``[H, W]``, see :func:`analyse`.
    """

    def __init__(
        self,
        session: Session,
        supervisor: Supervisor,
        threshold: float | None,
        roi: npt.NDArray[np.bool_] | None,
    ) -> None:
        self._session = session
        self._supervisor = supervisor
        self._threshold = threshold
        self._roi = roi
        self._buffer = np.zeros((*session.size, 3), np.uint8)
        self._bounds = score_range(session.scorer, session.bundle.head.num_known)
        if supervisor.watched:
            # What the checks look at must not be opened while the first frame grows old.
            session.open_features()

    def run(
        self, frame: Frame, report: Report, *, keep: bool
    ) -> tuple[Outcome | None, float | None, Problem | None]:
        """Result, latency in milliseconds, and why there is no result that may be trusted.

        Args:
            frame: of any size.
            report: takes the stages' times.
            keep: whether the maps are copied for somebody who draws them.
        """
        image = frame.image
        height, width = self._session.size
        start = time.perf_counter_ns()
        if image.shape[:2] != (height, width):
            image = resize_bilinear(
                image, height, width, threads=self._session.threads, out=self._buffer
            )
        resized = time.perf_counter_ns()
        if not self._supervisor.watched:
            with self._busy():
                result, problem = self._session.run(image), None
        else:
            try:
                result, problem = self._checked(image)
            except Exception as error:  # whatever the engine raised, the frame has no result
                text = " ".join(str(error).split())[:200]
                return None, None, Problem("engine_error", f"the engine failed ({text})")
        scored = time.perf_counter_ns()
        latency = (scored - resized) / 1e6
        if problem is not None:
            return None, latency, problem
        analysis = analyse(
            result.score,
            self._threshold,
            roi=self._roi,
            source_size=(frame.image.shape[0], frame.image.shape[1]),
        )
        done = time.perf_counter_ns()
        stages = report.stages_ms
        stages["resize"].append((resized - start) / 1e6)
        for stage, ms in result.timings.items():
            stages[stage].append(ms)
        stages["analyse"].append((done - scored) / 1e6)
        report.latency_ms.append(latency)
        # The session's arrays are overwritten by the next frame, and the sink is a frame behind.
        outcome = Outcome(
            analysis,
            result.class_map.copy() if keep else None,
            result.score.copy() if keep else None,
        )
        return outcome, latency, None

    def _checked(self, image: npt.NDArray[np.uint8]) -> tuple[Result, Problem | None]:
        with self._busy():
            start = time.perf_counter_ns()
            features = self._session.features(image)
            body = (time.perf_counter_ns() - start) / 1e6
            # The score alone would not tell: the kernels give a pixel that is NaN the largest.
            problem = check_features(features)
            result = self._session.score(features)
            result = replace(result, timings={**result.timings, "body": body})
        return result, problem or check_result(result, image, self._bounds)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """The heartbeat asks for how long an inference has been running, with or without checks."""
        self._supervisor.infers(True)
        try:
            yield
        finally:
            self._supervisor.infers(False)
