"""Lines into pipes whose reader sleeps or never comes, and onto disks that are full."""

import contextlib
import fcntl
import json
import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgeseg.errors import UsageError
from edgeseg.runtime import events as event_log
from edgeseg.runtime import sinks
from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import Frame, now_utc
from edgeseg.runtime.line_file import LineFile
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.session import Session
from edgeseg.runtime.sinks import LinesSink
from tests.bundles import make_bundle

cv2 = pytest.importorskip("cv2")
SIZE = (64, 128)
PIPE_BYTES = 4096


@pytest.fixture
def pipe():
    """A small pipe: its reading end and the path of the other."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(read, False)
    yield read, Path(f"/dev/fd/{write}")
    for handle in (read, write):
        with contextlib.suppress(OSError):
            os.close(handle)


@contextlib.contextmanager
def full_disk(size):
    """No file can be larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Camera:
    label, live, fps, length, skipped = "camera", True, None, None, 0

    def __iter__(self):
        for index in range(1000):
            image = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            yield Frame(index, image, f"#{index}", "f", now_utc(), time.monotonic_ns(), 0.1)

    def close(self):
        pass


def write_until_refused(lines, record):
    for _ in range(1000):
        lines.write(record)


def test_a_reader_that_sleeps_is_not_waited_for_for_ever(pipe):
    read, path = pipe
    lines = LinesSink(path, patience_s=0.1)
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"--jsonl .* cannot be written \(its reader"):
        write_until_refused(lines, {"text": "x" * 3000})
    assert time.monotonic() - start < 5
    # It took a part of the last line; what comes later stands on a line of its own.
    told = os.read(read, 2 * PIPE_BYTES)
    lines.write({"frame": 1})
    lines.close()
    told += os.read(read, 2 * PIPE_BYTES)
    whole, *_, last = told.decode().splitlines()
    assert json.loads(whole) == {"text": "x" * 3000}
    assert json.loads(last) == {"frame": 1}


def test_a_line_longer_than_the_pipe_reaches_a_reader_that_keeps_up(pipe):
    read, path = pipe
    os.set_blocking(read, True)
    told = []

    def follow():
        with os.fdopen(read, closefd=False) as file:
            told.append(json.loads(file.readline()))

    reader = threading.Thread(target=follow)
    reader.start()
    lines = LinesSink(path, patience_s=10)
    lines.write({"text": "x" * 5 * PIPE_BYTES})
    reader.join(10)
    lines.close()
    assert told == [{"text": "x" * 5 * PIPE_BYTES}]


def test_a_run_whose_lines_nobody_takes_ends_and_leaves_the_lock(pipe, tmp_path):
    with Session(make_bundle(tmp_path / "b", *SIZE), "onnxruntime", threads=1) as session:
        pipeline = Pipeline(
            session,
            Camera(),
            lines=LinesSink(pipe[1], patience_s=0.2),
            deadline=Deadline(60_000, "safe"),
        )
        report = pipeline.run()
    assert isinstance(report.error, UsageError)
    assert report.frames < 100
    assert pipeline.supervisor.lock.acquire(timeout=1)


def test_a_named_pipe_that_nobody_reads_is_given_up(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "p")
    monkeypatch.setattr(sinks, "READER_S", 0.1)
    monkeypatch.setattr(event_log, "READER_S", 0.1)
    with pytest.raises(UsageError, match=r"--jsonl .* \(nobody reads from the pipe\)"):
        LinesSink(tmp_path / "p").open()
    with pytest.raises(UsageError, match=r"--events .* \(nobody reads from the pipe\)"):
        EventLog(tmp_path / "p")


def test_the_reader_of_a_named_pipe_may_come_later(tmp_path):
    os.mkfifo(tmp_path / "p")
    told = []

    def follow():
        time.sleep(0.2)
        told.append((tmp_path / "p").read_text())

    reader = threading.Thread(target=follow)
    reader.start()
    lines = LinesSink(tmp_path / "p")
    lines.write({"frame": 0})
    lines.close()
    reader.join(10)
    assert told == ['{"frame": 0}\n']


def test_events_go_through_a_pipe(pipe):
    log = EventLog(pipe[1], limit_bytes=300)
    for number in range(10):
        log.write("tick", number=number)
    log.close()
    told = os.read(pipe[0], 2 * PIPE_BYTES).decode().splitlines()
    assert [json.loads(line)["number"] for line in told] == list(range(10))
    assert log.lost == 0


def test_events_that_a_sleeping_reader_does_not_take_are_counted_at_once(pipe):
    log = EventLog(pipe[1])
    start = time.monotonic()
    for _ in range(20):
        log.write("tick", text="x" * 1000)
    assert time.monotonic() - start < 1
    assert log.lost == 17  # three have room, and none is there in part
    os.read(pipe[0], 2 * PIPE_BYTES)
    log.write("tick")
    log.close()
    assert log.lost == 17
    assert json.loads(os.read(pipe[0], PIPE_BYTES))["event"] == "tick"


def test_lost_events_are_among_the_metrics(pipe):
    log = EventLog(pipe[1])
    os.close(pipe[0])
    log.write("tick")
    about = {"scorer": "void", "size": "64x128"}
    view = LiveView(lambda *_: None, about, num_known=19)
    view._events = log
    assert "\nedgeseg_events_lost_total 1\n" in view.metrics()
    view.close()
    log.close()


def test_lost_events_are_in_the_summary(edgeseg, tmp_path):
    folder = make_bundle(tmp_path / "b", *SIZE)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((*SIZE, 3), np.uint8))
    run = ("run", folder, "--input", tmp_path / "a.png", "--backend", "onnxruntime")
    code, out, err = edgeseg(*run, "--events", "/dev/full", "--json")
    assert code == 0, err
    assert json.loads(out)["events_lost"] >= 2
    _, out, _ = edgeseg(*run, "--events", "/dev/full")
    assert "events could not be written" in out
    _, out, _ = edgeseg(*run, "--events", tmp_path / "e.jsonl", "--json")
    assert json.loads(out)["events_lost"] == 0


def test_a_full_disk_leaves_no_half_line(tmp_path):
    path = tmp_path / "l.jsonl"
    lines = LinesSink(path)
    record = {"text": "x" * 390}
    with full_disk(1000), pytest.raises(UsageError, match="File too large"):
        write_until_refused(lines, record)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record] * 2
    assert path.read_text().endswith("\n")
    lines.write({"frame": 2})
    lines.close()
    assert json.loads(path.read_text().splitlines()[-1]) == {"frame": 2}


def test_a_full_disk_leaves_no_half_event(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    with full_disk(1000):
        for _ in range(4):
            log.write("tick", text="x" * 300)
    log.write("tick")
    log.close()
    told = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert len(told) + log.lost == 5
    assert log.lost == 2


def test_a_closed_file_takes_no_line(tmp_path):
    file = LineFile(tmp_path / "f")
    file.close()
    file.close()
    with pytest.raises(OSError, match="closed"):
        file.write("x\n")
