import os
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest

from edgeseg.data.samples import image_size, read_label
from edgeseg.data.samples import read_image as read_photo
from edgeseg.errors import InputError, MissingDependencyError, UsageError
from edgeseg.runtime import cameras, sources
from edgeseg.runtime.buffering import NewestFrame, Prefetch
from edgeseg.runtime.cameras import CameraSource
from edgeseg.runtime.frames import BadFrame, Frame, now_utc
from edgeseg.runtime.images import encode_indexed_png, read_image
from edgeseg.runtime.sources import natural_key, open_source

cv2 = pytest.importorskip("cv2")


def picture(value, height=48, width=64):
    return np.full((height, width, 3), value, np.uint8)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(value))
    return path


def write_video(path, frames=12, height=48, width=64):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 20, (width, height))
    for index in range(frames):
        writer.write(picture(index * 20, height, width))
    writer.release()
    return path


def drain(uri):
    source = open_source(str(uri))
    try:
        return list(source)
    finally:
        source.close()


def test_a_folder_is_searched_recursively_in_natural_order(tmp_path):
    for name in ("f10.png", "f2.png", "f1.jpg", "sub/a.png", ".hidden/b.png", ".c.png"):
        write(tmp_path / name, 50)
    (tmp_path / "notes.txt").write_text("no image")
    frames = drain(tmp_path)
    assert [frame.name for frame in frames] == ["f1.jpg", "f2.png", "f10.png", "sub/a.png"]
    assert [frame.stem for frame in frames] == ["f1", "f2", "f10", "sub/a"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image.dtype == np.uint8


def test_natural_order():
    names = ["a10", "a9b", "a9", "b1", "1", "02"]
    assert sorted(names, key=natural_key) == ["1", "02", "a9", "a9b", "a10", "b1"]


def test_a_pattern_takes_the_numbers_it_describes(tmp_path):
    for name in ("f_001.png", "f_010.png", "f_2.png", "g_001.png"):
        write(tmp_path / name, 50)
    assert [f.name for f in drain(tmp_path / "f_%03d.png")] == ["f_001.png", "f_010.png"]
    assert len(drain(tmp_path / "f_%d.png")) == 3
    with pytest.raises(InputError, match="matches no file"):
        drain(tmp_path / "h_%03d.png")


def test_the_content_counts_and_not_the_suffix(tmp_path):
    good, content = cv2.imencode(".jpg", picture(90))
    assert good
    for name in ("jpeg.png", "nosuffix"):
        (tmp_path / name).write_bytes(content.tobytes())
        (frame,) = drain(tmp_path / name)
        assert abs(int(frame.image.mean()) - 90) <= 2


def test_a_video_gives_every_frame_in_order(tmp_path):
    source = open_source(str(write_video(tmp_path / "clip.mp4")))
    assert source.fps == 20
    assert source.length == 12
    assert not source.live
    frames = list(source)
    source.close()
    assert [frame.index for frame in frames] == list(range(12))
    levels = [float(frame.image.mean()) for frame in frames]
    assert levels == sorted(levels)
    assert frames[3].stem == "clip_000003"
    assert all(frame.decode_ms > 0 for frame in frames)


def cut_png(content):
    return content[: len(content) // 2]


def flip_png(content):
    at = content.index(b"IDAT") + 10
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [cut_png, flip_png, lambda _: b"", lambda _: b"text"])
def test_a_corrupt_image_is_reported_and_the_rest_is_read(tmp_path, damage):
    for name in ("a.png", "b.png", "c.png"):
        path = tmp_path / name
        noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), noise)
    path = tmp_path / "b.png"
    path.write_bytes(damage(path.read_bytes()))
    first, second, third = drain(tmp_path)
    assert isinstance(first, Frame)
    assert isinstance(second, BadFrame)
    assert "b.png" in second.reason
    assert second.index == 1
    assert isinstance(third, Frame)
    assert third.index == 2


def test_a_jpeg_that_ends_too_early_is_corrupt_and_not_half_grey(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    content = cv2.imencode(".jpg", noise)[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is truncated"):
        read_image(tmp_path / "a.jpg")


def test_a_header_that_claims_gigapixels_is_refused_before_decoding(tmp_path):
    def chunk(tag, data):
        check = struct.pack(">I", zlib.crc32(tag + data))
        return struct.pack(">I", len(data)) + tag + data + check

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    for read in (read_image, read_photo, read_label):
        with pytest.raises(InputError, match="100000x100000"):
            read(tmp_path / "bomb.png")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as handle:
        handle.truncate(300 << 20)
    for read in (read_image, read_photo, read_label):
        with pytest.raises(InputError, match="has 300 MB"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_sizes_are_read_from_headers(suffix):
    content = cv2.imencode(suffix, picture(9, 33, 77))[1].tobytes()
    assert image_size(content) == (33, 77)
    for length in range(0, len(content), 7):  # no prefix of a file makes it fail
        image_size(content[:length])


def test_an_indexed_png_keeps_the_indices_and_shows_the_colours(tmp_path):
    image = pytest.importorskip("PIL.Image")
    indices = np.random.default_rng(0).integers(0, 19, (33, 50), dtype=np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (19, 3), dtype=np.uint8)
    path = tmp_path / "map.png"
    path.write_bytes(encode_indexed_png(indices, palette, {"Score": "0 = 1"}))
    with image.open(path) as opened:
        assert opened.text == {"Score": "0 = 1"}
        np.testing.assert_array_equal(np.asarray(opened), indices)
        np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), palette[indices])
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], palette[indices])


