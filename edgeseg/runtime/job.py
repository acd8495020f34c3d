"""A whole run as the command line asks for it: open everything, process, finish, report."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.errors import EdgesegError, UsageError
from edgeseg.runtime.frames import BadFrame, Source
from edgeseg.runtime.images import read_image
from edgeseg.runtime.opencv import opencv
from edgeseg.runtime.overlay import HeatScale, Painter, View
from edgeseg.runtime.pipeline import Deadline, OnMiss, Pipeline
from edgeseg.runtime.ready import ready_bundle
from edgeseg.runtime.session import Session, default_scorer
from edgeseg.runtime.sinks import LinesSink, Sink, open_sink
from edgeseg.runtime.sources import open_source

__all__ = ["Job", "JobReport", "read_roi", "run_job"]

_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class Job:
    """The options of ``edgeseg run``; ``None`` stands for their defaults."""

    uri: str
    bundle: Path | None = None
    scorer: str | None = None
    temperature: float | None = None
    backend: str = "auto"
    threads: int | None = None
    save: Path | None = None
    jsonl: Path | None = None
    view: View = "overlay"
    threshold: float | None = None
    roi: Path | None = None
    deadline_ms: float | None = None
    on_miss: OnMiss | None = None
    frames: int | None = None


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a run did, for the screen and for programs."""

    document: dict[str, Any]
    error: EdgesegError | None
    interrupted: bool

    def text(self) -> str:
        """A few lines for people."""
        doc = self.document
        latency, stages = doc["latency_ms"], doc["stages_ms"]
        lines = [
            f"{doc['network']} {doc['precision']} ({doc['weights'] or 'unnamed weights'}), "
            f"{doc['size']}, {doc['scorer']} on {doc['backend']}, {doc['threads']} threads",
            f"{doc['frames']} frames, {doc['corrupt']} corrupt"
            + (f", {doc['skipped']} skipped" if doc["skipped"] else "")
            + (f", {doc['missed']} past the deadline" if doc["missed"] else "")
            + (f": {doc['fps']:.1f} frames/s" if doc["frames"] else ""),
        ]
        if doc["frames"] and latency["p50"] is not None:
            figures = ", ".join(f"{name} {value:.1f}" for name, value in latency.items())
            lines.append(f"latency ms: {figures}")
            figures = ", ".join(f"{name} {value:.1f}" for name, value in stages.items())
            lines.append(f"stages ms: {figures}")
        lines += [f"wrote {path}" for path in doc["outputs"]]
        return "\n".join(lines)


def run_job(job: Job) -> JobReport:
    """Do what ``job`` says; SIGINT and SIGTERM end it early with everything written finished.

    Raises:
        EdgesegError: something could not be opened. Errors later on stand in the report.
    """
    _check(job)
    bundle = Bundle.open(job.bundle if job.bundle is not None else ready_bundle())
    scorer = job.scorer if job.scorer is not None else default_scorer(bundle)
    bundle.scorer_defaults(scorer)  # a scorer it lacks is said before anything slow starts
    roi = read_roi(job.roi, bundle.size) if job.roi is not None else None
    stop = threading.Event()
    source = open_source(job.uri, stop)
    try:
        with Session(bundle, job.backend, job.threads, scorer, job.temperature) as session:
            return _run(job, session, source, roi, stop)
    finally:
        source.close()


def read_roi(path: Path, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask image as bool ``[H, W]``, true where it is not black.

    Raises:
        InputError: it cannot be read.
        UsageError: it is black everywhere.
    """
    mask = read_image(path, grey=True)
    cv2 = opencv()
    stretched = cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    inside: npt.NDArray[np.bool_] = stretched > 0
    if not inside.any():
        raise UsageError(f"--roi '{path}' is black everywhere; paint white what should count")
    return inside


def _check(job: Job) -> None:
    if job.threshold is not None and not isfinite(job.threshold):
        raise UsageError(f"--threshold {job.threshold} is not a finite number")
    if job.deadline_ms is not None and not (isfinite(job.deadline_ms) and job.deadline_ms > 0):
        raise UsageError(f"--deadline-ms {job.deadline_ms} is not a positive number")
    if job.on_miss is not None and job.deadline_ms is None:
        raise UsageError("--on-miss needs --deadline-ms; say when a frame is too late")


def _run(
    job: Job,
    session: Session,
    source: Source,
    roi: npt.NDArray[np.bool_] | None,
    stop: threading.Event,
) -> JobReport:
    for note in session.notes:
        _say(note)
    threshold = job.threshold if job.threshold is not None else session.threshold
    if threshold is None:
        _say(
            f"the bundle has no threshold for {session.scorer} at this temperature, so no "
            "regions are reported; give --threshold"
        )
    lines = LinesSink(job.jsonl) if job.jsonl is not None else None
    sink = _sink(job, session, source, threshold)
    progress = _Progress(source.length if job.frames is None else job.frames)
    with _signals_set(stop), progress:
        pipeline = Pipeline(
            session,
            source,
            threshold=threshold,
            roi=roi,
            sink=sink,
            lines=lines,
            deadline=None if job.deadline_ms is None else Deadline(job.deadline_ms, job.on_miss),
            limit=job.frames,
            on_frame=progress.advance,
            on_bad=progress.warn,
        )
        report = pipeline.run(stop)
    document = {
        **session.describe(),
        "input": source.label,
        "threshold": threshold,
        **report.summary(),
    }
    return JobReport(document, report.error, stop.is_set())


def _sink(job: Job, session: Session, source: Source, threshold: float | None) -> Sink | None:
    if job.save is None:
        return None
    manifest = session.bundle.manifest
    about = session.describe()
    caption = " | ".join(
        filter(
            None,
            (
                f"{about['network']} {about['precision']}",
                about["weights"],
                about["backend"],
                about["scorer"],
            ),
        )
    )
    scale = HeatScale(session.scorer, session.bundle.head.num_known, threshold)
    painter = Painter(manifest.palette, scale, job.view, caption)
    return open_sink(job.save, painter, manifest.palette, source.fps)


class _Progress:
    """A bar on stderr, only where that is a terminal; warnings go there in any case."""

    def __init__(self, total: int | None) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._total = total
        self._warned = 0

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("frames"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("frames", total=self._total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._warned > _MAX_WARNINGS:
            _say(f"{self._warned - _MAX_WARNINGS} more frames could not be read")

    def advance(self, frames: int) -> None:
        """Show that ``frames`` are done."""
        if self._bar is not None:
            speed = self._bar.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            self._bar.update(self._task, completed=frames, rate=rate)

    def warn(self, bad: BadFrame) -> None:
        """Report a frame that could not be read."""
        self._warned += 1
        if self._warned <= _MAX_WARNINGS:
            _say(bad.reason)


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM set ``stop``; a second one has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {int(number): signal.getsignal(number) for number in signals}

    def handle(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in signals:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


def _say(text: str) -> None:
    print(f"edgeseg: {text}", file=sys.stderr, flush=True)
