"""Where frames come from: images, folders, patterns, video files, cameras, streams."""

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edgeseg.errors import InputError, MissingDependencyError, UsageError
from edgeseg.runtime.buffering import NewestFrame, Prefetch
from edgeseg.runtime.frames import BadFrame, Frame, Source, now_utc
from edgeseg.runtime.images import IMAGE_SUFFIXES, looks_like_image, read_image
from edgeseg.runtime.opencv import MAX_PIXELS, opencv, opencv_has

__all__ = ["CameraSource", "ImageSource", "VideoSource", "natural_key", "open_source"]

_PATTERN: Final = re.compile(r"%(0?)(\d*)d")
_OPEN_MS: Final = 10_000
_READ_MS: Final = 5_000
# A container's frame count is an estimate: this share may be missing without a word.
_TOLERATED: Final = 0.02
_MAX_GAP: Final = 250


def open_source(uri: str, stop: threading.Event | None = None) -> Source:
    """The source that ``uri`` names, read ahead in a thread; ``stop`` ends its iteration.

    ``0`` or ``v4l2:///dev/video0``, ``csi://0``, ``rtsp://…``, a video file, a folder (searched
    recursively, natural order), an image, or a pattern such as ``frame_%03d.png``.

    Raises:
        InputError: it does not exist, holds no frames, or cannot be opened.
        UsageError: a kind of URI that is not known.
        MissingDependencyError: OpenCV, or its GStreamer for ``csi://``, is missing.
    """
    scheme, separator, rest = uri.partition("://")
    if uri.isdecimal():
        return NewestFrame(CameraSource.v4l2(int(uri), f"camera {uri}"), stop)
    if separator:
        return NewestFrame(_open_url(uri, scheme.lower(), rest), stop)
    path = Path(uri)
    if path.is_dir():
        return Prefetch(ImageSource(_images_in(path), path, label=uri), stop)
    if path.exists():
        if looks_like_image(path):
            return Prefetch(ImageSource([path], path.parent, label=uri), stop)
        return Prefetch(VideoSource(path), stop)
    if _PATTERN.search(path.name):
        return Prefetch(ImageSource(_matching(path), path.parent, label=uri), stop)
    raise InputError(f"input '{uri}' does not exist; check the path")


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts ``frame2`` before ``frame10``."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


class ImageSource:
    """Image files in the order given."""

    live = False
    fps: float | None = None
    skipped = 0

    def __init__(self, paths: Sequence[Path], root: Path, *, label: str) -> None:
        self._paths = paths
        self._root = root
        self.label = label
        self.length: int | None = len(paths)

    def __iter__(self) -> Iterator[Frame | BadFrame]:
        for index, path in enumerate(self._paths):
            start = time.perf_counter_ns()
            try:
                image = read_image(path)
            except InputError as error:
                yield BadFrame(index, str(error))
                continue
            relative = path.relative_to(self._root)
            yield Frame(
                index=index,
                image=image,
                name=str(relative),
                stem=str(relative.with_suffix("")),
                captured_at=now_utc(),
                captured_mono_ns=time.monotonic_ns(),
                decode_ms=(time.perf_counter_ns() - start) / 1e6,
            )

    def close(self) -> None:
        """Let go of the files or the device."""
        self._paths = ()


