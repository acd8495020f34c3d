"""A whole run as the command line asks for it: open everything, process, finish, report."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.errors import EdgesegError, UsageError
from edgeseg.runtime.console import Progress, say
from edgeseg.runtime.deadline import Deadline, OnMiss, Problem
from edgeseg.runtime.ending import Signals, bounded, leaver
from edgeseg.runtime.events import EventLog, Level
from edgeseg.runtime.frames import Source
from edgeseg.runtime.images import read_image
from edgeseg.runtime.live.server import LiveServer, parse_address
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.opencv import opencv
from edgeseg.runtime.overlay import HeatScale, Painter, View
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.ready import ready_bundle
from edgeseg.runtime.scheduling import Scheduler, Scheduling
from edgeseg.runtime.selftest import SelfTest, self_test
from edgeseg.runtime.session import Session, default_scorer
from edgeseg.runtime.signing import verified_copy
from edgeseg.runtime.sinks import LinesSink, Sink, open_sink
from edgeseg.runtime.sources import open_source
from edgeseg.runtime.thermal import ThermalWatch
from edgeseg.runtime.watch import Watch
from edgeseg.runtime.watchdog import Notifier

__all__ = ["Job", "JobReport", "read_roi", "run_job"]

_PATIENCE_S: Final = 2.0
_TEST_S: Final = 60.0
_STOP_S: Final = 5.0


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
    max_misses: int | None = None
    recover_after: int | None = None
    frames: int | None = None
    reconnect_s: float | None = None
    as_camera: bool = False
    self_test: bool = False
    events: Path | None = None
    serve: str | None = None
    scheduling: Scheduling = field(default_factory=Scheduling)
    require_signature: Path | None = None
    """Public key; the bundle must be what its owner signed."""


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
            f"{doc['size']}, {doc['scorer']} on {doc['backend']} "
            f"({doc['path']}), {doc['threads']} threads",
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
        watched = doc.get("supervision")
        if watched is not None:
            told = ("states", "problems")
            counts = [f"{count} {name}" for key in told for name, count in watched[key].items()]
            lines.append(f"supervision: {', '.join(counts) or 'nothing to tell'}")
        if doc.get("events_lost"):
            lines.append(f"{doc['events_lost']} events could not be written")
        lines += [f"wrote {path}" for path in doc["outputs"]]
        return "\n".join(lines)


def run_job(job: Job) -> JobReport:
    """Do what ``job`` says; SIGINT and SIGTERM end it early with everything written finished.

    Where the engine hangs in the self-test or in a safe state that is final, this does not return:
    the process ends with exit code 8, since nothing else ends a thread inside an engine.

    Raises:
        EdgesegError: something could not be opened. Errors later on stand in the report.
    """
    _check(job)
    path = job.bundle if job.bundle is not None else ready_bundle()
    stop = threading.Event()
    with Signals(stop) as signals, ExitStack() as stack:
        # First of all: threads inherit the CPUs.
        scheduler = stack.enter_context(Scheduler(job.scheduling))
        signed_by = None
        copies = stack.enter_context(ExitStack())
        if job.require_signature is not None:
            gpu = "tensorrt" in job.backend
            copied = verified_copy(path, job.require_signature, own_cache=gpu)
            path, verified = copies.enter_context(copied)
            signed_by = verified.key_id
        bundle = Bundle.open(path)
        scorer = job.scorer if job.scorer is not None else default_scorer(bundle)
        bundle.scorer_defaults(scorer)  # a scorer it lacks is said before anything slow starts
        roi = read_roi(job.roi, bundle.size) if job.roi is not None else None
        source = open_source(job.uri, stop, reconnect_s=job.reconnect_s, as_camera=job.as_camera)
        stack.callback(source.close)
        session = stack.enter_context(
            Session(bundle, job.backend, job.threads, scorer, job.temperature)
        )
        return _run(job, session, source, roi, stop, signals, scheduler, signed_by, copies)


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
    _check_outputs(job)
    if job.threshold is not None and not isfinite(job.threshold):
        raise UsageError(f"--threshold {job.threshold} is not a finite number")
    if job.deadline_ms is not None and not (isfinite(job.deadline_ms) and job.deadline_ms > 0):
        raise UsageError(f"--deadline-ms {job.deadline_ms} is not a positive number")
    if job.on_miss is not None and job.deadline_ms is None:
        raise UsageError("--on-miss needs --deadline-ms; say when a frame is too late")
    for option, value in (
        ("--max-misses", job.max_misses),
        ("--recover-after", job.recover_after),
    ):
        if value is not None and job.on_miss is None:
            raise UsageError(f"{option} needs --on-miss; say what happens to a late frame")
    if job.recover_after is not None and job.on_miss != "safe" and job.max_misses is None:
        raise UsageError(
            f"--recover-after needs a safe state to recover from; give --max-misses or "
            f"--on-miss safe instead of --on-miss {job.on_miss} alone"
        )
    if job.reconnect_s is not None and not (isfinite(job.reconnect_s) and job.reconnect_s > 0):
        raise UsageError(f"--reconnect {job.reconnect_s} is not a positive number of seconds")


def _check_outputs(job: Job) -> None:
    """UsageError where two options name one file, and the later would write over the earlier."""
    options = (("--save", job.save), ("--jsonl", job.jsonl), ("--events", job.events))
    taken = {os.path.realpath(job.uri): "--input"} if os.path.isfile(job.uri) else {}
    for option, path in options:
        # Devices take lines from several, and folders files.
        if path is None or (os.path.exists(path) and not os.path.isfile(path)):
            continue
        first = taken.setdefault(os.path.realpath(path), option)
        if first != option:
            raise UsageError(f"{first} and {option} both name '{path}'; give each its own file")


def _run(
    job: Job,
    session: Session,
    source: Source,
    roi: npt.NDArray[np.bool_] | None,
    stop: threading.Event,
    signals: Signals,
    scheduler: Scheduler,
    signed_by: str | None,
    copies: ExitStack,
) -> JobReport:
    for note in session.notes:
        say(note)
    threshold = job.threshold if job.threshold is not None else session.threshold
    if threshold is None:
        say(
            f"the bundle has no threshold for {session.scorer} at this temperature, so no "
            "regions are reported; give --threshold"
        )
    address = parse_address(job.serve) if job.serve is not None else None
    events = EventLog(job.events)
    notifier = Notifier.from_environment()
    try:
        signals.gentle()
        with ExitStack() as stack:
            about = {**session.describe(), "input": source.label, "threshold": threshold}
            if signed_by is not None:
                about["signed_by"] = signed_by
            view = None
            if address is not None:
                known = session.bundle.head.num_known
                view = LiveView(_painters(session, threshold), about, num_known=known)
                server = stack.enter_context(LiveServer(address, view))
                say(f"live view at {server.url}")
            lines = _lines(job)
            if lines is not None:
                stack.callback(lines.close)
                lines.open()
            events.write("run_started", **about)
            progress = stack.enter_context(
                Progress(source.length if job.frames is None else job.frames)
            )
            # Until the pipeline runs, and closes it itself.
            unused = stack.enter_context(ExitStack())
            sink = _sink(job, session, source, threshold)
            if sink is not None:
                unused.callback(sink.close)
            leave = leaver(events, notifier, progress, copies)
            pipeline = Pipeline(
                session,
                source,
                threshold=threshold,
                roi=roi,
                sink=sink,
                lines=lines,
                deadline=_deadline(job),
                limit=job.frames,
                on_frame=scheduler.then(progress.advance),
                on_bad=progress.warn,
                events=events,
                observer=view,
                on_stuck=leave,
            )
            watch = Watch(pipeline, notifier, ThermalWatch(), events)
            if view is not None:
                view.attach(pipeline, watch, events)
            test = _tested(job, session, events, pipeline, stop, leave)
            if test is not None and test.problem is not None:
                report = pipeline.refuse(test.problem)
            else:
                if job.on_miss is not None or view is not None or notifier.active or job.events:
                    stack.enter_context(watch)
                _settle(scheduler, about, events)
                notifier.ready()
                unused.pop_all()
                report = pipeline.run(stop)
            notifier.stopping()
            error = None if report.error is None else str(report.error)
            events.write("run_ended", "info" if error is None else "error", error=error)
    finally:
        events.close()
        notifier.close()
    document = {**about, **report.summary()}
    document["outputs"] = [*document["outputs"], *events.outputs]
    if job.events is not None:
        document["events_lost"] = events.lost
    if job.on_miss is not None or test is not None:
        document["supervision"] = _supervision(pipeline, test)
    return JobReport(document, report.error, stop.is_set())


def _settle(scheduler: Scheduler, about: dict[str, Any], events: EventLog) -> None:
    """Now that every engine is open and warm."""
    scheduler.settle()
    for note in scheduler.notes:
        say(note)
    if scheduler.reached:
        about["scheduling"] = scheduler.reached
        level: Level = "warning" if scheduler.notes else "info"
        events.write("scheduling", level, **scheduler.reached, refused=scheduler.notes)


def _lines(job: Job) -> LinesSink | None:
    if job.jsonl is None:
        return None
    # Frames of a run with a policy must not grow old because a reader of their lines sleeps.
    return LinesSink(job.jsonl) if job.on_miss is None else LinesSink(job.jsonl, _PATIENCE_S)


def _deadline(job: Job) -> Deadline | None:
    if job.deadline_ms is None:
        return None
    return Deadline(job.deadline_ms, job.on_miss, job.max_misses, job.recover_after)


def _tested(
    job: Job,
    session: Session,
    events: EventLog,
    pipeline: Pipeline,
    stop: threading.Event,
    leave: Callable[[EdgesegError | None], NoReturn],
) -> SelfTest | None:
    if job.on_miss is None and not job.self_test:
        return None

    def give_up(interrupted: bool) -> None:
        if interrupted:
            pipeline.abandon()
            leave(None)
        problem = Problem("engine_hung", f"the engine has not answered for {_TEST_S:g} s")
        events.write("self_test", "error", passed=False, detail=problem.detail)
        leave(pipeline.refuse(problem).error)

    with bounded(give_up, stop, limit_s=_TEST_S, stop_s=_STOP_S):
        test = self_test(session)
    events.write(
        "self_test",
        "info" if test.problem is None else "error",
        passed=test.problem is None,
        detail=None if test.problem is None else test.problem.detail,
        reference=test.reference,
        score_error=test.score_error,
        class_agreement=test.class_agreement,
    )
    return test


def _supervision(pipeline: Pipeline, test: SelfTest | None) -> dict[str, Any]:
    guard, report = pipeline.supervisor, pipeline.report
    return {
        "states": dict(report.states),
        "problems": dict(guard.problems),
        "safe_entries": guard.entries,
        "unsaved": report.unsaved,
        "self_test": None if test is None else test.problem is None,
    }


def _sink(job: Job, session: Session, source: Source, threshold: float | None) -> Sink | None:
    if job.save is None:
        return None
    palette = session.bundle.manifest.palette
    painter = _painters(session, threshold)(job.view, threshold)
    return open_sink(job.save, painter, palette, source.fps)


def _painters(session: Session, default: float | None) -> Callable[[View, float | None], Painter]:
    """What makes painters for a view and a threshold (``None``: the run's)."""
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

    def make(view: View, threshold: float | None) -> Painter:
        limit = default if threshold is None else threshold
        scale = HeatScale(session.scorer, session.bundle.head.num_known, limit)
        return Painter(manifest.palette, scale, view, caption)

    return make
