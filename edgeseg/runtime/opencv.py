"""OpenCV, imported late and set up once: it is an extra, and a device may bring its own build."""

import os
from functools import cache
from typing import Any

from edgeseg.data.samples import MAX_PIXELS
from edgeseg.errors import MissingDependencyError

__all__ = ["opencv", "opencv_has", "opencv_takes_name"]


@cache
def opencv() -> Any:
    """The ``cv2`` module; MissingDependencyError where there is none that works."""
    # Both are read once, when the library loads. Its own messages would come between ours.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenCV cannot be imported ({' '.join(str(error).split())[:200]}); run "
            "'pip install edgeseg[opencv]', or use the system's own build on a Jetson"
        ) from None
    return cv2


def opencv_takes_name(name: str) -> bool:
    """Whether a file may have this name: at one that is not UTF-8 OpenCV ends the process, where
    it should raise.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def opencv_has(feature: str) -> bool:
    """Whether OpenCV's build information says YES to ``feature`` (``GStreamer``, ``FFMPEG``)."""
    for line in opencv().getBuildInformation().splitlines():
        name, _, value = line.strip().partition(":")
        if name.strip() == feature:
            return str(value).strip().startswith("YES")
    return False
