"""Cameras and streams: Video4Linux and what else OpenCV opens by number, CSI on Jetson, RTSP."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from edgeseg.data.samples import MAX_PIXELS, MAX_SIDE
from edgeseg.errors import InputError, MissingDependencyError, UsageError
from edgeseg.runtime.frames import BadFrame, Frame, Source, now_utc
from edgeseg.runtime.opencv import opencv, opencv_has

__all__ = ["CameraSource", "camera_opener", "check_size", "frame_rate", "without_password"]

_OPEN_MS: Final = 10_000
_READ_MS: Final = 5_000
# A first stamp that is older is another clock's.
_BELIEVED_NS: Final = 5_000_000_000


def camera_opener(uri: str) -> Callable[[], Source] | None:
    """What opens the camera or stream that ``uri`` names; ``None`` where it names none."""
    scheme, separator, rest = uri.partition("://")
    if uri.isdecimal():
        return lambda: CameraSource.v4l2(int(uri), f"camera {uri}")
    if separator:
        return lambda: _open_url(uri, scheme.lower(), rest)
    return None


class CameraSource:
    """A camera or stream: every frame as it comes; InputError when it stops coming.

    Args:
        capture: opened, of OpenCV.
        label: for messages.
        stamped: whether the capture's position is the driver's time stamp, as Video4Linux's is:
            then a frame's age counts from the exposure and not from when it was fetched.
    """

    live = True
    skipped = 0
    length: int | None = None

    def __init__(self, capture: Any, label: str, *, stamped: bool = False) -> None:
        if not capture.isOpened():
            raise InputError(
                f"{label} cannot be opened; check that it is connected and that no other "
                "program uses it ('edgeseg doctor' lists the cameras)"
            )
        check_size(capture, label)
        self._capture = capture
        self._stamped = stamped
        self._believed = False
        self.label = label
        self.fps = frame_rate(capture)

    @classmethod
    def v4l2(cls, device: int | str, label: str) -> "CameraSource":
        """A Video4Linux device by number or path."""
        cv2 = opencv()
        path = Path(f"/dev/video{device}") if isinstance(device, int) else Path(device)
        if os.name == "posix" and Path("/dev").is_dir() and not os.path.exists(path):
            raise InputError(
                f"{label} does not exist (there is no {path}); 'edgeseg doctor' lists the cameras"
            )
        linux = sys.platform == "linux"
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
        # One buffer: a queue in the driver would hand out frames that are already old.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return cls(capture, label, stamped=linux)

    def __iter__(self) -> Iterator[Frame | BadFrame]:
        index = 0
        while True:
            if not self._capture.grab():
                raise InputError(
                    f"{self.label} stopped delivering frames after {index}; check its connection"
                )
            # The frame exists from here on; what follows is work on it.
            captured_at, captured = now_utc(), time.monotonic_ns()
            waited = self._waited_ns(captured)
            captured_at, captured = (
                captured_at - timedelta(microseconds=waited / 1e3),
                captured - waited,
            )
            start = time.perf_counter_ns()
            good, image = self._capture.retrieve()
            if good and image is not None and image.size:
                yield Frame(
                    index=index,
                    image=image,
                    name=f"{self.label}#{index}",
                    stem=f"frame_{index:06d}",
                    captured_at=captured_at,
                    captured_mono_ns=captured,
                    decode_ms=(time.perf_counter_ns() - start) / 1e6,
                )
            else:
                yield BadFrame(index, f"frame {index} of {self.label} is corrupt")
            index += 1

    def close(self) -> None:
        """Let go of the files or the device."""
        self._capture.release()

    def _waited_ns(self, now: int) -> int:
        """How long ago the driver stamped the frame that was just grabbed."""
        if not self._stamped:
            return 0
        stamp = float(self._capture.get(opencv().CAP_PROP_POS_MSEC))
        waited = now - int(stamp * 1e6)
        if stamp <= 0 or waited < 0:
            return 0
        # Drivers that stamp with another clock, or not at all, are not believed. One that was
        # right once has our clock: a frame of a minute ago is then as old as it says.
        self._believed = self._believed or waited < _BELIEVED_NS
        return waited if self._believed else 0


def without_password(uri: str) -> str:
    """The URI as messages and files may show it."""
    # A password may hold every character, "/" and "@" among them.
    return re.sub(r"//.*@", "//", uri, flags=re.DOTALL)


def _open_url(uri: str, scheme: str, rest: str) -> CameraSource:
    shown = without_password(uri)
    if scheme == "v4l2":
        if not rest.startswith("/"):
            raise UsageError(f"input '{shown}' names no device; write v4l2:///dev/video0")
        return CameraSource.v4l2(rest, f"camera '{rest}'")
    if scheme in ("rtsp", "rtsps"):
        cv2 = opencv()
        options = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS),
        ]
        return CameraSource(cv2.VideoCapture(uri, cv2.CAP_FFMPEG, options), f"stream '{shown}'")
    if scheme == "csi":
        if not rest.isdecimal():
            raise UsageError(f"input '{shown}' names no sensor; write csi://0")
        if not opencv_has("GStreamer"):
            raise MissingDependencyError(
                f"input '{shown}' needs an OpenCV built with GStreamer, and this one is not; use "
                "JetPack's own OpenCV (uninstall opencv-python from this environment)"
            )
        cv2 = opencv()
        return CameraSource(cv2.VideoCapture(_csi(int(rest)), cv2.CAP_GSTREAMER), f"camera '{uri}'")
    raise UsageError(
        f"input '{shown}' is of an unknown kind; give a file, a folder, a camera number, "
        "v4l2:///dev/videoN, csi://N or rtsp://…"
    )


def _csi(sensor: int) -> str:
    # drop=true and one buffer: the appsink keeps only the newest frame.
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12 ! "
        "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


def check_size(capture: Any, label: str) -> None:
    """InputError where the frames of ``capture`` are larger than what is read."""
    cv2 = opencv()
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        capture.release()
        raise InputError(
            f"{label} has frames of {width:.0f}x{height:.0f} pixels; up to "
            f"{MAX_PIXELS >> 20} megapixels and {MAX_SIDE} pixels a side are read"
        )


def frame_rate(capture: Any) -> float | None:
    """Frames per second of ``capture``, where it tells a rate that can be."""
    fps = float(capture.get(opencv().CAP_PROP_FPS))
    return fps if 0.5 <= fps <= 1000 else None