def test_a_video_cut_short_is_reported_where_it_ends(tmp_path):
    class Short:
        def __init__(self):
            self.left = 5

        def read(self):
            self.left -= 1
            return (True, picture(1)) if self.left >= 0 else (False, None)

    source = sources.VideoSource(write_video(tmp_path / "clip.mp4"))
    source.close()
    source._capture = Short()
    items = list(source)
    assert sum(isinstance(item, Frame) for item in items) == 5
    assert isinstance(items[-1], BadFrame)
    assert "5 of the 12 frames" in items[-1].reason


def test_a_corrupt_frame_inside_a_video_is_counted(tmp_path):
    class Gap:
        def __init__(self):
            self.index = -1

        def read(self):
            self.index += 1
            bad = self.index in (3, 4) or self.index >= 12
            return (False, None) if bad else (True, picture(1))

    source = sources.VideoSource(write_video(tmp_path / "clip.mp4"))
    source.close()
    source._capture = Gap()
    items = list(source)
    assert [item.index for item in items] == list(range(12))
    assert [item.index for item in items if isinstance(item, BadFrame)] == [3, 4]


@pytest.mark.parametrize(
    ("uri", "error", "says"),
    [
        ("nowhere.mp4", InputError, "does not exist"),
        ("983", InputError, "camera 983 does not exist"),
        ("v4l2:///dev/video983", InputError, "video983"),
        ("v4l2://video0", UsageError, "v4l2:///dev/video0"),
        ("csi://front", UsageError, "csi://0"),
        ("ftp://host/file", UsageError, "unknown kind"),
        ("", UsageError, "names nothing"),
        ("/dev/null", UsageError, "v4l2:///dev/video0 or --camera N"),
    ],
)
def test_inputs_that_cannot_be_opened(uri, error, says):
    with pytest.raises(error, match=says):
        open_source(uri)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    path = os.fsencode(tmp_path / "c") + b"\xff.mp4"
    write_video(tmp_path / "clip.mp4").rename(os.fsdecode(path))
    # In processes of their own: OpenCV ends them at such a name.
    code = (
        "import sys; from edgeseg.errors import InputError; from edgeseg.runtime import sources\n"
        "try: sources.open_source(sys.argv[1])\n"
        "except InputError as error: print(ascii(str(error)))"
    )
    for uri in (path, b"rtsp://me:secret@127.0.0.1/\xff"):
        command = [os.fsencode(sys.executable), b"-c", code.encode(), uri]
        result = subprocess.run(command, capture_output=True, check=True)
        assert b"is not UTF-8; rename it" in result.stdout
        assert b"secret" not in result.stdout


def test_pipes_among_the_files_are_not_waited_for(tmp_path):
    write(tmp_path / "real" / "1.png", 50)
    folder = tmp_path / "frames"
    folder.mkdir()
    os.mkfifo(folder / "2.png")
    (folder / "1.png").symlink_to("../real/1.png")
    (folder / "3.png").symlink_to("nowhere")
    for uri in (folder, folder / "%d.png"):
        first, second = drain(uri)
        assert (isinstance(first, Frame), first.name) == (True, "1.png")
        assert isinstance(second, BadFrame)
        assert "3.png" in second.reason
    with pytest.raises(InputError, match="not a regular file"):
        open_source(str(folder / "2.png"))


def test_csi_cameras_need_gstreamer(monkeypatch):
    monkeypatch.setattr(cameras, "opencv_has", lambda feature: False)
    with pytest.raises(MissingDependencyError, match="GStreamer"):
        open_source("csi://0")


class Opened:
    """A capture that is open and empty; remembers what it was opened with."""

    asked = ()

    def __init__(self, *arguments):
        Opened.asked = arguments

    def isOpened(self):  # noqa: N802
        return True

    def get(self, _):
        return 0.0

    def set(self, *_):
        return True

    def grab(self):
        return False

    def release(self):
        pass


