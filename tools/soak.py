"""Break the run in every way that a vehicle does, and tabulate what the supervisor made of it.

    python tools/soak.py [--bundle DIR] [--frames 10000] [--only NAME ...] [--json FILE]

Every fault is put into a running pipeline with a camera and an engine that can be told to fail.
A row says after how many milliseconds the first line or event told of it, which state was taken,
and whether results came again once the fault was gone. Exits 1 where a row is not as expected.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.errors import InputError
from edgeseg.runtime import sinks
from edgeseg.runtime.backends import Backend, BodySpec, open_backend
from edgeseg.runtime.buffering import NewestFrame
from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import BadFrame, Frame, now_utc
from edgeseg.runtime.live.pictures import MAX_VIEWERS
from edgeseg.runtime.live.server import LiveServer
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.live_sources import ReconnectingSource
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.runtime.pipeline import Pipeline, Report
from edgeseg.runtime.ready import ready_bundle
from edgeseg.runtime.session import Session
from edgeseg.runtime.sinks import LinesSink, VideoSink
from edgeseg.runtime.watch import Watch
from edgeseg.runtime.watchdog import Notifier

WAIT_S = 20.0
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
    """Takes the run's lines with the time at which they came."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, dict[str, Any]]] = []
        self.outputs: list[str] = []

    def write(self, record: dict[str, Any]) -> None:
        """Keep a line, if JSON can carry it."""
        json.dumps(record, allow_nan=False)
        self.lines.append((time.monotonic(), dict(record)))
        del self.lines[:-5000]

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Row:
    """A line of the table."""

    injected: str
    noticed_ms: float | None
    by: str
    state: str
    state_ms: float | None
    """Until the last of the states taken."""
    recovered: bool | None
    as_expected: bool
    note: str = ""


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
        self.switch.slow_s = 10 * self._usual_s()
        size = opened.size
        camera = ReconnectingSource(
            lambda: Camera(size, self.switch), give_up_s=WAIT_S, first_wait_s=0.05
        )
        self.events = EventLog()
        self.lines = Lines()
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
        # Well past what the health checks learn from their first frames.
        self.wait(lambda: len(self.lines.lines) >= 15)
        return self

    def __exit__(self, *_: object) -> None:
        self.switch.fault = None
        self.stop.set()
        self._thread.join(WAIT_S)
        self.watch.__exit__()
        self.session.close()

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
        # A tiny network is done in a millisecond; ten times that is no fault on any road.
        return max((time.perf_counter() - start) / 5, 0.03)


def fault(bundle: Path, name: str, deadline: Deadline, expected: str | None) -> Row:
    """Put one fault into a run and take it out again.

    Args:
        bundle: folder.
        name: of the fault.
        deadline: of the run.
        expected: kind of the problem or event; ``None``: the fault must change nothing.
    """
    told = {"miss", "safe_state", "camera_lost", "source_silent", "engine_hung"}
    with Bench(bundle, deadline) as bench:
        start, start_ns = time.monotonic(), time.monotonic_ns()
        bench.switch.fault = name

        def kinds() -> list[tuple[int, str]]:
            found = [e for e in bench.events_since(start_ns) if e["event"] in told]
            return [(e["mono_ns"], e.get("kind", e["event"])) for e in found]

        if expected is None:
            bench.wait(lambda: len(bench.states_since(start)) >= 20)
            states = {state for _, state in bench.states_since(start)}
            return Row(name, None, "", ", ".join(sorted(states)), None, None, states == {"ok"})
        bench.wait(lambda: any(kind == expected for _, kind in kinds()))
        bench.wait(lambda: any(state != "ok" for _, state in bench.states_since(start)))
        found = [at for at, kind in kinds() if kind == expected]
        noticed = round((found[0] - start_ns) / 1e6, 1) if found else None
        bench.wait(lambda: any(state == "safe" for _, state in bench.states_since(start)))
        # A while longer: a frame that passes for good now would be the worst of all.
        bench.wait(lambda: time.monotonic() > start + 0.4)
        since = bench.states_since(start)
        first_bad = next((at for at, state in since if state != "ok"), None)
        # From the first line that tells of it until the fault is gone, no frame is good again.
        broken = [state for at, state in since if first_bad is not None and at >= first_bad]
        relapsed = "ok" in broken
        healed = time.monotonic()
        bench.switch.fault = None
        recovered = bench.wait(lambda: any(s == "ok" for _, s in bench.states_since(healed)))
        taken = list(dict.fromkeys(broken))
        reached = [at for at, state in since if state == "safe"]
        state_ms = round(1e3 * (reached[0] - start), 1) if reached else None
    state = ", then ".join(taken) or "ok"
    good = bool(found) and taken[-1:] == ["safe"] and recovered and not relapsed
    note = "good while broken" if relapsed else ""
    return Row(name, noticed, expected, state, state_ms, recovered, good, note)


