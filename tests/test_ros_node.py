"""The ROS 2 node of the README, run on stand-ins for rclpy and its messages."""

import re
import sys
import types
from typing import ClassVar

import numpy as np
import pytest

from edgeseg.runtime.session import Session
from edgeseg.scoring.kernels import resize_bilinear
from tests.bundles import make_bundle
from tests.conftest import ROOT

pytest.importorskip("cv2")

SECOND = 1_000_000_000


class Record:
    """A message: fields by keyword, as the generated classes take them."""

    def __init__(self, **fields):
        unknown = set(fields) - set(self.names)
        assert not unknown, unknown
        vars(self).update(fields)


class Stamp:
    def __init__(self, nanoseconds):
        self.sec, self.nanosec = divmod(nanoseconds, SECOND)


class Header:
    def __init__(self, nanoseconds=0):
        self.stamp, self.frame_id = Stamp(nanoseconds), "camera"


class Image(Record):
    names = ("header", "height", "width", "encoding", "is_bigendian", "step", "data")

    def __init__(self, **fields):
        self.header = Header()
        super().__init__(**fields)


class DiagnosticStatus(Record):
    OK, WARN, ERROR = b"\0", b"\1", b"\2"
    names = ("level", "name", "message", "hardware_id", "values")


class Time:
    def __init__(self, nanoseconds):
        self.nanoseconds = nanoseconds

    @classmethod
    def from_msg(cls, stamp):
        return cls(stamp.sec * SECOND + stamp.nanosec)

    def to_msg(self):
        return Stamp(self.nanoseconds)

    def __sub__(self, other):
        return types.SimpleNamespace(nanoseconds=self.nanoseconds - other.nanoseconds)


class Node:
    parameters: ClassVar[dict[str, object]] = {}

    def __init__(self, name):
        self.name, self.now, self.published = name, 100 * SECOND, []

    def declare_parameter(self, name, default):
        return types.SimpleNamespace(value=self.parameters.get(name, default))

    def get_clock(self):
        return types.SimpleNamespace(now=lambda: Time(self.now))

    def create_publisher(self, kind, topic, depth):
        def publish(message):
            assert isinstance(message, kind)
            self.published.append((topic, message))

        return types.SimpleNamespace(publish=publish)

    def create_subscription(self, kind, topic, callback, profile):
        assert (kind, topic, profile["depth"]) == (Image, "image", 1)
        self.receive = callback

    def create_timer(self, seconds, callback):
        self.tick = callback

    def take(self):
        published, self.published = self.published, []
        return published


def modules():
    def module(name, **content):
        made = types.ModuleType(name)
        vars(made).update(content)
        return {name: made}

    policy = types.SimpleNamespace(BEST_EFFORT="best effort")
    return {
        **module("rclpy"),
        **module("rclpy.node", Node=Node),
        **module("rclpy.qos", QoSProfile=dict, ReliabilityPolicy=policy),
        **module("rclpy.time", Time=Time),
        **module("sensor_msgs"),
        **module("sensor_msgs.msg", Image=Image),
        **module("diagnostic_msgs"),
        **module("diagnostic_msgs.msg", DiagnosticStatus=DiagnosticStatus),
    }


def section():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"^## A ROS 2 node\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "small")


@pytest.fixture
def node(monkeypatch, bundle):
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Node, "parameters", {"bundle": str(bundle), "deadline_ms": 60_000.0})
    code = re.search(r"```python\n(.*?)```", section(), re.DOTALL)[1]
    scope = {"__name__": "node"}
    exec(compile(code, "README.md", "exec"), scope)
    made = scope["Segmenter"]()
    yield made
    made.session.close()


def picture(age_ns, *, seed=0, encoding="bgr8", padding=5, header=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    rows = np.pad(pixels.reshape(90, 480), ((0, 0), (0, padding)))
    message = Image(
        header=header or Header(100 * SECOND - age_ns),
        **{"height": 90, "width": 160, "encoding": encoding, "step": 480 + padding},
        data=rows.tobytes(),
    )
    return pixels, message


def array_of(message):
    kind = {"mono8": np.uint8, "32FC1": np.float32}[message.encoding]
    assert message.step == message.width * np.dtype(kind).itemsize
    return np.frombuffer(message.data, kind).reshape(message.height, message.width)


@pytest.mark.parametrize("encoding", ["bgr8", "rgb8"])
def test_a_frame_comes_out_as_the_session_gives_it(node, bundle, encoding):
    pixels, message = picture(SECOND, encoding=encoding)
    node.receive(message)
    (_, status), (classes_topic, classes), (score_topic, score) = node.take()
    assert (status.level, status.name, status.message) == (b"\0", "edgeseg", "ok")
    assert (classes_topic, score_topic) == ("~/classes", "~/score")
    assert classes.header is score.header is message.header
    with Session(bundle) as session:
        bgr = np.ascontiguousarray(pixels[..., ::-1]) if encoding == "rgb8" else pixels
        expected = session.run(resize_bilinear(bgr, *session.size))
        assert np.array_equal(array_of(classes), expected.class_map)
        assert np.array_equal(array_of(score), expected.score.astype(np.float32))


def test_late_frames_give_no_result_and_lead_into_the_safe_state(node):
    for seed in range(3):
        node.receive(picture(61 * SECOND, seed=seed)[1])
    told = [(topic, message) for topic, message in node.take() if topic == "~/state"]
    assert [m.message for _, m in told] == ["dropped", "dropped", "safe"]
    assert [m.level for _, m in told] == [b"\1", b"\1", b"\2"]
    # One good frame does not end it, and its result is not told.
    node.receive(picture(0, seed=9)[1])
    (_, status), (_, classes), (_, score) = node.take()
    assert status.message == "safe"
    assert (array_of(classes) == 255).all()
    assert np.ptp(array_of(score)) == 0


def test_silence_is_told_with_a_time_of_its_own(node, monkeypatch):
    node.receive(picture(0)[1])
    node.take()
    node.tick()
    assert node.take() == []
    later = node.guard._clock() + 301 * SECOND  # five deadlines and a little
    monkeypatch.setattr(node.guard, "_clock", lambda: later)
    node.now = 500 * SECOND
    node.tick()
    (_, status), (_, classes), _ = node.take()
    assert (status.level, status.message) == (b"\2", "safe")
    assert classes.header.stamp.sec == 500
    assert (array_of(classes) == 255).all()


def test_the_readme_says_that_it_was_not_run_on_ros():
    assert "not on ROS" in section()
