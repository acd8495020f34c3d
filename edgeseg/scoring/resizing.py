"""The one preprocess: an antialiased resize, bit-equal to Pillow's."""

import ctypes
import os
import threading
from collections import OrderedDict
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import UsageError
from edgeseg.scoring import _numpy_kernels
from edgeseg.scoring.library import (
    Handle,
    check_forced_isa,
    check_status,
    check_threads,
    library,
    output_array,
)

__all__ = ["Resizer", "resize_bilinear"]

UInt8 = npt.NDArray[np.uint8]


class Resizer(Handle):
    """Resize of frames of one size to another, bit-equal to Pillow's ``BILINEAR``.

    That is the antialiased triangle filter; the weights are computed once, here.

    Raises:
        UsageError: a size or thread number out of range.
    """

    _close_function = "edgeseg_resize_close"

    def __init__(
        self,
        in_height: int,
        in_width: int,
        height: int,
        width: int,
        *,
        swap_rb: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = (in_height, in_width, 3)
        self.shape = (height, width, 3)
        self.swap_rb = swap_rb
        if not all(1 <= side <= 65536 for side in (in_height, in_width, height, width)):
            raise UsageError(
                f"cannot resize {in_height}x{in_width} to {height}x{width}: sides must be "
                "between 1 and 65536"
            )
        threads = check_threads(threads)
        check_forced_isa()
        self._lib = library()
        if self._lib is not None:
            handle = ctypes.c_void_p()
            status = self._lib.edgeseg_resize_open(
                in_height, in_width, height, width, swap_rb, threads, 0, ctypes.byref(handle)
            )
            check_status(status, f"a resize of {in_height}x{in_width} to {height}x{width}")
            self._handle = handle

    def run(self, frame: UInt8, out: UInt8 | None = None) -> UInt8:
        """``frame`` at the new size; see :func:`resize_bilinear`."""
        self._check_open()
        if frame.dtype != np.uint8 or frame.shape != self.in_shape:
            raise UsageError(
                f"the resize needs a uint8 frame {self.in_shape}, not {frame.dtype.name} "
                f"{frame.shape}"
            )
        result: UInt8 = output_array(out, self.shape, np.uint8, "out")
        if out is not None and np.may_share_memory(frame, out):
            raise UsageError("out overlaps the frame that is to be resized; give another array")
        if self._lib is None:
            _numpy_kernels.resize(frame, self.shape[0], self.shape[1], self.swap_rb, result)
            return result
        if frame.strides[1:] != (3, 1):
            frame = np.ascontiguousarray(frame)
        status = self._lib.edgeseg_resize_run(
            self._handle, frame.ctypes.data, frame.strides[0], result.ctypes.data
        )
        check_status(status, "this frame")
        return result


_resizers: OrderedDict[tuple[object, ...], Resizer] = OrderedDict()
_resizers_lock = threading.Lock()
_RESIZERS_KEPT: Final = 8


def resize_bilinear(
    frame: UInt8,
    height: int,
    width: int,
    *,
    swap_rb: bool = False,
    threads: int | None = None,
    out: UInt8 | None = None,
) -> UInt8:
    """Resize a frame, bit-equal to ``PIL.Image.resize((width, height), BILINEAR)``.

    The plans of the last few sizes are kept, so repeated calls cost nothing extra.

    Args:
        frame: uint8 ``[h, w, 3]``; any stride, fastest where only rows have gaps.
        height: of the result, in pixels.
        width: of the result, in pixels.
        swap_rb: exchange the first and the last channel (BGR to RGB and back).
        threads: the caller's included; all that the process may use where ``None``.
        out: uint8 ``[height, width, 3]``, contiguous; written to and returned where given.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        UsageError: not a uint8 frame with three channels, or a size out of range.

    >>> resize_bilinear(np.full((4, 6, 3), 7, np.uint8), 2, 3).shape
    (2, 3, 3)
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise UsageError(
            f"the resize needs a uint8 frame [h, w, 3], not {frame.dtype.name} {frame.shape}"
        )
    threads = check_threads(threads)
    # The process id, because worker threads do not survive a fork.
    key = (*frame.shape[:2], height, width, swap_rb, threads, os.getpid(),
           os.environ.get("EDGESEG_ISA"))  # fmt: skip
    with _resizers_lock:
        plan = _resizers.pop(key, None)
        if plan is None:
            plan = Resizer(
                frame.shape[0], frame.shape[1], height, width, swap_rb=swap_rb, threads=threads
            )
        _resizers[key] = plan
        if len(_resizers) > _RESIZERS_KEPT:
            # Not closed here: another thread may be using it. Its last reference closes it.
            _resizers.popitem(last=False)
    return plan.run(frame, out)