def test_csi_frames_come_through_an_appsink_that_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(cameras, "opencv_has", lambda feature: feature == "GStreamer")
    monkeypatch.setattr(cameras.opencv(), "VideoCapture", Opened)
    source = open_source("csi://1")
    assert source.live
    pipeline, api = Opened.asked
    assert api == cv2.CAP_GSTREAMER
    elements = [element.strip() for element in pipeline.split("!")]
    assert elements[0] == "nvarguscamerasrc sensor-id=1"
    assert elements[-2] == "video/x-raw,format=BGR"
    assert elements[-1] == "appsink drop=true max-buffers=1 sync=false"
    source.close()


def test_streams_are_opened_with_time_limits(monkeypatch):
    monkeypatch.setattr(cameras.opencv(), "VideoCapture", Opened)
    open_source("rtsp://camera/stream").close()
    uri, api, options = Opened.asked
    assert (uri, api) == ("rtsp://camera/stream", cv2.CAP_FFMPEG)
    assert cv2.CAP_PROP_OPEN_TIMEOUT_MSEC in options
    assert cv2.CAP_PROP_READ_TIMEOUT_MSEC in options


def test_a_camera_without_its_promise_to_come_back_ends_the_source(monkeypatch):
    monkeypatch.setattr(cameras.opencv(), "VideoCapture", Opened)
    with pytest.raises(InputError, match="stopped delivering"):
        list(open_source("rtsp://camera/stream"))
    with pytest.raises(InputError, match="did not come back"):
        list(open_source("rtsp://camera/stream", reconnect_s=0.3))


@pytest.mark.parametrize(("name", "content"), [("e.mp4", b""), ("t.mp4", b"no video at all" * 99)])
def test_files_that_are_no_video(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        open_source(str(tmp_path / name))


def test_an_empty_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no images"):
        open_source(str(tmp_path))


class Clock:
    """A source that delivers a frame every few milliseconds, like a camera."""

    label = "clock"
    live = True
    length = None
    fps = None
    skipped = 0

    def __init__(self, frames, milliseconds, error=None):
        self.frames, self.seconds, self.error = frames, milliseconds / 1000, error
        self.closed = False

    def __iter__(self):
        for index in range(self.frames):
            time.sleep(self.seconds)
            image = picture(index)
            yield Frame(index, image, f"#{index}", f"{index}", now_utc(), time.monotonic_ns(), 0.1)
        if self.error:
            raise self.error

    def close(self):
        self.closed = True


def test_a_slow_reader_gets_the_newest_frame_of_a_camera_and_the_rest_is_counted():
    source = NewestFrame(Clock(40, 2))
    taken = []
    for frame in source:
        taken.append(frame.index)
        time.sleep(0.02)
    assert taken == sorted(set(taken))
    assert taken[-1] == 39
    assert source.skipped == 40 - len(taken) > 0


def test_a_slow_reader_gets_every_frame_of_a_file_fresh():
    ages = []
    for frame in Prefetch(Clock(10, 0)):
        ages.append((time.monotonic_ns() - frame.captured_mono_ns) / 1e6)
        time.sleep(0.01)
    assert len(ages) == 10
    # Were the wait in the queue counted, it would be 20 ms.
    assert np.median(ages) < 9


@pytest.mark.parametrize("kind", [Prefetch, NewestFrame])
def test_the_error_that_ends_a_source_reaches_the_reader(kind):
    camera = Clock(3, 1, InputError("camera lost"))
    source = kind(camera)
    with pytest.raises(InputError, match="camera lost"):
        for _ in source:
            pass
    source.close()
    assert camera.closed


@pytest.mark.parametrize("kind", [Prefetch, NewestFrame])
def test_a_stop_from_outside_ends_the_wait_for_a_camera(kind):
    stop = threading.Event()
    source = kind(Clock(1, 60_000), stop)
    threading.Timer(0.1, stop.set).start()
    start = time.perf_counter()
    assert list(source) == []
    assert time.perf_counter() - start < 2


def test_a_source_closed_before_it_was_read_lets_go_of_its_file():
    camera = Clock(1, 1)
    Prefetch(camera).close()
    assert camera.closed


def test_a_camera_that_stops_is_an_input_error():
    class Capture:
        left = 3

        def isOpened(self):  # noqa: N802
            return True

        def get(self, _):
            return 0.0

        def grab(self):
            self.left -= 1
            return self.left >= 0

        def retrieve(self):
            return (self.left != 1), picture(5)

        def release(self):
            pass

    items = []
    with pytest.raises(InputError, match="stopped delivering frames after 3"):
        items.extend(CameraSource(Capture(), "camera 0"))
    assert [type(item) for item in items] == [Frame, BadFrame, Frame]


def test_passwords_of_streams_stay_out_of_messages(monkeypatch):
    class Closed:
        def isOpened(self):  # noqa: N802
            return False

    monkeypatch.setattr(cameras.opencv(), "VideoCapture", lambda *_: Closed())
    with pytest.raises(InputError) as caught:
        open_source("rtsp://me:secret@camera/stream")
    assert "secret" not in str(caught.value)
    assert "rtsp://camera/stream" in str(caught.value)
