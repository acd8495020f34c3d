import itertools
import threading
import time

import numpy as np
import pytest

from edgeseg.errors import InputError
from edgeseg.runtime.cameras import CameraSource
from edgeseg.runtime.deadline import Problem
from edgeseg.runtime.frames import BadFrame, Frame, Notice, now_utc
from edgeseg.runtime.health import FrameHealth, check_features, check_result
from edgeseg.runtime.live_sources import PacedSource, ReconnectingSource
from edgeseg.runtime.session import Result
from edgeseg.runtime.sources import open_source

cv2 = pytest.importorskip("cv2")
SIZE = (120, 200)


def exposure(seed, scene=None):
    """A scene with a sensor's noise; without one, noise alone."""
    rng = np.random.default_rng(seed)
    if scene is None:
        return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    noise = rng.integers(-3, 4, (*SIZE, 3))
    return np.clip(scene.astype(int) + noise, 0, 255).astype(np.uint8)


def still():
    rows = np.linspace(40, 200, SIZE[0])[:, None, None]
    return np.broadcast_to(rows, (*SIZE, 3)).astype(np.uint8)


def kinds(health, images):
    found = [health.check(image) for image in images]
    return [None if problem is None else problem.kind for problem in found]


def test_a_standing_car_s_camera_is_not_frozen():
    assert kinds(FrameHealth(), [exposure(i, still()) for i in range(60)]) == [None] * 60


def test_a_frozen_camera_is_noticed_at_the_third_repetition_and_is_fine_when_it_moves():
    a, b = exposure(0), exposure(1)
    assert kinds(FrameHealth(), [a, a, a, a, a, b]) == [None, None, None, "frozen", "frozen", None]


@pytest.mark.parametrize(("level", "kind"), [(0, "black"), (5, "black"), (90, "blank")])
def test_black_frames_and_frames_of_one_colour(level, kind):
    image = np.full((*SIZE, 3), level, np.uint8)
    assert kinds(FrameHealth(), [exposure(0), image, exposure(1)]) == [None, kind, None]


def test_a_night_with_lamps_is_not_black():
    night = np.full((*SIZE, 3), 6, np.uint8)
    night[40:60, 80:110] = 220
    assert kinds(FrameHealth(), [exposure(i, night) for i in range(20)]) == [None] * 20


def filled(image):
    image = image.copy()
    image[80:] = (0, 135, 0)
    return image


def test_a_frame_that_the_decoder_filled_up_is_torn():
    good = [exposure(i) for i in range(12)]
    assert kinds(FrameHealth(), [*good, filled(exposure(20)), exposure(21)])[-2:] == ["torn", None]


def test_a_frame_whose_lower_part_is_the_one_before_is_torn():
    good = [exposure(i) for i in range(12)]
    mixed = exposure(30)
    mixed[60:] = good[-1][60:]
    assert kinds(FrameHealth(), [*good, mixed, exposure(31)])[-2:] == ["torn", None]


def test_a_bonnet_that_never_changes_is_no_tear():
    bonnet = exposure(99)[90:]
    images = []
    for index in range(30):
        image = exposure(index)
        image[90:] = bonnet
        images.append(image)
    assert kinds(FrameHealth(), images) == [None] * 30


def test_bars_below_the_picture_are_no_tear():
    images = [filled(exposure(index)) for index in range(30)]
    assert kinds(FrameHealth(), images) == [None] * 30


def test_a_change_of_size_is_no_fault():
    assert kinds(FrameHealth(), [exposure(0), exposure(1)[:60], exposure(2)]) == [None] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(value):
    features = np.random.default_rng(0).normal(0, 5, (1, 16, 32, 64)).astype(np.float32)
    assert check_features(features) is None
    features[0, 7, 3, 9] = value
    problem = check_features(features)
    assert problem is not None
    assert problem.kind == "not_finite"


def result(score):
    return Result(np.zeros(score.shape, np.uint8), score.astype(np.float16))


def test_results_that_no_scene_gives():
    rng = np.random.default_rng(0)
    image = exposure(0)

    def kind(score, picture=image):
        problem = check_result(result(score), picture, (0.0, 1.0))
        return problem.kind if isinstance(problem, Problem) else None

    assert kind(rng.random((64, 128))) is None
    assert kind(np.ones((64, 128))) == "saturated"
    assert kind(np.zeros((64, 128))) == "constant"
    assert kind(np.full((64, 128), np.nan)) == "not_finite"
    # A large obstacle right before the camera is no fault of the network.
    near = np.zeros((64, 128))
    near[:, 10:] = 1
    assert kind(near) is None
    # What shows nothing may have any result.
    assert kind(np.zeros((64, 128)), np.full((*SIZE, 3), 9, np.uint8)) is None


