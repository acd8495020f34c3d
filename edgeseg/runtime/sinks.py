"""Where results go: pictures and arrays in a folder, a video, JSON lines."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import UsageError
from edgeseg.files import replacing
from edgeseg.runtime.images import colormap, encode_indexed_png
from edgeseg.runtime.line_file import READER_S, LineFile
from edgeseg.runtime.opencv import opencv, opencv_takes_name
from edgeseg.runtime.overlay import Painter
from edgeseg.runtime.safe import SAFE_CLASS
from edgeseg.runtime.shots import Shot, Sink

__all__ = ["FolderSink", "LinesSink", "Shot", "Sink", "VideoSink", "open_sink"]

_JPEG_QUALITY: Final = 90
_CODEC: Final = "mp4v"
_DEFAULT_FPS: Final = 25.0
_NAMES: Final = 256
_LOOK_EVERY: Final = 16
_RESERVE: Final = 16 << 20


def open_sink(target: Path, painter: Painter, palette: npt.ArrayLike, fps: float | None) -> Sink:
    """A video for ``FILE.mp4``, a folder for everything else without a suffix of its own.

    Raises:
        UsageError: a file of another kind, or a place that cannot be written to.
    """
    if target.suffix.lower() == ".mp4":
        return VideoSink(target, painter, fps)
    # Of os.path: a folder that may not be entered is told where writing fails.
    if os.path.isfile(target) or target.suffix.lower() in {".avi", ".mkv", ".mov", ".webm", ".gif"}:
        raise UsageError(f"--save '{target}' is neither a folder nor an .mp4 file; name one")
    return FolderSink(target, painter, palette)


class FolderSink:
    """Per frame: the picture, the class map, the score as array and as picture.

    ``NAME_overlay.jpg``; ``NAME_classes.png``, whose pixel values are the class indices (255
    everywhere in the safe state); ``NAME_score.npy``, float16; ``NAME_score.png``, whose pixel
    values are the heat that its ``Score`` text explains.
    """

    def __init__(self, folder: Path, painter: Painter, palette: npt.ArrayLike) -> None:
        self._folder = folder
        self._painter = painter
        self._palette = np.asarray(palette, np.uint8)
        self._inferno = colormap("INFERNO")
        self._safe_palette = np.zeros((SAFE_CLASS + 1, 3), np.uint8)
        self._safe_palette[: len(self._palette)] = self._palette
        self._safe_palette[SAFE_CLASS] = (220, 40, 40)
        # Names that collide (a.png and a.jpg) come close to each other; all of them would be a
        # memory that a camera fills.
        self._used: deque[str] = deque(maxlen=_NAMES)
        self.outputs = [str(folder)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None

    def write(self, shot: Shot) -> tuple[float, float]:
        """See :class:`Sink`."""
        start = time.perf_counter_ns()
        picture = shot.draw(self._painter)
        safe = shot.state == "safe"
        heat = (
            np.full(shot.score.shape, 255, np.uint8)
            if safe
            else self._painter.scale.apply(shot.score)
        )
        middle = time.perf_counter_ns()
        cv2 = opencv()
        stem = self._free_name(shot.stem)
        good, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        if not good:
            raise RuntimeError("the JPEG encoder failed")
        self._put(f"{stem}_overlay.jpg", jpeg.tobytes())
        palette = self._safe_palette if safe else self._palette
        self._put(f"{stem}_classes.png", encode_indexed_png(shot.class_map, palette))
        text = {"Score": self._painter.scale.describe()}
        self._put(f"{stem}_score.png", encode_indexed_png(heat, self._inferno, text))
        self._put_array(f"{stem}_score.npy", shot.score)
        end = time.perf_counter_ns()
        return (middle - start) / 1e6, (end - middle) / 1e6

    def close(self) -> None:
        """Nothing is left open between frames."""

    def _free_name(self, stem: str) -> str:
        # a.png and a.jpg of one folder are two frames.
        name, count = stem, 1
        while name in self._used:
            count += 1
            name = f"{stem}_{count}"
        self._used.append(name)
        return name

    def _put_array(self, name: str, score: npt.NDArray[Any]) -> None:
        with self._replacing(name) as new, new.open("wb") as out:
            np.save(out, np.ascontiguousarray(score, np.float16), allow_pickle=False)

    def _put(self, name: str, content: bytes) -> None:
        with self._replacing(name) as new:
            new.write_bytes(content)

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        path = self._folder / name
        try:
            # Waiting for the disk at every frame would hold back the next.
            with replacing(path, sync=False) as new:
                yield new
        except OSError as error:
            raise _unwritable(path, error) from None


class VideoSink:
    """The pictures as an MP4 (MPEG-4 part 2, which every OpenCV build can write)."""

    def __init__(self, path: Path, painter: Painter, fps: float | None) -> None:
        self._path = path
        self._painter = painter
        self._fps = fps if fps is not None and fps <= 240 else _DEFAULT_FPS
        self._writer: Any = None
        self._size: tuple[int, int] | None = None
        self._frames = 0
        self.outputs: list[str] = []
        if not opencv_takes_name(str(path)):
            raise UsageError(
                f"--save '{path}' has a name that is not UTF-8, and OpenCV writes no video under "
                "such; choose another"
            )
        if os.path.isdir(path):
            raise UsageError(
                f"--save '{path}' is a folder, and its name asks for a video; choose another name"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The suffix tells the encoder the container, so it must stay last.
            handle, name = tempfile.mkstemp(
                prefix=f".{path.stem}.", suffix=".part.mp4", dir=path.parent
            )
            os.close(handle)
        except OSError as error:
            raise _unwritable(path, error) from None
        self._temporary = Path(name)

    def write(self, shot: Shot) -> tuple[float, float]:
        """See :class:`Sink`; a frame of another size than the first is resized to it."""
        start = time.perf_counter_ns()
        picture = shot.draw(self._painter)
        middle = time.perf_counter_ns()
        cv2 = opencv()
        if self._writer is None:
            self._size = (picture.shape[1], picture.shape[0])
            codec = cv2.VideoWriter_fourcc(*_CODEC)
            self._writer = cv2.VideoWriter(str(self._temporary), codec, self._fps, self._size)
            if not self._writer.isOpened():
                raise UsageError(
                    f"--save '{self._path}': this OpenCV cannot write MP4 videos; save to a "
                    "folder instead"
                )
        if self._frames % _LOOK_EVERY == 0:
            self._check_room()
        self._frames += 1
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(picture)
        end = time.perf_counter_ns()
        return (middle - start) / 1e6, (end - middle) / 1e6

    def close(self) -> None:
        """Finish the container and give it its name; without a frame nothing is left."""
        if self._writer is None:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            return
        self._writer.release()
        self._writer = None
        try:
            if self._temporary.stat().st_size == 0:
                raise OSError(0, "the encoder wrote nothing")
            # mkstemp makes files that only their owner can read.
            self._temporary.chmod(0o666 & ~_umask())
            os.replace(self._temporary, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            raise _unwritable(self._path, error) from None
        self.outputs = [str(self._path)]

    def _check_room(self) -> None:
        # The encoder tells nobody of a full disk, and a video whose index finds no room cannot
        # be played.
        try:
            free = shutil.disk_usage(self._path.parent).free
        except OSError:
            return
        if free < _RESERVE:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise _unwritable(self._path, error) from None


class LinesSink:
    """A JSON object per line. Every line is whole once it is in the file, so that a robot can
    follow it, and what a power cut leaves can be read.

    Args:
        path: a file, a pipe or a device.
        patience_s: how long a line may wait for the reader of a pipe; then the pipe counts as one
            that cannot be written.
    """

    def __init__(self, path: Path, patience_s: float = 60.0) -> None:
        self._path = path
        self._patience_s = patience_s
        self._file: LineFile | None = None

    def open(self) -> None:
        """Make the file, or empty it: lines of an earlier run are not to be taken for this one's.
        The first :meth:`write` does it as well.

        Raises:
            UsageError: it cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = LineFile(self._path, reader_s=READER_S, patience_s=self._patience_s)
        except OSError as error:
            raise _unwritable(self._path, error, "--jsonl") from None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append ``record``."""
        line = json.dumps(record, allow_nan=False) + "\n"
        if self._file is None:
            self.open()
        assert self._file is not None
        try:
            self._file.write(line)
        except OSError as error:
            raise _unwritable(self._path, error, "--jsonl") from None

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            raise _unwritable(self._path, error, "--jsonl") from None

    @property
    def outputs(self) -> list[str]:
        """The file, where it was opened."""
        return [] if self._file is None else [str(self._path)]


def _unwritable(path: Path, error: OSError, option: str = "--save") -> UsageError:
    reason = re.sub(r"\s+", " ", error.strerror or str(error))
    return UsageError(f"{option} '{path}' cannot be written ({reason}); choose another place")


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask
