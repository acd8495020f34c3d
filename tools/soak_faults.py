"""The faults that ``tools/soak.py`` puts into a run, one function per kind of row."""

import contextlib
import http.client
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.runtime import sinks
from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.frames import BadFrame, Frame, now_utc
from edgeseg.runtime.live.pictures import MAX_VIEWERS
from edgeseg.runtime.live.server import LiveServer
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.session import Session
from edgeseg.runtime.sinks import LinesSink, VideoSink
from soak_bench import Bench, Camera
from soak_table import Row

__all__ = ["cases"]


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
            good = states == {"ok"}
            return Row(name, None, "", ", ".join(sorted(states)), None, None, good)
        bench.wait(lambda: any(kind == expected for _, kind in kinds()))
        bench.wait(lambda: any(state != "ok" for _, state in bench.states_since(start)))
        found = [at for at, kind in kinds() if kind == expected]
        noticed = round((found[0] - start_ns) / 1e6, 1) if found else None
        bench.wait(lambda: any(state == "safe" for _, state in bench.states_since(start)))
        # A while longer: a frame that passes for good now would be the worst of all.
        bench.wait(lambda: time.monotonic() > start + 0.4)
        since = bench.states_since(start)
        # From the moment that it is noticed until the fault is gone, no frame is good again.
        broken = [state for at, state in since if found and at >= found[0] / 1e9]
        relapsed = "ok" in broken
        healed = time.monotonic()
        bench.switch.fault = None
        recovered = bench.wait(lambda: any(s == "ok" for _, s in bench.states_since(healed)))
        taken = list(dict.fromkeys(broken))
        reached = [at for at, state in since if state == "safe"]
        state_ms = round(1e3 * (reached[0] - start), 1) if reached else None
    state = ", then ".join(taken) or "ok"
    good = bool(found) and taken[-1:] == ["safe"] and recovered and not relapsed and bench.sound
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
            bench.wait(lambda: len(bench.pipeline.report.stages_ms["encode"]) >= 3)
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
        good = noticed is not None and states == {"ok"} and frames > 0 and bench.sound
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
    good = freed and states == {"ok"} and bench.sound
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
        told = [line["age_ms"] for at, line in bench.lines.lines if at >= start]
        ages = [age for age in told if age is not None] or [float("nan")]
        for connection in connections:
            connection.close()
        refused = sum(answer != 200 for answer in answers)
        let_in = count - refused
        gone = bench.wait(lambda: view.gallery.viewers == 0)
    note = (
        f"{let_in} let in within {took:.1f} s, at most {peak} at a time, {refused} refused, "
        f"age 99% {np.percentile(ages, 99):.1f} ms"
    )
    good = states == {"ok"} and 0 < peak <= MAX_VIEWERS and refused > 0 and gone and bench.sound
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


def cases(bundle: Path, frames: int, deadline: Deadline) -> dict[str, Callable[[], Row]]:
    """Every row's name and what makes it.

    Args:
        bundle: folder.
        frames: of the row ``memory``.
        deadline: of all other rows, with a safe state that recovers.
    """
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
