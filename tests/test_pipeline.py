import json
import threading
import time

import numpy as np
import pytest

from edgeseg.errors import InputError, SafeStateError, UsageError
from edgeseg.runtime.frames import BadFrame, Frame, now_utc
from edgeseg.runtime.pipeline import Deadline, Pipeline
from edgeseg.runtime.session import Session
from edgeseg.runtime.sinks import LinesSink
from tests.bundles import make_bundle

pytest.importorskip("cv2")

KEYS = [
    "frame",
    "captured_at",
    "captured_mono_ns",
    "age_ms",
    "latency_ms",
    "anomaly_max",
    "anomaly_fraction",
    "regions",
    "state",
]


class Frames:
    """A source of given items; a number is the age in milliseconds that a frame starts with."""

    label = "given"
    live = False
    fps = None
    skipped = 0

    def __init__(self, items, size=(64, 128), error=None):
        self.items, self.size, self.error = items, size, error
        self.length = len(items)
        self.closed = False

    def __iter__(self):
        for index, item in enumerate(self.items):
            if item is None:
                yield BadFrame(index, f"frame {index} is corrupt")
                continue
            image = np.random.default_rng(index).integers(0, 256, (*self.size, 3), dtype=np.uint8)
            captured = time.monotonic_ns() - int(item * 1e6)
            yield Frame(index, image, f"#{index}", f"f{index}", now_utc(), captured, 0.5)
        if self.error:
            raise self.error

    def close(self):
        self.closed = True


class Memory:
    def __init__(self):
        self.shots, self.closed, self.outputs = [], False, ["memory"]

    def write(self, shot):
        time.sleep(0.002)  # slower than the inference, so that shots wait
        self.shots.append(shot)
        return 1.0, 1.0

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = make_bundle(tmp_path_factory.mktemp("bundle") / "small")
        with Session(folder, "onnxruntime", threads=1) as opened:
            yield opened


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_per_frame_with_exactly_the_promised_keys(session, tmp_path):
    lines = LinesSink(tmp_path / "out.jsonl")
    report = Pipeline(session, Frames([0, 0, 0]), threshold=0.01, lines=lines).run()
    assert report.frames == 3
    assert report.outputs == [str(tmp_path / "out.jsonl")]
    found = records(tmp_path / "out.jsonl")
    assert [list(record) for record in found] == [KEYS] * 3
    assert [record["frame"] for record in found] == [0, 1, 2]
    for record in found:
        assert record["state"] == "ok"
        assert record["captured_at"].endswith("+00:00")
        assert 0 < record["latency_ms"] <= record["age_ms"]
        assert 0 <= record["anomaly_fraction"] <= 1
        for region in record["regions"]:
            assert set(region) == {"box", "area", "peak"}
            assert region["peak"] >= 0.01


def test_the_shots_a_slow_sink_gets_are_those_of_their_frames(session):
    sink = Memory()
    Pipeline(session, Frames([0] * 6), threshold=0.3, sink=sink).run()
    assert [shot.stem for shot in sink.shots] == [f"f{index}" for index in range(6)]
    for shot in sink.shots:
        expected = session.run(shot.image)
        np.testing.assert_array_equal(shot.score, expected.score)
        np.testing.assert_array_equal(shot.class_map, expected.class_map)


def test_frames_of_another_size_are_resized_as_pillow_does(session):
    image = pytest.importorskip("PIL.Image")
    sink = Memory()
    Pipeline(session, Frames([0, 0], size=(150, 200)), threshold=0.3, sink=sink).run()
    for shot in sink.shots:
        resized = image.fromarray(shot.image).resize((128, 64), image.Resampling.BILINEAR)
        result = session.run(np.ascontiguousarray(np.asarray(resized)))
        np.testing.assert_array_equal(shot.score, result.score)


def test_corrupt_frames_are_counted_and_the_run_goes_on(session):
    told = []
    report = Pipeline(session, Frames([0, None, 0, None]), on_bad=told.append).run()
    assert (report.frames, report.corrupt) == (2, 2)
    assert [bad.index for bad in told] == [1, 3]
    assert report.error is None


