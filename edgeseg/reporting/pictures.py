"""Example frames: pictures that ``edgeseg run --save`` wrote, made small and put into the page."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgeseg.errors import InputError, MissingDependencyError
from edgeseg.reporting.files import Frame
from edgeseg.reporting.markup import Html, join, paragraph, tag
from edgeseg.runtime.images import read_image
from edgeseg.runtime.opencv import opencv

__all__ = ["frames_section"]

_WIDTH: Final = 640
_QUALITY: Final = 78

Progress = Callable[[int, int], None]


def frames_section(
    frames: Sequence[Frame],
    limit: int,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> Html:
    """At most ``limit`` frames, evenly spread over those there are.

    Args:
        frames: in order.
        limit: how many to show.
        say: is told what cannot be read.
        progress: is told frames done and in all.
    """
    if not frames:
        return paragraph(
            "Nothing here. ",
            tag("code", "edgeseg run --input drive.mp4 --save DIR"),
            " writes a picture for every frame.",
            class_="none",
        )
    try:
        opencv()
    except MissingDependencyError as error:
        say(f"{error}; pictures are left out")
        return paragraph(f"{len(frames)} frames are left out: OpenCV is not installed.")
    count = min(limit, len(frames))
    chosen = [frames[i * len(frames) // count] for i in range(count)]
    figures = []
    for done, frame in enumerate(chosen, start=1):
        try:
            pictures = [_picture(frame.overlay, f"{frame.file}: classes and what is anomalous")]
            if frame.score is not None:
                pictures.append(_picture(frame.score, f"{frame.file}: anomaly score"))
        except InputError as error:
            say(f"{error}; left out")
            continue
        figures.append(tag("figure", *pictures, tag("figcaption", frame.file)))
        if progress is not None:
            progress(done, count)
    return join(
        paragraph(
            f"{len(figures)} of {len(frames)} frames: classes with what passes the threshold, "
            "then the anomaly score, bright where it is high."
        ),
        tag("div", *figures, class_="frames"),
    )


def _picture(path: Path, told: str) -> Html:
    image = read_image(path)
    cv2 = opencv()
    height, width = image.shape[:2]
    if width > _WIDTH:
        height, width = max(1, round(height * _WIDTH / width)), _WIDTH
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    good, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not good:
        raise InputError(f"'{path}' cannot be made into a JPEG; copy it again")
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
    return tag("img", src=source, alt=told, width=width, height=height)
