"""What may follow a gap in the frames, and runs that are interrupted before the first result."""

import json
import threading

import numpy as np
import pytest

from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.frames import BadFrame, Frame, Notice, now_utc
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.session import Session
from edgeseg.runtime.sinks import LinesSink
from tests.bundles import make_bundle
from tests.clock import Clock

pytest.importorskip("cv2")
SIZE = (64, 128)
REUSE = Deadline(60, "reuse")


class Camera:
    """Numbers are frames of that age in milliseconds, functions are called, the rest is given."""

    label, live, fps, length, skipped = "camera", True, None, None, 0

    def __init__(self, clock, items):
        self.clock, self.items = clock, items

    def __iter__(self):
        for index, item in enumerate(self.items):
            if callable(item):
                item()
            elif isinstance(item, (Notice, BadFrame)):
                yield item
            else:
                image = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                captured = self.clock() - int(item * 1e6)
                yield Frame(index, image, f"#{index}", f"f{index}", now_utc(), captured, 0.1)

    def close(self):
        pass


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "small", *SIZE)
    with Session(folder, "onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture
def states(session, tmp_path):
    """Runs the items and gives the states of the lines; functions are called with the pipeline."""

    def start(*items):
        clock = Clock()

        def called(item):
            return (lambda: item(pipeline, clock)) if callable(item) else item

        pipeline = Pipeline(
            session,
            Camera(clock, [called(item) for item in items]),
            lines=LinesSink(tmp_path / "l.jsonl"),
            deadline=REUSE,
            clock=clock,
        )
        report = pipeline.run()
        assert report.error is None
        lines = (tmp_path / "l.jsonl").read_text().splitlines()
        return [json.loads(line)["state"] for line in lines]

    return start


def test_no_result_from_before_a_loss_is_reused_after_it(states):
    lost, back = Notice("camera_lost", "gone"), Notice("camera_back", "back")
    assert states(0, 99, lost, back, 99, 0, 99) == ["ok", "reused", "dropped", "ok", "reused"]


def test_no_result_from_before_a_silence_is_reused_after_it(states):
    def silence(pipeline, clock):
        for _ in range(2):
            clock.forward(10_001)
            pipeline.listen()

    assert states(0, silence, 99, 0, 99) == ["ok", "dropped", "ok", "reused"]


def test_a_short_wait_is_no_silence(states):
    def wait(pipeline, clock):
        clock.forward(100)
        pipeline.listen()

    assert states(0, wait, 99) == ["ok", "reused"]


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_run_that_is_interrupted_among_unreadable_frames_is_no_input_error(session, interrupted):
    stop = threading.Event()
    items = [BadFrame(0, "bad"), *([stop.set] if interrupted else [])]
    report = Pipeline(session, Camera(Clock(), items)).run(stop)
    assert report.corrupt == 1
    assert (report.error is None) == interrupted