class Unsteady:
    """Opens as scripted; a number is how many frames come before it is lost."""

    live, length, fps, skipped, label = True, None, 30.0, 0, "camera 0"

    def __init__(self, count):
        self.count, self.closed = count, False

    def __iter__(self):
        for index in range(self.count):
            image = np.zeros((8, 8, 3), np.uint8)
            if index == 1:
                yield BadFrame(index, "corrupt")
                continue
            yield Frame(index, image, f"#{index}", f"frame_{index:06d}", now_utc(), 1, 0.1)
        raise InputError("camera 0 stopped delivering frames")

    def close(self):
        self.closed = True


def opener(script):
    opened = []

    def open_next():
        step = script.pop(0)
        if step is None:
            raise InputError("camera 0 cannot be opened")
        opened.append(Unsteady(step))
        return opened[-1]

    return open_next, opened


def test_a_lost_camera_is_opened_again_and_its_numbers_go_on():
    open_next, opened = opener([3, None, None, 2, *[None] * 99])
    source = ReconnectingSource(open_next, 0.4, first_wait_s=0.01)
    items = []
    with pytest.raises(InputError, match=r"did not come back within 0\.4 s"):
        items.extend(source)
    told = [item.event for item in items if isinstance(item, Notice)]
    assert told == ["camera_lost", "camera_back", "camera_lost"]
    frames = [item for item in items if not isinstance(item, Notice)]
    assert [item.index for item in frames] == [0, 1, 2, 3, 4]
    assert frames[3].stem == "frame_000003"
    assert all(one.closed for one in opened)


def test_the_wait_between_two_tries_doubles():
    times = []

    def never():
        times.append(time.monotonic())
        if len(times) > 1:
            raise InputError("gone")
        return Unsteady(1)

    source = ReconnectingSource(never, 0.7, first_wait_s=0.05)
    with pytest.raises(InputError):
        list(source)
    assert 3 <= len(times) - 1 <= 6  # at 0.05, 0.15, 0.35, 0.7


def test_a_camera_that_is_not_there_at_the_start_is_said_at_once():
    open_next, _ = opener([None])
    with pytest.raises(InputError, match="cannot be opened"):
        ReconnectingSource(open_next, 60)


def test_a_stop_ends_the_search_for_a_camera():
    stop = threading.Event()
    open_next, _ = opener([1, *[None] * 999])
    source = ReconnectingSource(open_next, 600, stop, first_wait_s=0.01)
    threading.Timer(0.1, stop.set).start()
    start = time.perf_counter()
    assert [type(item) for item in source] == [Frame, Notice]
    assert time.perf_counter() - start < 5


def test_files_played_as_a_camera_repeat_with_numbers_that_go_on(tmp_path):
    for index in range(3):
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), exposure(index))
    source = open_source(str(tmp_path), as_camera=True)
    assert source.live
    frames = list(itertools.islice((f for f in source if isinstance(f, Frame)), 5))
    source.close()
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert indices[-1] >= 4
    np.testing.assert_array_equal(frames[-1].image, exposure(indices[-1] % 3))


def test_files_played_as_a_camera_keep_their_pace(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), exposure(0))
    start = time.monotonic_ns()
    source = open_source(str(tmp_path), as_camera=True)
    frames = list(itertools.islice(iter(source), 4))
    source.close()
    last = frames[-1]
    assert isinstance(last, Frame)
    # 25 a second: the n-th frame cannot come before n periods have passed.
    assert last.captured_mono_ns - start >= last.index * 40e6 - 1e6


def test_a_folder_without_a_readable_image_does_not_spin_for_ever(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    source = PacedSource(lambda: open_source(str(tmp_path)))
    with pytest.raises(InputError, match="no frame that can be read"):
        list(source)


class Stamped:
    """A capture whose frames carry the driver's time stamp, in milliseconds."""

    def __init__(self, ago_ms):
        self.ago_ms = ago_ms

    def isOpened(self):  # noqa: N802
        return True

    def get(self, key):
        if key != cv2.CAP_PROP_POS_MSEC:
            return 0.0
        return 0.0 if self.ago_ms is None else time.monotonic_ns() / 1e6 - self.ago_ms

    def grab(self):
        return True

    def retrieve(self):
        return True, exposure(0)

    def release(self):
        pass


@pytest.mark.parametrize(
    ("ago", "stamped", "expected"),
    [(30, True, 30), (30, False, 0), (None, True, 0), (60_000, True, 0), (-500, True, 0)],
)
def test_a_frame_is_as_old_as_the_driver_says_if_that_can_be(ago, stamped, expected):
    before = time.monotonic_ns()
    frame = next(iter(CameraSource(Stamped(ago), "camera", stamped=stamped)))
    after = time.monotonic_ns()
    assert isinstance(frame, Frame)
    assert before - expected * 1e6 - 1e6 <= frame.captured_mono_ns <= after - expected * 1e6 + 1e6
