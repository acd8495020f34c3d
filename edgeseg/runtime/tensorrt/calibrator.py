"""Calibrators of TensorRT 8.5 to 10: frames in, or a cache that already holds the scales."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import InputError, UsageError
from edgeseg.runtime.tensorrt.builder import BuildOptions, build
from edgeseg.runtime.tensorrt.calibration_cache import CalibrationCache, Method
from edgeseg.runtime.tensorrt.cuda import Cuda

__all__ = ["cache_calibrator", "calibrate", "frame_calibrator"]

UInt8 = npt.NDArray[np.uint8]

_CLASSES: Final[dict[Method, str]] = {
    "entropy": "IInt8EntropyCalibrator2",
    "minmax": "IInt8MinMaxCalibrator",
}


def cache_calibrator(trt: Any, cache: bytes, method: Method = "entropy") -> Any:
    """A calibrator that sees no frame: TensorRT takes every scale from ``cache``."""
    return _calibrator(trt, method, None, iter(()), cache)


def frame_calibrator(
    trt: Any, cuda: Cuda, frames: Iterable[UInt8], method: Method = "entropy"
) -> Any:
    """A calibrator that feeds frames, one at a time.

    Args:
        trt: TensorRT 8.5 to 10.
        cuda: where the frames are copied to; one buffer serves them all.
        frames: uint8 ``[H, W, 3]`` BGR at the network's size.
        method: entropy for convolutional networks; min-max where outliers matter.

    Returns:
        The calibrator; after the build its ``written`` holds the cache.

    Raises:
        UsageError: this TensorRT has no calibrators.
    """
    return _calibrator(trt, method, cuda, iter(frames), None)


def calibrate(
    trt: Any, cuda: Cuda, graph: bytes, frames: Iterable[UInt8], method: Method = "entropy"
) -> CalibrationCache:
    """Let TensorRT find the scales itself, on frames.

    Args:
        trt: TensorRT 8.5 to 10.
        cuda: the GPU.
        graph: without Q/DQ (form ``implicit``).
        frames: uint8 ``[H, W, 3]`` BGR at the network's size.
        method: see :func:`frame_calibrator`.

    Raises:
        UsageError: this TensorRT has no calibrators.
        InputError: there is no frame, or frames differ in size.
        ArtefactError: TensorRT refuses the graph.
    """
    calibrator = frame_calibrator(trt, cuda, frames, method)
    try:
        build(trt, graph, BuildOptions(precision="int8", calibrator=calibrator))
    finally:
        calibrator.close()
    if not calibrator.seen or calibrator.written is None:
        raise InputError("there is no frame to calibrate with; give a folder that holds images")
    return CalibrationCache.parse(calibrator.written)


def _calibrator(
    trt: Any, method: Method, cuda: Cuda | None, frames: Iterator[UInt8], cache: bytes | None
) -> Any:
    base = getattr(trt, _CLASSES[method], None)
    if base is None:
        raise UsageError(
            f"TensorRT {trt.__version__} has no calibrators; export the bundle with --int8, which "
            "puts the scales into its graph"
        )

    class Calibrator(base):  # type: ignore[misc, valid-type]
        """Called by TensorRT while it builds."""

        def __init__(self) -> None:
            # pybind11 wants its own __init__ called by name.
            base.__init__(self)  # type: ignore[misc]
            self.written: bytes | None = None
            self.seen = 0
            self._address: int | None = None
            self._size = 0

        def get_batch_size(self) -> int:
            """Networks have a static batch of 1."""
            return 1

        def get_batch(self, names: list[str]) -> list[int] | None:
            """Address of the next frame on the GPU; ``None`` after the last."""
            frame = next(frames, None)
            if frame is None or cuda is None:
                self.close()
                return None
            if names != ["frame"] or frame.dtype != np.uint8:
                raise InputError(
                    f"calibration feeds uint8 frames to 'frame', not {frame.dtype} to {names}; "
                    "export the bundle again"
                )
            frame = np.ascontiguousarray(frame)
            if self._address is None:
                self._address, self._size = cuda.allocate(frame.nbytes), frame.nbytes
            if frame.nbytes != self._size:
                raise InputError(
                    f"calibration frame {self.seen} has another size than those before it; "
                    "resize all to the network's size"
                )
            stream = cuda.stream()
            try:
                stream.copy_in(self._address, frame)
                stream.synchronize()
            finally:
                stream.close()
            self.seen += 1
            return [self._address]

        def read_calibration_cache(self) -> bytes | None:
            """The scales, where they are known beforehand."""
            return cache

        def write_calibration_cache(self, content: Any) -> None:
            """Keep what TensorRT found."""
            self.written = bytes(content)

        def close(self) -> None:
            """Free the frame's memory; safe to call twice."""
            if self._address is not None and cuda is not None:
                cuda.free(self._address)
            self._address = None

    return Calibrator()