def disk_full(bundle: Path, deadline: Deadline) -> Row:
    """The disk under ``--save`` fills up: the run goes on, the video so far can be played."""
    import cv2

    folder = Path(tempfile.mkdtemp(prefix="edgeseg-soak-"))
    opened = Bundle.open(bundle)
    painter = Painter(opened.manifest.palette, HeatScale("msp", 19, 0.5), "overlay")
    full = SimpleNamespace(now=False)

    def usage(_: Any) -> Any:
        return SimpleNamespace(free=0 if full.now else 1 << 40)

    try:
        sink = VideoSink(folder / "out.mp4", painter, 30.0)
        with (
            mock.patch.object(sinks.shutil, "disk_usage", usage),
            Bench(bundle, deadline, sink=sink) as bench,
        ):
            start, start_ns = time.monotonic(), time.monotonic_ns()
            full.now = True
            bench.wait(lambda: any(e["event"] == "save_failed" for e in bench.events_since(0)))
            found = [e["mono_ns"] for e in bench.events_since(0) if e["event"] == "save_failed"]
            bench.wait(lambda: len(bench.states_since(start)) >= 30)
            states = {state for _, state in bench.states_since(start)}
        capture = cv2.VideoCapture(str(folder / "out.mp4"))
        frames = 0
        while capture.read()[0]:
            frames += 1
        capture.release()
        noticed = round((found[0] - start_ns) / 1e6, 1) if found else None
        good = noticed is not None and states == {"ok"} and frames > 0
        told = bench.report is not None and bench.report.error is not None
        note = f"{frames} frames of the video can be played"
        return Row(
            "disk full", noticed, "save_failed", ", ".join(states), None, None, good and told, note
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def served(bundle: Path, deadline: Deadline) -> Iterator[tuple[Bench, LiveServer, LiveView]]:
    opened = Bundle.open(bundle)

    def painters(view: Any, threshold: float | None) -> Painter:
        return Painter(opened.manifest.palette, HeatScale("msp", 19, threshold or 0.5), view)

    about = {"scorer": "msp", "threshold": 0.5}
    view = LiveView(painters, about, num_known=opened.head.num_known)
    with (
        LiveServer(("127.0.0.1", 0), view, environment={}) as server,
        Bench(bundle, deadline, observer=view) as bench,
    ):
        yield bench, server, view


def killed_viewer(bundle: Path, deadline: Deadline) -> Row:
    """A viewer's process is killed: its place is free again, the loop does not notice."""
    code = (
        "import sys, urllib.request as u\n"
        "r = u.urlopen(sys.argv[1])\n"
        "while r.read(1000): print('x', flush=True)"
    )
    with served(bundle, deadline) as (bench, server, view):
        viewer = subprocess.Popen(
            [sys.executable, "-c", code, f"{server.url}stream.mjpg"], stdout=subprocess.PIPE
        )
        assert viewer.stdout is not None
        viewer.stdout.readline()
        start = time.monotonic()
        viewer.send_signal(signal.SIGKILL)
        viewer.wait()
        viewer.stdout.close()
        freed = bench.wait(lambda: view.gallery.viewers == 0)
        noticed = round(1e3 * (time.monotonic() - start), 1)
        bench.wait(lambda: len(bench.states_since(start)) >= 20)
        states = {state for _, state in bench.states_since(start)}
    good = freed and states == {"ok"}
    return Row(
        "viewer killed",
        noticed if freed else None,
        "place freed",
        ", ".join(states),
        None,
        None,
        good,
    )


def many_viewers(bundle: Path, deadline: Deadline, count: int = 50) -> Row:
    """``count`` viewers come, none of whom reads: eight are let in, the loop goes on."""
    with served(bundle, deadline) as (bench, server, view):
        connections, answers = [], []
        start = time.monotonic()
        for _ in range(count):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connections.append(connection)
            try:
                connection.request("GET", "/stream.mjpg")
                answers.append(connection.getresponse().status)
            except OSError:
                answers.append(0)
        took = time.monotonic() - start
        peak = view.gallery.viewers
        bench.wait(lambda: len(bench.states_since(start)) >= 60)
        states = {state for _, state in bench.states_since(start)}
        ages = [line["age_ms"] for at, line in bench.lines.lines if at >= start]
        for connection in connections:
            connection.close()
        refused = sum(answer != 200 for answer in answers)
        let_in = count - refused
        gone = bench.wait(lambda: view.gallery.viewers == 0)
    note = (
        f"{let_in} let in within {took:.1f} s, at most {peak} at a time, {refused} refused, "
        f"age 99% {np.percentile(ages, 99):.1f} ms"
    )
    good = states == {"ok"} and 0 < peak <= MAX_VIEWERS and refused > 0 and gone
    return Row(f"{count} viewers", None, "", ", ".join(states), None, gone, good, note)


def memory(bundle: Path, frames: int, deadline: Deadline) -> Row:
    """Resident memory after ``frames`` frames, against that after the first tenth of them."""

    class Fast(Camera):
        def __iter__(self) -> Iterator[Frame | BadFrame]:
            for index in itertools.count():
                if self._closed.is_set():
                    return
                image = self._bank[index % len(self._bank)].copy()
                mono = time.monotonic_ns()
                yield Frame(index, image, f"#{index}", f"f{index}", now_utc(), mono, 0.1)

    marks: list[int] = []
    warm = max(200, frames // 10)

    def count(done: int) -> None:
        if done in (warm, frames):
            marks.append(_resident())

    with Session(bundle, "onnxruntime", threads=1) as session:
        switch = SimpleNamespace(fault=None)
        pipeline = Pipeline(
            session,
            Fast(session.size, switch),
            threshold=session.threshold,
            lines=LinesSink(Path(os.devnull)),
            deadline=deadline,
            limit=frames,
            on_frame=count,
        )
        report = pipeline.run()
    grown = (marks[1] - marks[0]) / 1e6 if len(marks) == 2 else float("nan")
    good = grown < 1.0 and report.frames == frames
    note = f"{grown:+.2f} MB from frame {warm} to {frames}"
    states = ", ".join(report.states)
    return Row("memory", None, "", states, None, None, good, note)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cases(bundle: Path, frames: int) -> dict[str, Callable[[], Row]]:
    """Every row's name and what makes it."""
    deadline = Deadline(150, "safe", max_misses=2, recover_after=3)
    kinds: dict[str, str | None] = {
        "lost": "camera_lost",
        "silent": "source_silent",
        "corrupt": "corrupt",
        "frozen": "frozen",
        "black": "black",
        "torn": "torn",
        "ahead": "future",
        "wall_jump": None,
        "nan": "not_finite",
        "saturated": "not_finite",
        "constant": "constant",
        "raises": "engine_error",
        "slow": "late",
        "hangs": "engine_hung",
    }
    rows: dict[str, Callable[[], Row]] = {
        name: (lambda name=name, kind=kind: fault(bundle, name, deadline, kind))
        for name, kind in kinds.items()
    }
    rows["disk_full"] = lambda: disk_full(bundle, deadline)
    rows["killed_viewer"] = lambda: killed_viewer(bundle, deadline)
    rows["many_viewers"] = lambda: many_viewers(bundle, deadline)
    rows["memory"] = lambda: memory(bundle, frames, Deadline(10_000, "drop"))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| injected | noticed after ms | by | state taken | after ms | recovered | as expected | |",
        "|---|---:|---|---|---:|---|---|---|",
    ]
    for row in rows:
        noticed, reached = (
            "-" if ms is None else f"{ms:.1f}" for ms in (row.noticed_ms, row.state_ms)
        )
        recovered = {True: "yes", False: "no", None: "-"}[row.recovered]
        good = "yes" if row.as_expected else "NO"
        state = (row.state, reached, recovered)
        cells = (row.injected, noticed, row.by or "-", *state, good, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="folder; default: the ready bundle")
    parser.add_argument("--frames", type=int, default=10_000, help="of the memory row")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    bundle = options.bundle or ready_bundle()
    every = cases(bundle, options.frames)
    unknown = set(options.only or ()) - set(every)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    rows = []
    for name, make in every.items():
        if not options.only or name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(make())
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if all(row.as_expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
