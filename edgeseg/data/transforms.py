"""The one resize that ``run``, ``eval`` and training share, and its counterpart for labels.

Frames go through an antialiased triangle filter (Pillow's BILINEAR); other filters cost more
accuracy than INT8 does. Labels take the nearest value.
"""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from edgeseg.errors import MissingDependencyError, UsageError
from edgeseg.scoring import kernels

__all__ = ["RESIZES", "ResizeMethod", "resize_frame", "resize_label"]

UInt8 = npt.NDArray[np.uint8]
ResizeMethod = Literal["runtime", "pillow"]
RESIZES: Final[tuple[ResizeMethod, ...]] = ("runtime", "pillow")


def resize_frame(frame: UInt8, size: tuple[int, int], method: ResizeMethod = "runtime") -> UInt8:
    """Resize a frame as the runtime does.

    Args:
        frame: uint8 ``[h, w, 3]``, any colour order.
        size: height and width to come out, pixels.
        method: ``runtime`` is the project's own resize, ``pillow`` is Pillow itself; they differ
            by one grey level at most.

    Returns:
        uint8 ``[height, width, 3]``; the frame itself where it has that size already.
    """
    if method not in RESIZES:
        raise UsageError(f"--resize '{method}' is unknown; choose one of {', '.join(RESIZES)}")
    if frame.shape[:2] == tuple(size):
        return frame
    return (_runtime_resize if method == "runtime" else _pillow_resize)(frame, size)


def resize_label(label: UInt8, size: tuple[int, int]) -> UInt8:
    """Nearest-value resize of a label map, equal to Pillow's NEAREST.

    Args:
        label: uint8 ``[h, w]``.
        size: height and width to come out, pixels.
    """
    if label.shape == tuple(size):
        return label
    rows, columns = (_nearest(have, want) for have, want in zip(label.shape, size, strict=True))
    return np.ascontiguousarray(label[rows[:, None], columns])


def _nearest(have: int, want: int) -> npt.NDArray[np.intp]:
    # Pillow steps through the source by adding, not by multiplying; the sum's rounding decides
    # where a centre falls on an edge, so it is repeated here.
    step = have / want
    steps = np.full(want, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.intp), have - 1)


def _runtime_resize(frame: UInt8, size: tuple[int, int]) -> UInt8:
    return kernels.resize_bilinear(frame, size[0], size[1])


def _pillow_resize(frame: UInt8, size: tuple[int, int]) -> UInt8:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError(
            "resizing by Pillow needs it installed; 'pip install pillow' does that"
        ) from None
    picture = Image.fromarray(np.ascontiguousarray(frame))
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)
