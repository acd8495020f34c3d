import pytest

from edgeseg.errors import InputError, UsageError
from edgeseg.runtime import cameras
from edgeseg.runtime.sources import open_source

pytest.importorskip("cv2")


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
