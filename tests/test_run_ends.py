"""How a run ends when something breaks: an engine that hangs, a camera that is gone, a disk."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgeseg.errors import InputError, SafeStateError, UsageError
from edgeseg.runtime import job
from edgeseg.runtime.buffering import NewestFrame
from edgeseg.runtime.deadline import Deadline, Problem
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import Frame, Notice, now_utc
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.selftest import self_test
from edgeseg.runtime.session import Session
from edgeseg.runtime.sinks import LinesSink, VideoSink
from edgeseg.runtime.supervisor import Supervisor
from edgeseg.taxonomy import PALETTE
from tests.bundles import make_bundle
from tests.clock import Clock

cv2 = pytest.importorskip("cv2")
ROOT = Path(__file__).resolve().parents[1]
SIZE = (64, 128)
SAFE = Deadline(60_000, "safe")


class Camera:
    """Gives ``items``: numbers of frames, notices, errors to raise, functions to call."""

    label, live, fps, length, skipped = "camera", True, None, None, 0

    def __init__(self, *items):
        self.items = items
        self.closed = threading.Event()

    def __iter__(self):
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            if callable(item):
                item()
            else:
                yield item if isinstance(item, Notice) else frame(item)

    def close(self):
        self.closed.set()


def frame(index):
    image = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Frame(index, image, f"#{index}", f"f{index}", now_utc(), time.monotonic_ns(), 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small", *SIZE)


@pytest.fixture(scope="module")
def session(folder):
    with Session(folder, "onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, SIZE[::-1])
    for index in range(12):
        writer.write(frame(index).image)
    writer.release()
    return path


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def states(path):
    return [line["state"] for line in records(path)]


HANGS = """
import sys, threading
from edgeseg.cli import main
from edgeseg.runtime import job, supervisor

supervisor._GRACE_MS = 1500.0
tested = job.self_test

def hangs_later(session):
    found, real, calls = tested(session), session.features, []

    def features(image):
        calls.append(1)
        if len(calls) > 5:
            threading.Event().wait()
        return real(image)

    session.features = features
    return found

