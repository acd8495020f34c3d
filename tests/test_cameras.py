import time

import numpy as np
import pytest

from edgeseg.errors import InputError, UsageError
from edgeseg.runtime import cameras
from edgeseg.runtime.sources import open_source

cv2 = pytest.importorskip("cv2")


class Closed:
    def isOpened(self):  # noqa: N802
        return False


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://me:secret@camera/stream", "'rtsp://camera/stream'"),
        ("rtsp://me:se/cret@camera/stream", "'rtsp://camera/stream'"),
        ("rtsps://me:sec@ret@camera/stream", "'rtsps://camera/stream'"),
        ("rtsp://me://secret@camera", "'rtsp://camera'"),
        ("http://me:secret@camera/stream", "'http://camera/stream'"),
        ("v4l2://me:secret@camera", "'v4l2://camera'"),
        ("csi://me:secret@0", "'csi://0'"),
    ],
)
def test_no_part_of_a_password_is_shown(monkeypatch, uri, shown):
    monkeypatch.setattr(cameras.opencv(), "VideoCapture", lambda *_: Closed())
    with pytest.raises((InputError, UsageError)) as caught:
        open_source(uri)
    assert shown in str(caught.value)
    for part in ("me:", "sec", "cret", "ret@"):
        assert part not in str(caught.value)


class Driver:
    """A capture whose next frame was stamped ``ago_ms`` before it is grabbed."""

    ago_ms = 0.0

    def isOpened(self):  # noqa: N802
        return True

    def get(self, key):
        return time.monotonic() * 1e3 - self.ago_ms if key == cv2.CAP_PROP_POS_MSEC else 0.0

    def grab(self):
        return True

    def retrieve(self):
        return True, np.zeros((8, 8, 3), np.uint8)

    def release(self):
        pass


def ages_ms(*stamped_ago):
    driver = Driver()
    source = iter(cameras.CameraSource(driver, "camera", stamped=True))
    ages = []
    for driver.ago_ms in stamped_ago:
        frame = next(source)
        ages.append((time.monotonic_ns() - frame.captured_mono_ns) / 1e6)
    return ages


def test_a_driver_that_was_right_once_is_believed_about_old_frames():
    told = (30, 4_900, 5_100, 60_000)
    for age, ago in zip(ages_ms(*told), told, strict=True):
        assert ago - 1 <= age < ago + 1_000


def test_a_driver_with_another_clock_is_never_believed():
    assert max(ages_ms(60_000, 60_000, 60_000)) < 1_000


def test_a_stamp_ahead_of_the_clock_is_not_believed_even_of_a_driver_that_was_right():
    assert ages_ms(30, -500)[1] < 1_000
