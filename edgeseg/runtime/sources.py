"""Where frames come from: images, folders, patterns, video files, cameras, streams."""

import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from edgeseg.errors import InputError, UsageError
from edgeseg.runtime.buffering import NewestFrame, Prefetch
from edgeseg.runtime.cameras import camera_opener, check_size, frame_rate, without_password
from edgeseg.runtime.frames import BadFrame, Frame, Source, now_utc
from edgeseg.runtime.images import IMAGE_SUFFIXES, looks_like_image, read_image
from edgeseg.runtime.live_sources import PacedSource, ReconnectingSource
from edgeseg.runtime.opencv import opencv, opencv_takes_name

__all__ = ["ImageSource", "VideoSource", "natural_key", "open_source"]

# Names have no more digits than that, and "re" takes no width beyond its own limit.
_PATTERN: Final = re.compile(r"%(0?)(\d{0,9})d")
# A container's frame count is an estimate: this share may be missing without a word.
_TOLERATED: Final = 0.02
_MAX_GAP: Final = 250


def open_source(
    uri: str,
    stop: threading.Event | None = None,
    *,
    reconnect_s: float | None = None,
    as_camera: bool = False,
) -> Source:
    """The source that ``uri`` names, read ahead in a thread; ``stop`` ends its iteration.

    ``0`` or ``v4l2:///dev/video0``, ``csi://0``, ``rtsp://…``, a video file, a folder (searched
    recursively, natural order), an image, or a pattern such as ``frame_%03d.png``.

    Args:
        uri: what to open.
        stop: ends the iteration.
        reconnect_s: for how long a lost camera is looked for; ``None``: its loss ends the
            source.
        as_camera: plays files at their rate, over and over, the newest frame only.

    Raises:
        InputError: it does not exist, holds no frames, or cannot be opened.
        UsageError: a kind of URI that is not known, or a camera's device named as if it were a
            file.
        MissingDependencyError: OpenCV, or its GStreamer for ``csi://``, is missing.
    """
    if not uri:
        # It would be taken for the current folder.
        raise UsageError(
            "input '' names nothing; give an image, a folder, a video file, a camera or a stream"
        )
    camera = camera_opener(uri)
    if camera is not None:
        _check_encodable(uri)
        if reconnect_s is None:
            return NewestFrame(camera(), stop)
        return NewestFrame(ReconnectingSource(camera, reconnect_s, stop), stop)
    if as_camera:
        return NewestFrame(PacedSource(lambda: _open_file(uri), stop), stop)
    return Prefetch(_open_file(uri), stop)


def _open_file(uri: str) -> Source:
    path = Path(uri)
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        return ImageSource(_images_in(path), path, label=uri)
    if mode is not None:
        _check_regular(path, mode)
        if looks_like_image(path):
            return ImageSource([path], path.parent, label=uri)
        return VideoSource(path)
    if _PATTERN.search(path.name):
        return ImageSource(_matching(path), path.parent, label=uri)
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
        _check_encodable(self.label)
        try:
            if path.stat().st_size == 0:
                raise InputError(f"input '{path}' is empty; copy it again")
        except OSError as error:
            raise _unreadable(path, error) from None
        self._capture = _capture(os.fspath(path), cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise InputError(
                f"input '{path}' is neither an image nor a video that this OpenCV can open; "
                "convert it to an MP4"
            )
        check_size(self._capture, self.label)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.length: int | None = int(count) if 0 < count < 1 << 31 else None
        self.fps = frame_rate(self._capture)

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


def _capture(name: str, api: int) -> Any:
    cv2 = opencv()
    try:
        return cv2.VideoCapture(name, api)
    except cv2.error:
        return cv2.VideoCapture()


def _check_encodable(name: str) -> None:
    if not opencv_takes_name(name):
        raise InputError(
            f"input '{without_password(name)}' has a name that is not UTF-8; rename it"
        )


def _mode(path: Path) -> int | None:
    """What ``path`` is, as ``st_mode`` says; ``None`` where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str | Path, error: OSError) -> InputError:
    return InputError(
        f"input '{path}' cannot be read ({error.strerror}); check the path and its permissions"
    )


def _check_regular(path: Path, mode: int) -> None:
    """Reading from a pipe may wait for ever, and a camera's device is no file of frames."""
    if stat.S_ISCHR(mode):
        camera = path.absolute() if path.name.startswith("video") else "/dev/video0"
        raise UsageError(
            f"input '{path}' is a device, not a file; for a camera give v4l2://{camera} or "
            "--camera N"
        )
    if not stat.S_ISREG(mode):
        raise InputError(f"input '{path}' is not a regular file; give a file or a folder")


def _readable(path: Path) -> bool:
    """Whether reading ends: of regular files, and of what is not there, which the reader tells."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _images_in(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> NoReturn:
        # Frames that are left out without a word would look like a shorter drive.
        raise _unreadable(error.filename, error)

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            path
            for name in files
            if not name.startswith(".")
            and (path := Path(parent, name)).suffix.lower() in IMAGE_SUFFIXES
            and _readable(path)
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
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise _unreadable(folder, error) from None
    found = sorted(
        (int(m.group(1)), m.string)
        for m in map(regex.fullmatch, names)
        if m and _readable(folder / m.string)
    )
    if not found:
        raise InputError(f"input '{pattern}' matches no file; check the path and the number")
    return [folder / name for _, name in found]