class VideoSource:
    """A video file, every frame in order."""

    live = False
    skipped = 0

    def __init__(self, path: Path) -> None:
        cv2 = opencv()
        self.label = str(path)
        self._stem = path.stem
        try:
            if path.stat().st_size == 0:
                raise InputError(f"input '{path}' is empty; copy it again")
        except OSError as error:
            raise InputError(f"input '{path}' cannot be read ({error.strerror})") from None
        self._capture = _capture(os.fspath(path), cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise InputError(
                f"input '{path}' is neither an image nor a video that this OpenCV can open; "
                "convert it to an MP4"
            )
        _check_size(self._capture, self.label)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.length: int | None = int(count) if 0 < count < 1 << 31 else None
        self.fps = _rate(self._capture)

    def __iter__(self) -> Iterator[Frame | BadFrame]:
        index = 0
        gap: list[int] = []
        while True:
            start = time.perf_counter_ns()
            good, image = self._capture.read()
            if good and image is not None and image.size:
                for missing in gap:
                    yield BadFrame(missing, f"frame {missing} of '{self.label}' is corrupt")
                gap.clear()
                yield Frame(
                    index=index,
                    image=image,
                    name=f"{Path(self.label).name}#{index}",
                    stem=f"{self._stem}_{index:06d}",
                    captured_at=now_utc(),
                    captured_mono_ns=time.monotonic_ns(),
                    decode_ms=(time.perf_counter_ns() - start) / 1e6,
                )
            else:
                # A frame that fails and the end of the file look alike; frames that come
                # afterwards tell them apart.
                gap.append(index)
                if self.length is None or index >= self.length or len(gap) > _MAX_GAP:
                    break
            index += 1
        read = gap[0]
        if self.length is not None and self.length - read > max(2, _TOLERATED * self.length):
            yield BadFrame(
                read, f"'{self.label}' ends after {read} of the {self.length} frames it promises"
            )

    def close(self) -> None:
        """Let go of the files or the device."""
        self._capture.release()


class CameraSource:
    """A camera or stream: every frame as it comes; InputError when it stops coming."""

    live = True
    skipped = 0
    length: int | None = None

    def __init__(self, capture: Any, label: str) -> None:
        if not capture.isOpened():
            raise InputError(
                f"{label} cannot be opened; check that it is connected and that no other "
                "program uses it ('edgeseg doctor' lists the cameras)"
            )
        _check_size(capture, label)
        self._capture = capture
        self.label = label
        self.fps = _rate(capture)

    @classmethod
    def v4l2(cls, device: int | str, label: str) -> "CameraSource":
        """A Video4Linux device by number or path."""
        cv2 = opencv()
        path = Path(f"/dev/video{device}") if isinstance(device, int) else Path(device)
        if os.name == "posix" and Path("/dev").is_dir() and not path.exists():
            raise InputError(
                f"{label} does not exist (there is no {path}); 'edgeseg doctor' lists the cameras"
            )
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        # One buffer: a queue in the driver would hand out frames that are already old.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return cls(capture, label)

    def __iter__(self) -> Iterator[Frame | BadFrame]:
        index = 0
        while True:
            start = time.perf_counter_ns()
            if not self._capture.grab():
                raise InputError(
                    f"{self.label} stopped delivering frames after {index}; check its connection"
                )
            # The frame exists from here on; what follows is work on it.
            captured_at, captured = now_utc(), time.monotonic_ns()
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


def _open_url(uri: str, scheme: str, rest: str) -> CameraSource:
    if scheme == "v4l2":
        if not rest.startswith("/"):
            raise UsageError(f"input '{uri}' names no device; write v4l2:///dev/video0")
        return CameraSource.v4l2(rest, f"camera '{rest}'")
    if scheme in ("rtsp", "rtsps"):
        cv2 = opencv()
        options = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS),
        ]
        shown = re.sub(r"//[^/@]*@", "//", uri)  # no passwords in messages and files
        return CameraSource(cv2.VideoCapture(uri, cv2.CAP_FFMPEG, options), f"stream '{shown}'")
    if scheme == "csi":
        if not rest.isdecimal():
            raise UsageError(f"input '{uri}' names no sensor; write csi://0")
        if not opencv_has("GStreamer"):
            raise MissingDependencyError(
                f"input '{uri}' needs an OpenCV built with GStreamer, and this one is not; use "
                "JetPack's own OpenCV (uninstall opencv-python from this environment)"
            )
        cv2 = opencv()
        return CameraSource(cv2.VideoCapture(_csi(int(rest)), cv2.CAP_GSTREAMER), f"camera '{uri}'")
    raise UsageError(
        f"input '{uri}' is of an unknown kind; give a file, a folder, a camera number, "
        "v4l2:///dev/videoN, csi://N or rtsp://…"
    )


def _csi(sensor: int) -> str:
    # drop=true and one buffer: the appsink keeps only the newest frame.
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12 ! "
        "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


def _capture(name: str, api: int) -> Any:
    cv2 = opencv()
    try:
        return cv2.VideoCapture(name, api)
    except cv2.error:
        return cv2.VideoCapture()


def _check_size(capture: Any, label: str) -> None:
    cv2 = opencv()
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if width * height > MAX_PIXELS:
        capture.release()
        raise InputError(
            f"{label} has frames of {width:.0f}x{height:.0f} pixels; up to "
            f"{MAX_PIXELS >> 20} megapixels are read"
        )


def _rate(capture: Any) -> float | None:
    fps = float(capture.get(opencv().CAP_PROP_FPS))
    return fps if 0.5 <= fps <= 1000 else None


def _images_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    if not found:
        raise InputError(f"input '{folder}' holds no images; give a folder with PNG or JPEG files")
    return sorted(found, key=lambda path: natural_key(str(path)))


def _matching(pattern: Path) -> list[Path]:
    parts = _PATTERN.split(pattern.name)
    if len(parts) != 4:
        raise UsageError(f"input '{pattern}' has more than one number in its pattern; give one")
    before, zero, digits, after = parts
    number = rf"\d{{{digits},}}" if zero and digits else r"\d+"
    regex = re.compile(f"{re.escape(before)}({number}){re.escape(after)}")
    folder = pattern.parent
    names = os.listdir(folder) if folder.is_dir() else []
    found = sorted((int(m.group(1)), m.string) for m in map(regex.fullmatch, names) if m)
    if not found:
        raise InputError(f"input '{pattern}' matches no file; check the path and the number")
    return [folder / name for _, name in found]