def test_nothing_but_corrupt_frames_is_an_input_error(session):
    report = Pipeline(session, Frames([None, None])).run()
    assert isinstance(report.error, InputError)
    assert "none of the 2 frames" in str(report.error)


def test_a_lost_camera_ends_the_run_with_the_outputs_finished(session, tmp_path):
    sink, source = Memory(), Frames([0, 0], error=InputError("camera lost"))
    lines = LinesSink(tmp_path / "l.jsonl")
    report = Pipeline(session, source, sink=sink, lines=lines).run()
    assert str(report.error) == "camera lost"
    assert sink.closed
    assert source.closed
    assert len(sink.shots) == len(records(tmp_path / "l.jsonl")) == 2


def test_the_limit_counts_frames_that_could_be_read(session):
    assert Pipeline(session, Frames([0, None, 0, 0, 0]), limit=2).run().frames == 2


def test_a_stop_between_frames_finishes_the_outputs(session):
    stop, sink = threading.Event(), Memory()

    def after(frames):
        if frames == 2:
            stop.set()

    report = Pipeline(session, Frames([0] * 50), sink=sink, on_frame=after).run(stop)
    assert report.frames == 2
    assert len(sink.shots) == 2
    assert sink.closed


def test_the_stages_are_told_apart(session):
    summary = Pipeline(session, Frames([0] * 5, size=(96, 128)), sink=Memory()).run().summary()
    assert list(summary["stages_ms"]) == [
        "decode", "resize", "body", "head", "analyse", "draw", "encode",
    ]  # fmt: skip
    latency = summary["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert summary["frames"] == 5
    assert summary["fps"] > 0
    json.dumps(summary, allow_nan=False)


def run_late(session, tmp_path, on_miss, ages, deadline=500):
    lines, sink = LinesSink(tmp_path / "l.jsonl"), Memory()
    report = Pipeline(
        session,
        Frames(ages),
        threshold=0.3,
        lines=lines,
        sink=sink,
        deadline=Deadline(deadline, on_miss),
    ).run()
    return report, records(tmp_path / "l.jsonl"), sink.shots


def test_late_frames_are_marked(session, tmp_path):
    report, found, shots = run_late(session, tmp_path, None, [0, 9999, 0])
    assert [record["state"] for record in found] == ["ok", "late", "ok"]
    assert found[1]["anomaly_max"] is not None
    assert found[1]["age_ms"] > 9999
    assert report.missed == 1
    assert len(shots) == 3


def test_late_frames_are_dropped(session, tmp_path):
    report, found, shots = run_late(session, tmp_path, "drop", [0, 9999, 0])
    assert [record["state"] for record in found] == ["ok", "dropped", "ok"]
    assert list(found[1]) == KEYS
    assert found[1]["anomaly_max"] is None
    assert [shot.stem for shot in shots] == ["f0", "f2"]
    assert (report.frames, report.missed) == (3, 1)


def test_the_last_result_in_time_is_reused(session, tmp_path):
    _, found, shots = run_late(session, tmp_path, "reuse", [9999, 0, 9999])
    assert [record["state"] for record in found] == ["dropped", "ok", "reused"]
    assert found[2]["anomaly_max"] == found[1]["anomaly_max"]
    np.testing.assert_array_equal(shots[1].score, shots[0].score)


def test_the_safe_state_calls_everything_anomalous_and_stops(session, tmp_path):
    report, found, _ = run_late(session, tmp_path, "safe", [0, 9999, 0])
    assert isinstance(report.error, SafeStateError)
    assert [record["state"] for record in found] == ["ok", "safe"]
    assert found[1]["anomaly_fraction"] == 1.0
    assert found[1]["anomaly_max"] == 1.0
    assert found[1]["regions"] == [{"box": [0, 0, 128, 64], "area": 128 * 64, "peak": 1.0}]


def test_an_empty_region_of_interest_is_refused(session):
    with pytest.raises(UsageError):
        Pipeline(session, Frames([0]), roi=np.zeros((64, 128), bool))