job.self_test = hangs_later
sys.argv[0] = "edgeseg"
main()
"""


def test_an_engine_that_hangs_for_good_ends_the_run_with_its_outputs_finished(
    folder, clip, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-c", HANGS, "run", folder, "--input", clip, "--as-camera"),
            *("--backend", "onnxruntime", "--deadline-ms", "150", "--on-miss", "safe"),
            *("--max-misses", "3", "--save", out / "v.mp4", "--jsonl", out / "l.jsonl"),
            *("--events", out / "e.jsonl"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 8, done.stderr
    assert "the engine has not answered" in done.stderr
    assert "Traceback" not in done.stderr
    found = states(out / "l.jsonl")
    assert found.count("ok") >= 2
    # At once, and then every second of the 1.5 that it is given to come back.
    assert found[-3:] == ["safe"] * 3
    told = records(out / "e.jsonl")
    assert [event["event"] for event in told].count("engine_hung") == 1
    assert told[-1]["event"] == "run_ended"
    assert "start it again" in told[-1]["error"]
    assert sorted(path.name for path in out.iterdir()) == ["e.jsonl", "l.jsonl", "v.mp4"]
    video = cv2.VideoCapture(str(out / "v.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) >= 2
    video.release()


def test_a_final_safe_state_is_told_every_second_while_the_engine_hangs():
    clock = Clock()
    guard = Supervisor(Deadline(50, "safe"), live=True, clock=clock)
    guard.infers(True)
    clock.forward(600)
    told = 0
    for _ in range(40):
        told += guard.listen() is not None
        clock.forward(100)
    assert guard.final
    assert told == 4
    assert not guard.stuck
    clock.forward(1500)
    assert guard.stuck
    guard.infers(False)
    assert not guard.stuck
    assert guard.listen() is None
    assert [event["event"] for event in guard.events.recent] == ["engine_hung", "safe_state"]


def test_an_engine_that_comes_back_in_time_lets_the_run_end_in_order(session, tmp_path):
    pipelines = []

    def slow(image):
        clock.forward(600)
        pipelines[0].listen()
        clock.forward(2000)
        pipelines[0].listen()
        return real(image)

    def never(error):
        raise AssertionError(error)

    clock = Clock()
    camera = Camera(Notice("camera_back", "there"), 0, 1)
    lines = LinesSink(tmp_path / "l.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        pipelines.append(
            Pipeline(
                session,
                camera,
                lines=lines,
                deadline=Deadline(50, "safe"),
                on_stuck=never,
                clock=clock,
            )
        )
        real = session.features
        patch.setattr(session, "features", slow)
        patch.setattr(time, "monotonic_ns", clock)
        report = pipelines[0].run()
    assert isinstance(report.error, SafeStateError)
    assert states(tmp_path / "l.jsonl") == ["safe"] * 3


def test_a_camera_that_is_lost_for_good_leaves_no_calm_last_line(session, tmp_path):
    events = EventLog()
    lines = LinesSink(tmp_path / "l.jsonl")
    source = NewestFrame(Camera(0, lambda: time.sleep(0.3), InputError("the camera is gone")))
    pipeline = Pipeline(session, source, lines=lines, deadline=SAFE, events=events)
    report = pipeline.run()
    assert isinstance(report.error, InputError)
    found = records(tmp_path / "l.jsonl")
    assert [line["state"] for line in found] == ["ok", "safe"]
    assert (found[1]["frame"], found[1]["anomaly_fraction"]) == (None, 1.0)
    assert [event["event"] for event in events.recent] == ["camera_lost", "safe_state"]
    assert pipeline.supervisor.reason == "the camera is gone"


def test_a_camera_that_does_not_come_back_was_lost_once(session, tmp_path):
    events = EventLog()
    lost = Notice("camera_lost", "the camera is gone")
    camera = Camera(0, lost, InputError("the camera did not come back"))
    deadline = Deadline(60_000, "safe", recover_after=2)
    report = Pipeline(session, camera, deadline=deadline, events=events).run()
    assert isinstance(report.error, InputError)
    assert [event["event"] for event in events.recent] == ["camera_lost", "safe_state"]


def test_a_lost_camera_without_a_policy_ends_the_run_as_ever(session, tmp_path):
    lines = LinesSink(tmp_path / "l.jsonl")
    report = Pipeline(session, Camera(0, InputError("gone")), lines=lines).run()
    assert isinstance(report.error, InputError)
    assert states(tmp_path / "l.jsonl") == ["ok"]


def test_no_frame_from_before_a_loss_comes_after_it():
    source = NewestFrame(Camera())
    source._deliver(frame(0))
    source._deliver(Notice("camera_lost", "gone"))
    told = [item.event if isinstance(item, Notice) else item.index for item in source]
    assert told == ["camera_lost"]
    assert source.skipped == 1


def test_what_is_opened_before_the_run_is_no_silence_of_the_camera(session, tmp_path):
    clock = Clock()
    events = EventLog()
    told = []

    def listen(ms):
        clock.forward(ms)
        pipeline.listen()
        told.append(pipeline.supervisor.safe)

    camera = Camera(lambda: listen(9_000), lambda: listen(1_100))
    deadline = Deadline(50, "safe", recover_after=1)
    pipeline = Pipeline(session, camera, deadline=deadline, events=events, clock=clock)
    listen(11_000)  # a second engine opens, the self-test runs
    pipeline.run()
    listen(60_000)  # the end takes its time, too
    assert told == [False, False, True, True]
    assert [event["event"] for event in events.recent] == ["source_silent", "safe_state"]


def test_an_engine_that_raises_does_not_pass_the_self_test(session, monkeypatch):
    def raises(image):
        raise RuntimeError("CUDA error:\ndevice lost")

    monkeypatch.setattr(session, "features", raises)
    problem = self_test(session).problem
    assert problem is not None
    assert problem.kind == "engine_error"
    assert problem.detail == "the engine failed (CUDA error: device lost)"


def test_a_self_test_whose_engine_raises_leaves_its_line_and_nothing_else(
    edgeseg, folder, clip, tmp_path, monkeypatch
):
    tested = job.self_test

    def breaks(session):
        def raises(image):
            raise RuntimeError("device lost")

        session.features = raises
        return tested(session)

    monkeypatch.setattr(job, "self_test", breaks)
    code, _, err = edgeseg(
        "run", folder, "--input", clip, "--self-test", "--backend", "onnxruntime",
        "--jsonl", tmp_path / "l.jsonl", "--save", tmp_path / "v.mp4",
    )  # fmt: skip
    assert code == 8
    assert "device lost" in err
    assert states(tmp_path / "l.jsonl") == ["self_test_failed"]
    assert [path.name for path in tmp_path.iterdir()] == ["l.jsonl"]


def test_a_run_that_cannot_begin_leaves_no_unfinished_video(
    edgeseg, folder, clip, tmp_path, monkeypatch
):
    def fails(session):
        raise OSError("the second engine does not open")

    monkeypatch.setattr(Session, "open_features", fails)
    code, _, err = edgeseg(
        "run", folder, "--input", clip, "--deadline-ms", "60000", "--on-miss", "safe",
        "--backend", "onnxruntime", "--save", tmp_path / "v.mp4",
    )  # fmt: skip
    assert code == 1
    assert "second engine" in err
    assert list(tmp_path.iterdir()) == []


full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@full
def test_a_full_disk_under_the_lines_is_one_sentence(edgeseg, folder, clip):
    code, _, err = edgeseg(
        "run", folder, "--input", clip, "--jsonl", "/dev/full", "--backend", "onnxruntime"
    )
    assert code == 2
    assert "--jsonl '/dev/full' cannot be written (No space left on device)" in err


@full
def test_a_full_disk_does_not_hide_what_the_self_test_found(session):
    pipeline = Pipeline(session, Camera(), lines=LinesSink(Path("/dev/full")))
    report = pipeline.refuse(Problem("head_differs", "the head kernel differs"))
    assert isinstance(report.error, SafeStateError)


def test_lines_of_an_earlier_run_do_not_stay_where_no_frame_could_be_read(
    edgeseg, folder, tmp_path
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    lines = tmp_path / "l.jsonl"
    lines.write_text('{"frame": 0, "state": "ok"}\n')
    code, _, _ = edgeseg(
        "run", folder, "--input", tmp_path / "in", "--jsonl", lines, "--backend", "onnxruntime"
    )
    assert code == 7
    assert lines.read_text() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--jsonl", "x", "--events", "./x"),
        ("--jsonl", "v.mp4", "--save", "v.mp4"),
        ("--events", "clip.mp4"),
    ],
)
def test_two_options_that_name_one_file_are_refused(
    edgeseg, folder, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(b"kept")
    code, _, err = edgeseg("run", folder, "--input", "clip.mp4", *arguments)
    assert code == 2
    assert "both name" in err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("clip.mp4", b"kept")
    ]


def test_a_device_may_take_what_several_options_write(edgeseg, folder, clip):
    code, _, err = edgeseg(
        "run", folder, "--input", clip, "--frames", 1, "--backend", "onnxruntime",
        "--jsonl", "/dev/null", "--events", "/dev/null",
    )  # fmt: skip
    assert code == 0, err


def video(path):
    return VideoSink(path, Painter(PALETTE, HeatScale("void", 19, 0.3), "overlay"), None)


def test_a_video_cannot_take_a_folder_s_name(tmp_path):
    (tmp_path / "d.mp4").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        video(tmp_path / "d.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["d.mp4"]


def test_a_video_under_a_name_that_crashes_opencv_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not UTF-8"):
        video(tmp_path / "v\udcff.mp4")
    assert list(tmp_path.iterdir()) == []
