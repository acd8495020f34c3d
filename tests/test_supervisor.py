import json
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgeseg.errors import SafeStateError, UsageError
from edgeseg.runtime import sinks
from edgeseg.runtime.deadline import Deadline, Problem
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import BadFrame, Frame, Notice, now_utc
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.safe import SAFE_CLASS
from edgeseg.runtime.selftest import self_test
from edgeseg.runtime.session import Session
from edgeseg.runtime.shots import Shot
from edgeseg.runtime.sinks import FolderSink, LinesSink, VideoSink
from edgeseg.runtime.supervisor import Supervisor
from edgeseg.runtime.thermal import ThermalWatch, read_machine
from edgeseg.runtime.watch import Watch
from edgeseg.runtime.watchdog import Notifier
from edgeseg.taxonomy import PALETTE
from tests.bundles import make_bundle
from tests.clock import Clock

cv2 = pytest.importorskip("cv2")
SIZE = (64, 128)


class Engine:
    """Features of the frame, after ``ms`` of the clock; an entry of ``faults`` per inference."""

    name = "fake"

    def __init__(self, clock=None, ms=10.0):
        self.clock, self.ms, self.faults, self.calls = clock, ms, {}, 0
        rng = np.random.default_rng(3)
        self.base = rng.normal(0, 1, (1, 16, SIZE[0] // 2, SIZE[1] // 2)).astype(np.float32)

    def infer(self, frame):
        fault = self.faults.get(self.calls)
        self.calls += 1
        if self.clock is not None:
            self.clock.forward(self.ms * (10 if fault == "slow" else 1))
        if fault == "raise":
            raise RuntimeError("device lost")
        if fault == "zero":
            return np.zeros_like(self.base)
        features = self.base + frame[0, ::2, ::2, 0] / np.float32(255)
        if fault == "nan":
            features[0, 3, 5, 7] = np.nan
        return features

    def describe(self):
        return {"backend": "fake", "threads": 1}

    def close(self):
        pass


class Camera:
    """Frames 40 ms apart on the clock, taken ``delay`` ms before they are handed over."""

    label, live, fps, length, skipped = "camera", True, 25.0, None, 0

    def __init__(self, clock, items, delay=1.0):
        self.clock, self.items, self.delay, self.closed = clock, items, delay, False

    def __iter__(self):
        for index, item in enumerate(self.items):
            self.clock.forward(40)
            if item == "bad":
                yield BadFrame(index, f"frame {index} is corrupt")
                continue
            if item == "lost":
                yield Notice("camera_lost", "camera stopped")
                continue
            seed = 999 if item == "frozen" else index
            image = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            if item == "black":
                image[:] = 0
            delay = item if isinstance(item, (int, float)) else self.delay
            captured = self.clock() - int(delay * 1e6)
            yield Frame(index, image, f"#{index}", f"f{index}", now_utc(), captured, 0.1)

    def close(self):
        self.closed = True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small", *SIZE)


@pytest.fixture
def run(clock, folder, tmp_path):
    """Runs a camera of items against faults of the engine; gives report, lines and events."""

    def start(items, deadline, faults=None, **options):
        engine = Engine(clock)
        events = EventLog(clock=clock)
        with Session(folder, engine, threads=1) as session:
            # The session itself warmed up with one frame.
            engine.faults = {index + engine.calls: f for index, f in (faults or {}).items()}
            pipeline = Pipeline(
                session,
                Camera(clock, items),
                threshold=0.3,
                lines=LinesSink(tmp_path / "l.jsonl"),
                deadline=deadline,
                events=events,
                clock=clock,
                **options,
            )
            report = pipeline.run()
        lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
        return report, lines, list(events.recent)

    return start


def states(lines):
    return [line["state"] for line in lines]


def names(events):
    return [event["event"] for event in events]


DROP = Deadline(50, "drop")
HOLD = Deadline(50, "safe", max_misses=2, recover_after=3)


def test_ages_count_from_capture_to_result_on_the_one_clock(run):
    _, lines, _ = run([5] * 3, DROP)
    assert [line["age_ms"] for line in lines] == [15.0] * 3
    assert states(lines) == ["ok"] * 3


def test_a_frame_that_is_too_old_already_is_not_inferred(run, clock):
    report, lines, _ = run([5, 60, 5], DROP)
    assert states(lines) == ["ok", "dropped", "ok"]
    assert lines[1]["latency_ms"] is None
    assert lines[1]["age_ms"] == 60.0
    assert report.missed == 1


@pytest.mark.parametrize("fault", ["nan", "raise", "zero", "slow"])
def test_what_the_engine_spoils_is_never_a_result(run, fault):
    report, lines, events = run(["x"] * 4, DROP, {1: fault})
    assert states(lines) == ["ok", "dropped", "ok", "ok"]
    assert lines[1]["anomaly_max"] is None
    assert report.missed == 1
    kind = {"nan": "not_finite", "raise": "engine_error", "zero": "constant", "slow": "late"}
    assert [e["kind"] for e in events if e["event"] == "miss"] == [kind[fault]]


def test_without_a_policy_the_engines_own_error_still_ends_the_run(run):
    with pytest.raises(RuntimeError, match="device lost"):
        run(["x"] * 3, Deadline(50), {1: "raise"})


def test_the_safe_state_comes_after_so_many_misses_in_a_row(run):
    deadline = Deadline(50, "drop", max_misses=3)
    report, lines, _ = run(["x", 60, 60, "x", 60, 60, 60, "x"], deadline)
    assert states(lines) == ["ok", "dropped", "dropped", "ok", "dropped", "dropped", "safe"]
    assert isinstance(report.error, SafeStateError)
    assert "3 misses in a row" in str(report.error)


def test_the_safe_state_is_left_after_frames_in_time_and_not_before(run):
    items = ["x", 60, 60, "x", "x", 60, "x", "x", "x", "x"]
    report, lines, events = run(items, HOLD)
    assert states(lines) == ["ok", "dropped", *["safe"] * 6, "ok", "ok"]
    assert report.error is None
    assert names(events).count("safe_state") == 1
    assert names(events).count("recovered") == 1


def test_in_the_safe_state_everything_is_anomalous_whatever_the_frame_says(run):
    _, lines, _ = run(["x", 60, 60, "x"], HOLD)
    for line in lines[2:]:
        assert line["state"] == "safe"
        assert line["anomaly_max"] == 1.0
        assert line["anomaly_fraction"] == 1.0
        assert line["regions"] == [{"box": [0, 0, 128, 64], "area": 64 * 128, "peak": 1.0}]


def test_a_run_that_ends_in_the_safe_state_says_so(run):
    report, _, _ = run(["x", 60, 60, "x"], HOLD)
    assert isinstance(report.error, SafeStateError)


def test_no_result_from_before_the_safe_state_is_reused_after_it(run):
    deadline = Deadline(50, "reuse", max_misses=2, recover_after=1)
    _, lines, _ = run(["x", 60, 60, "bad", "x", 60], deadline)
    assert states(lines) == ["ok", "reused", "safe", "safe", "ok", "reused"]
    # The one that leads out is a miss: there is nothing in time to reuse.
    deadline = Deadline(50, "reuse", max_misses=9)
    _, lines, _ = run([60, "x", 60], deadline)
    assert states(lines) == ["dropped", "ok", "reused"]


def test_reused_results_are_those_of_the_last_good_frame(run):
    _, lines, _ = run(["x", "x", 60, "x"], Deadline(50, "reuse"), {1: "nan"})
    assert states(lines) == ["ok", "reused", "reused", "ok"]
    assert lines[1]["anomaly_max"] == lines[2]["anomaly_max"] == lines[0]["anomaly_max"]
    assert lines[3]["anomaly_max"] != lines[0]["anomaly_max"]


def test_a_capture_time_ahead_of_the_clock_is_not_fresh(run):
    _, lines, events = run(["x", -500, "x"], DROP)
    assert states(lines) == ["ok", "dropped", "ok"]
    assert next(e for e in events if e["event"] == "miss")["kind"] == "future"


def test_cameras_that_freeze_or_go_black_are_misses(run):
    items = ["x", "frozen", "frozen", "frozen", "frozen", "frozen", "black", "x"]
    _, lines, _ = run(items, DROP)
    assert states(lines) == ["ok", "ok", "ok", "ok", "dropped", "dropped", "dropped", "ok"]


def test_frames_that_cannot_be_decoded_are_misses_of_a_camera(run):
    report, lines, _ = run(["x", "bad", "bad", "x", "x", "x"], HOLD)
    assert states(lines) == ["ok", "safe", "safe", "safe", "ok"]
    assert [line["frame"] for line in lines] == [0, 2, 3, 4, 5]
    assert (report.corrupt, report.missed) == (2, 4)


def test_losses_are_events(run):
    _, lines, events = run(["x", "lost", "x"], DROP)
    assert states(lines) == ["ok", "ok"]
    assert "camera_lost" in names(events)


def test_a_lost_camera_leads_into_the_safe_state_at_once(run):
    report, lines, _ = run(["x", "lost", "x", "x", "x"], HOLD)
    assert states(lines) == ["ok", "safe", "safe", "safe", "ok"]
    assert [line["frame"] for line in lines] == [0, None, 2, 3, 4]
    assert report.error is None
    report, lines, _ = run(["x", "lost", "x"], Deadline(50, "safe"))
    assert states(lines) == ["ok", "safe"]
    assert "camera stopped" in str(report.error)


def test_a_row_of_misses_is_two_events_and_not_a_flood(run):
    _, _, events = run(["x", *[60] * 50, "x"], DROP)
    assert names(events) == ["miss", "misses_ended"]
    assert events[1]["misses"] == {"late": 50}


def test_a_silent_camera_is_noticed_and_told_every_second(clock):
    guard = Supervisor(HOLD, live=True, clock=clock)
    assert HOLD.silence_ms == 500
    clock.forward(9_000)
    assert guard.listen() is None  # a camera may take its time for the first frame
    guard.accept(Frame(0, np.zeros((64, 64, 3), np.uint8), "#0", "f", now_utc(), clock(), 0.1))
    clock.forward(499)
    assert guard.listen() is None
    clock.forward(2)
    problem = guard.listen()
    assert problem is not None
    assert problem.kind == "source_silent"
    assert guard.safe
    assert guard.listen() is None
    clock.forward(1000)
    assert guard.listen() is not None
    assert names(guard.events.recent) == ["source_silent", "safe_state"]


def test_an_engine_that_hangs_is_noticed_while_it_hangs(clock):
    guard = Supervisor(HOLD, live=False, clock=clock)
    guard.infers(True)
    clock.forward(600)
    problem = guard.listen()
    assert problem is not None
    assert problem.kind == "engine_hung"
    assert guard.busy_ms() == 600
    guard.infers(False)
    assert guard.listen() is None
    assert "silence_ended" in names(guard.events.recent)
    assert guard.safe  # only frames in time lead out


def test_files_may_be_silent(clock):
    guard = Supervisor(HOLD, live=False, clock=clock)
    clock.forward(60_000)
    assert guard.listen() is None


def test_without_a_limit_silence_is_told_and_nothing_else(clock):
    guard = Supervisor(DROP, live=True, clock=clock)
    clock.forward(60_000)
    assert guard.listen() is None
    assert guard.silent
    assert not guard.safe
    assert names(guard.events.recent) == ["source_silent"]


def test_silence_in_a_final_safe_state_writes_a_line_and_ends_the_wait(folder, tmp_path):
    class Silent:
        label, live, fps, length, skipped = "camera", True, None, None, 0

        def __init__(self):
            self.closed = threading.Event()

        def __iter__(self):
            image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            yield Frame(0, image, "#0", "f0", now_utc(), time.monotonic_ns(), 0.1)
            self.closed.wait(20)

        def close(self):
            self.closed.set()

    with Session(folder, Engine(), threads=1) as session:
        lines = LinesSink(tmp_path / "l.jsonl")
        pipeline = Pipeline(session, Silent(), lines=lines, deadline=Deadline(5000, "safe"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Deadline, "silence_ms", property(lambda _: 100.0))
            with Watch(pipeline, Notifier()):
                report = pipeline.run()
    found = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert states(found) == ["ok", "safe"]
    assert found[1]["frame"] is None
    assert found[1]["captured_mono_ns"] is None
    assert found[1]["anomaly_fraction"] == 1.0
    assert isinstance(report.error, SafeStateError)
    assert "no frame has come" in str(report.error)


def test_the_safe_state_cannot_be_taken_for_a_calm_scene_in_what_is_saved(run, tmp_path):
    out = tmp_path / "out"
    painter = Painter(PALETTE, HeatScale("void", 19, 0.3), "overlay")
    run(["x", 60, 60], HOLD, sink=FolderSink(out, painter, PALETTE))
    classes = cv2.imread(str(out / "f2_classes.png"))
    assert (np.load(out / "f2_score.npy") == 1.0).all()
    image = pytest.importorskip("PIL.Image")
    with image.open(out / "f2_classes.png") as opened:
        assert (np.asarray(opened) == SAFE_CLASS).all()
    with image.open(out / "f2_score.png") as opened:
        assert (np.asarray(opened) == 255).all()
    assert not (classes == 0).all()
    overlay = cv2.imread(str(out / "f2_overlay.jpg")).astype(int)
    red = (overlay[..., 2] - overlay[..., 1] > 60) & (overlay[..., 2] - overlay[..., 0] > 60)
    assert red.mean() > 0.05
    # Words in white on black in the middle.
    middle = overlay[28:38].sum(axis=2)
    assert (middle > 600).any()
    assert (middle < 60).any()


def test_the_safe_picture_does_not_stretch_the_scale_of_an_unbounded_score(run, tmp_path):
    scale = HeatScale("maxlogit", 19, -1.0)
    scale.apply(np.linspace(-10, -1, 100).astype(np.float16))
    before = scale.low, scale.high
    sink = FolderSink(tmp_path / "out", Painter(PALETTE, scale, "overlay"), PALETTE)
    score = np.full(SIZE, 65504, np.float16)
    image = np.zeros((*SIZE, 3), np.uint8)
    sink.write(Shot("a", image, np.full(SIZE, 255, np.uint8), score, "safe", "safe", "why"))
    assert (scale.low, scale.high) == before


class Slow:
    outputs = ()

    def __init__(self, error=None):
        self.gate, self.seen, self.error = threading.Event(), 0, error
        self.outputs = []

    def write(self, shot):
        if self.error is not None:
            raise self.error
        self.gate.wait(10)
        self.seen += 1
        return 1.0, 1.0

    def close(self):
        pass


def test_a_slow_disk_costs_pictures_and_no_frame_of_a_camera(run):
    sink = Slow()
    threading.Timer(0.5, sink.gate.set).start()
    report, lines, _ = run(["x"] * 20, DROP, sink=sink)
    assert states(lines) == ["ok"] * 20
    assert 0 < sink.seen < 20
    assert report.unsaved == 20 - sink.seen


def test_a_full_disk_is_told_once_and_the_run_goes_on(run):
    sink = Slow(UsageError("--save 'x' cannot be written (No space left on device)"))
    report, lines, events = run(["x"] * 40, DROP, sink=sink)
    assert states(lines) == ["ok"] * 40
    assert names(events).count("save_failed") == 1
    assert "No space left" in str(report.error)


def test_a_video_stops_before_the_disk_is_full_and_can_be_played(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    sink = VideoSink(path, Painter(PALETTE, HeatScale("void", 19, 0.3), "overlay"), 20.0)
    rng = np.random.default_rng(0)
    shot = Shot(
        "a",
        rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        np.zeros(SIZE, np.uint8),
        np.zeros(SIZE, np.float16),
        "",
    )
    for _ in range(16):
        sink.write(shot)
    usage = sinks.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(sinks.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(UsageError, match="No space left"):
        sink.write(shot)
    sink.close()
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 16
    capture.release()


def test_the_self_test_holds_the_kernel_against_its_definition(folder, monkeypatch):
    with Session(folder, "onnxruntime", threads=1) as session:
        passed = self_test(session)
        assert passed.problem is None
        assert passed.reference == "definition"
        assert passed.score_error is not None
        assert passed.score_error <= 1
        assert passed.class_agreement == 1.0
        score = session.score

        def off(features, *rest):
            result = score(features, *rest)
            result.score[9, 10] = 1 - result.score[9, 10]
            return result

        monkeypatch.setattr(session, "score", off)
        failed = self_test(session)
    assert failed.problem is not None
    assert failed.problem.kind == "head_differs"


@pytest.mark.parametrize(("fault", "kind"), [("nan", "not_finite"), ("zero", "not_repeatable")])
def test_the_self_test_notices_a_broken_engine(folder, fault, kind):
    engine = Engine()
    with Session(folder, engine, threads=1) as session:
        engine.faults = {engine.calls: fault}
        problem = self_test(session).problem
    assert problem is not None
    assert problem.kind == kind


def test_the_self_test_notices_an_engine_that_ignores_its_frame(folder):
    engine = Engine()
    engine.infer = lambda frame: engine.base
    with Session(folder, engine, threads=1) as session:
        problem = self_test(session).problem
    assert problem is not None
    assert problem.kind == "constant"


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_the_heartbeat(tmp_path, abstract):
    name = f"@edgeseg-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000"}
        notifier = Notifier.from_environment(environment)
        assert notifier.interval_s == 3
        notifier.ready()
        notifier.alive("all\nwell")
        notifier.stopping()
        got = [manager.recv(200).decode() for _ in range(3)]
        notifier.close()
    assert got == ["READY=1", "WATCHDOG=1\nSTATUS=all well", "STOPPING=1"]


def test_without_a_service_manager_nothing_happens(tmp_path):
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}, {"NOTIFY_SOCKET": "v:1"}):
        notifier = Notifier.from_environment(environment)
        notifier.ready()
        notifier.alive()
        notifier.close()
        notifier.close()


def test_another_process_s_watchdog_is_not_fed():
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    notifier = Notifier.from_environment(environment)
    assert notifier.interval_s is None
    notifier.close()


def test_the_heartbeat_stops_while_the_engine_hangs(folder, clock, monkeypatch):
    beats = []
    notifier = Notifier("/nowhere", 3.0)
    monkeypatch.setattr(notifier, "alive", beats.append)
    with Session(folder, Engine(), threads=1) as session:
        pipeline = Pipeline(session, Camera(clock, []), deadline=DROP, clock=clock)
        watch = Watch(pipeline, notifier, clock=lambda: clock() / 1e9)
        watch.tick()
        watch.tick()
        assert beats == ["running"]
        clock.forward(1001)
        watch.tick()
        assert len(beats) == 2
        pipeline.supervisor.infers(True)
        for _ in range(5):
            clock.forward(1501)
            watch.tick()
    assert len(beats) == 2
    notifier.close()


def test_events_are_whole_lines_with_both_clocks(tmp_path, clock):
    log = EventLog(tmp_path / "sub" / "e.jsonl", clock=clock)
    log.write("miss", "warning", kind="late")
    (line,) = (tmp_path / "sub" / "e.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["mono_ns"] == clock()
    assert record["at"].endswith("+00:00")
    assert (record["event"], record["level"], record["kind"]) == ("miss", "warning", "late")
    log.close()
    log.close()


def test_the_event_log_is_bounded_on_disk_and_in_memory(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path, limit_bytes=2000)
    for index in range(500):
        log.write("tick", number=index)
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.jsonl", "e.jsonl.1"]
    assert all(p.stat().st_size <= 2000 for p in tmp_path.iterdir())
    assert json.loads(path.read_text().splitlines()[-1])["number"] == 499
    assert len(log.recent) == 100
    assert log.counts["tick"] == 500


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_events_and_not_the_run():
    log = EventLog(Path("/dev/full"))
    for _ in range(3):
        log.write("miss")
    log.close()
    assert log.lost == 3
    assert log.counts["miss"] == 3


def test_an_event_log_that_cannot_be_is_said_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--events"):
        EventLog(tmp_path / "file" / "e.jsonl")


def machine(root, degrees, mhz, top=4000):
    for name, value in (
        ("class/thermal/thermal_zone0/temp", degrees * 1000),
        ("class/thermal/thermal_zone1/temp", -256_000),  # switched off
        ("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", mhz * 1000),
        ("devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", top * 1000),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_heat_and_low_clocks_are_told_when_they_come_and_go(tmp_path):
    watch = ThermalWatch(tmp_path)
    told = []
    for degrees, mhz in [(60, 4000), (92, 1000), (91, 1000), (88, 1000), (84, 1000), (84, 3900)]:
        machine(tmp_path, degrees, mhz)
        state, found = watch.look()
        assert state.temperature_c == degrees
        told += [name for name, _ in found]
    assert told == ["machine_hot", "clock_low", "machine_cooler", "clock_back"]


def test_a_machine_that_tells_nothing_is_no_error(tmp_path):
    state = read_machine(tmp_path)
    assert (state.temperature_c, state.clock_mhz, state.max_clock_mhz) == (None, None, None)
    assert ThermalWatch(tmp_path).look()[1] == []


def test_a_failed_self_test_leaves_one_line_and_no_frame(folder, clock, tmp_path):
    with Session(folder, Engine(clock), threads=1) as session:
        camera = Camera(clock, ["x"])
        lines = LinesSink(tmp_path / "l.jsonl")
        pipeline = Pipeline(session, camera, lines=lines, deadline=HOLD, clock=clock)
        report = pipeline.refuse(Problem("head_differs", "the head kernel differs"))
    (line,) = (tmp_path / "l.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["state"] == "self_test_failed"
    assert record["anomaly_fraction"] == 1.0
    assert report.error is not None
    assert report.error.exit_code == 8
    assert camera.closed
    assert report.frames == 0
