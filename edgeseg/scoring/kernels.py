"""The native kernels: head with class map and score, the preprocess, the score histogram.

The C library lies next to its sources in ``edgeseg/scoring/native`` and is built with the
package. Where it is missing (no C compiler at build time) the same functions run in numpy, some
twenty times slower, and say so once with a ``RuntimeWarning``.

The environment variable ``EDGESEG_ISA`` (``avx512``, ``avx2``, ``neon``, ``scalar``) forces an
instruction set below the machine's best one.
"""

import ctypes
import os
import threading
import warnings
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError, UsageError
from edgeseg.scoring import _numpy_kernels
from edgeseg.scoring.head import HEAD_KINDS, Head
from edgeseg.scoring.scorers import SCORERS, valid_scorers

__all__ = [
    "HISTOGRAM_SIZE",
    "ISAS",
    "HeadKernel",
    "Resizer",
    "available",
    "isa",
    "library_path",
    "resize_bilinear",
    "score_histogram",
]

ABI_VERSION: Final = 1
HISTOGRAM_SIZE: Final = 2**24
ISAS: Final[tuple[str, ...]] = ("scalar", "neon", "avx2", "avx512")
MAX_THREADS: Final = 64

Score = npt.NDArray[np.float16] | npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
_LAYOUTS = ("nchw", "nhwc")
_OK, _BAD_ARGUMENT, _NO_MEMORY, _NO_THREAD = range(4)
_p = ctypes.c_void_p
_i32 = ctypes.c_int32


class _HeadConfig(ctypes.Structure):
    """``edgeseg_head_config`` of ``edgeseg_kernels.h``."""

    _fields_ = (
        ("kind", _i32),
        ("layout", _i32),
        ("channels_in", _i32),
        ("num_outputs", _i32),
        ("num_known", _i32),
        ("void_index", _i32),
        ("factor", _i32),
        ("feature_height", _i32),
        ("feature_width", _i32),
        ("scorer", _i32),
        ("score_type", _i32),
        ("threads", _i32),
        ("isa", _i32),
        ("isomax", _i32),
        ("isomax_scale", ctypes.c_float),
        ("reserved", ctypes.c_float),
        ("temperature", ctypes.c_double),
        ("weight", _p),
        ("bias", _p),
        ("prototypes", _p),
    )


_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "edgeseg_kernels_isa": (ctypes.c_char_p,),
    "edgeseg_head_open": (ctypes.c_int, ctypes.POINTER(_HeadConfig), ctypes.POINTER(_p)),
    "edgeseg_head_set_scorer": (ctypes.c_int, _p, ctypes.c_int, ctypes.c_double),
    "edgeseg_head_run": (ctypes.c_int, _p, _p, _p, _p),
    "edgeseg_head_isa": (ctypes.c_char_p, _p),
    "edgeseg_head_close": (None, _p),
    "edgeseg_resize_open": (ctypes.c_int, *[_i32] * 7, ctypes.POINTER(_p)),
    "edgeseg_resize_run": (ctypes.c_int, _p, _p, ctypes.c_ssize_t, _p),
    "edgeseg_resize_close": (None, _p),
    "edgeseg_score_histogram": (ctypes.c_int, _p, _i32, _p, ctypes.c_size_t, _p, _p, _i32),
}


def library_path() -> Path:
    """Where the library is looked for, whether or not it is there."""
    return Path(__file__).parent / "native" / "_edgeseg_kernels.so"


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | None:
    path = library_path()
    if not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # built for another machine
        return None
    version = library.edgeseg_kernels_abi_version
    version.restype, version.argtypes = ctypes.c_int, []
    if version() != ABI_VERSION:
        raise ArtefactError(
            f"{path} has ABI version {version()}, not {ABI_VERSION}; reinstall edgeseg to build "
            "it anew"
        )
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@lru_cache(maxsize=1)
def _warn_missing() -> None:
    warnings.warn(
        f"the native kernels {library_path()} are missing or cannot be loaded, so numpy does "
        "their work about twenty times slower; install a C compiler and reinstall edgeseg",
        RuntimeWarning,
        stacklevel=4,
    )


def _library() -> ctypes.CDLL | None:
    library = _load()
    if library is None:
        _warn_missing()
    return library


def available() -> bool:
    """Whether the library is there and can be loaded."""
    return _load() is not None


def isa() -> str:
    """Instruction set that kernels opened now will use; ``"numpy"`` without the library."""
    library = _load()
    _check_forced_isa()
    return "numpy" if library is None else cast(bytes, library.edgeseg_kernels_isa()).decode()


def _check_forced_isa() -> None:
    forced = os.environ.get("EDGESEG_ISA")
    if forced and forced not in ISAS:
        raise UsageError(f"EDGESEG_ISA is '{forced}', which is none of {', '.join(ISAS)}")


def _check_threads(threads: int | None) -> int:
    if threads is None:
        affinity = getattr(os, "sched_getaffinity", None)
        threads = len(affinity(0)) if affinity else os.cpu_count() or 1
        return min(threads, MAX_THREADS)
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads were asked for; between 1 and {MAX_THREADS} work")
    return threads


def _check_status(status: int, what: str) -> None:
    if status == _NO_MEMORY:
        raise MemoryError(f"out of memory for {what}")
    if status == _NO_THREAD:
        raise UsageError(f"no worker thread could be started for {what}; ask for fewer threads")
    if status != _OK:
        raise ArtefactError(f"the native kernels cannot do {what}: a size is out of their range")


def _pointer(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _output(
    array: npt.NDArray[Any] | None, shape: tuple[int, ...], dtype: npt.DTypeLike, name: str
) -> npt.NDArray[Any]:
    if array is None:
        return np.empty(shape, dtype)
    if array.shape != shape or array.dtype != dtype or not array.flags.carray:
        raise UsageError(
            f"{name} must be a writable contiguous {np.dtype(dtype).name} array {shape}, "
            f"not {array.dtype.name} {array.shape}"
        )
    return array


class _Handle:
    """A C handle that is closed once, at the latest when the object goes."""

    _close_function = ""

    def __init__(self) -> None:
        self._handle: ctypes.c_void_p | None = None
        self._lib: ctypes.CDLL | None = None
        self._closed = False

    def close(self) -> None:
        """End the worker threads and free the memory. Calling it again does nothing."""
        self._closed = True
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None and self._lib is not None:
            getattr(self._lib, self._close_function)(handle)

    def __del__(self) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"this {type(self).__name__} has been closed; open a new one")


class HeadKernel(_Handle):
    """Class map and anomaly score from the body's features, without the logits in between.

    The result does not depend on ``threads``. It agrees with :meth:`Head.logits`,
    :func:`~edgeseg.scoring.scorers.class_map` and
    :func:`~edgeseg.scoring.scorers.anomaly_score` up to float32 rounding.

    Args:
        head: what to compute; its weights are copied.
        height: of the frame, a multiple of ``head.factor``.
        width: of the frame, a multiple of ``head.factor``.
        scorer: one of :data:`~edgeseg.scoring.scorers.SCORERS`.
        temperature: ``T`` > 0.
        threads: the caller's included; all that the process may use where ``None``.
        score_dtype: float16 or float32.

    Raises:
        UsageError: a scorer, temperature, thread number or dtype that cannot be had.
        ArtefactError: a frame that the head cannot give.

    >>> head = Head("identity", num_outputs=2, num_known=2, void_index=None, factor=1)
    >>> with HeadKernel(head, 1, 3, "msp", 1.0, threads=1) as kernel:
    ...     classes, score = kernel.run(np.float32([[[0, 1, 9]], [[0, 2, 0]]]))
    >>> classes.tolist(), float(score[0, 0])
    ([[0, 1, 0]], 0.5)
    """

    _close_function = "edgeseg_head_close"

    def __init__(
        self,
        head: Head,
        height: int,
        width: int,
        scorer: str,
        temperature: float = 1.0,
        threads: int | None = None,
        score_dtype: npt.DTypeLike = np.float16,
    ) -> None:
        super().__init__()
        self.head = head
        self.height, self.width = height, width
        self._dtype = np.dtype(score_dtype)
        if self._dtype not in (np.float16, np.float32):
            raise UsageError(f"scores leave as float16 or float32, not as {self._dtype.name}")
        if height < 1 or width < 1 or height % head.factor or width % head.factor:
            raise ArtefactError(
                f"a frame of {height}x{width} is not a multiple of {head.factor}, by which the "
                f"{head.kind} head upsamples"
            )
        rows, columns = height // head.factor, width // head.factor
        self._shape: tuple[int, ...] = (head.channels_in, rows, columns)
        if head.layout == "nhwc":
            self._shape = (rows, columns, head.channels_in)
        self._check_scorer(scorer, temperature)
        threads = _check_threads(threads)
        _check_forced_isa()
        self._lib = _library()
        if self._lib is not None:
            self._open(rows, columns, threads)

    def _open(self, rows: int, columns: int, threads: int) -> None:
        assert self._lib is not None
        head = self.head
        arrays = [
            None if a is None else np.ascontiguousarray(a, dtype=np.float32)
            for a in (
                head.weight,
                head.bias,
                None if head.isomax is None else head.isomax.prototypes,
            )
        ]
        config = _HeadConfig(
            kind=HEAD_KINDS.index(head.kind),
            layout=_LAYOUTS.index(head.layout),
            channels_in=head.channels_in,
            num_outputs=head.num_outputs,
            num_known=head.num_known,
            void_index=-1 if head.void_index is None else head.void_index,
            factor=head.factor,
            feature_height=rows,
            feature_width=columns,
            scorer=SCORERS.index(self.scorer),
            score_type=0 if self._dtype == np.float16 else 1,
            threads=threads,
            isomax=int(head.isomax is not None),
            isomax_scale=0.0 if head.isomax is None else head.isomax.distance_scale,
            temperature=self.temperature,
            weight=_pointer(arrays[0]),
            bias=_pointer(arrays[1]),
            prototypes=_pointer(arrays[2]),
        )
        handle = ctypes.c_void_p()
        status = self._lib.edgeseg_head_open(ctypes.byref(config), ctypes.byref(handle))
        _check_status(status, f"a {head.kind} head for a frame of {self.height}x{self.width}")
        self._handle = handle

    def __enter__(self) -> "HeadKernel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def isa(self) -> str:
        """Instruction set in use; ``"numpy"`` without the library."""
        self._check_open()
        if self._lib is None:
            return "numpy"
        return cast(bytes, self._lib.edgeseg_head_isa(self._handle)).decode()

    def _check_scorer(self, scorer: str, temperature: float) -> None:
        if scorer not in valid_scorers(self.head.void_index):
            raise UsageError(
                f"scorer '{scorer}' cannot be had from this network; choose one of "
                f"{', '.join(valid_scorers(self.head.void_index))}"
            )
        if not (np.isfinite(temperature) and temperature > 0):
            raise UsageError(f"temperature {temperature} is not a positive number")
        self.scorer, self.temperature = scorer, float(temperature)

    def set_scorer(self, scorer: str, temperature: float = 1.0) -> None:
        """Change the scorer of the following runs; costs nothing."""
        self._check_open()
        self._check_scorer(scorer, temperature)
        if self._lib is not None:
            status = self._lib.edgeseg_head_set_scorer(
                self._handle, SCORERS.index(scorer), self.temperature
            )
            _check_status(status, f"scorer {scorer}")

    def run(
        self,
        features: npt.NDArray[np.float32],
        out_class_map: UInt8 | None = None,
        out_score: Score | None = None,
    ) -> tuple[UInt8, Score]:
        """Class map uint8 ``[H, W]`` and score ``[H, W]`` of one frame.

        Args:
            features: float32, contiguous, ``[C, h, w]`` or ``[h, w, C]`` as the head's
                ``layout`` says, with or without a batch axis of 1.
            out_class_map: written to and returned where given.
            out_score: the same.

        Raises:
            ArtefactError: features that do not fit the head.
            UsageError: an output array of another shape or dtype, or a closed kernel.
        """
        self._check_open()
        shape = features.shape[1:] if features.ndim == 4 else features.shape
        if shape != self._shape or (features.ndim == 4 and features.shape[0] != 1):
            raise ArtefactError(
                f"the {self.head.kind} head for a frame of {self.height}x{self.width} needs "
                f"features {self._shape}, not {features.shape}"
            )
        if features.dtype != np.float32 or not features.flags.c_contiguous:
            raise ArtefactError(
                f"the head needs contiguous float32 features, not {features.dtype.name}"
                + ("" if features.flags.c_contiguous else " with gaps or in another order")
            )
        frame = (self.height, self.width)
        classes: UInt8 = _output(out_class_map, frame, np.uint8, "out_class_map")
        score: Score = _output(out_score, frame, self._dtype, "out_score")
        if self._lib is None:
            _numpy_kernels.head(self.head, features, self.scorer, self.temperature, classes, score)
        else:
            status = self._lib.edgeseg_head_run(
                self._handle, features.ctypes.data, classes.ctypes.data, score.ctypes.data
            )
            _check_status(status, "this frame")
        return classes, score


class Resizer(_Handle):
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
        threads = _check_threads(threads)
        _check_forced_isa()
        self._lib = _library()
        if self._lib is not None:
            handle = ctypes.c_void_p()
            status = self._lib.edgeseg_resize_open(
                in_height, in_width, height, width, swap_rb, threads, 0, ctypes.byref(handle)
            )
            _check_status(status, f"a resize of {in_height}x{in_width} to {height}x{width}")
            self._handle = handle

    def run(self, frame: UInt8, out: UInt8 | None = None) -> UInt8:
        """``frame`` at the new size; see :func:`resize_bilinear`."""
        self._check_open()
        if frame.dtype != np.uint8 or frame.shape != self.in_shape:
            raise UsageError(
                f"the resize needs a uint8 frame {self.in_shape}, not {frame.dtype.name} "
                f"{frame.shape}"
            )
        result: UInt8 = _output(out, self.shape, np.uint8, "out")
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
        _check_status(status, "this frame")
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
    threads = _check_threads(threads)
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


def score_histogram(
    scores: Score,
    labels: UInt8,
    positive: npt.NDArray[np.uint32],
    negative: npt.NDArray[np.uint32],
    threads: int | None = None,
) -> None:
    """Add the scores of labelled pixels into two histograms.

    The bin is the upper 24 bits of the float32 value, mapped so that a larger score has a larger
    bin. -0 counts as 0; NaN falls into the last bin.

    Args:
        scores: float16 or float32 ``[n]``, contiguous.
        labels: uint8 ``[n]``, contiguous: 1 goes to ``positive``, 0 to ``negative``, all else
            nowhere.
        positive: uint32 ``[2**24]``, added to in place.
        negative: the same.
        threads: the caller's included; all that the process may use where ``None``.

    Raises:
        UsageError: an array of another shape or dtype.
    """
    if scores.dtype not in (np.float16, np.float32):
        raise UsageError(f"scores must be float16 or float32, not {scores.dtype.name}")
    if scores.ndim != 1 or scores.shape != labels.shape or labels.dtype != np.uint8:
        raise UsageError(
            f"scores [n] and uint8 labels [n] are needed, not {scores.shape} and "
            f"{labels.dtype.name} {labels.shape}"
        )
    for name, histogram in (("positive", positive), ("negative", negative)):
        _output(histogram, (HISTOGRAM_SIZE,), np.uint32, name)
    threads = _check_threads(threads)
    library = _library()
    scores, labels = cast(Score, np.ascontiguousarray(scores)), np.ascontiguousarray(labels)
    if library is None:
        _numpy_kernels.score_histogram(scores, labels, positive, negative)
        return
    kind: Literal[0, 1] = 0 if scores.dtype == np.float16 else 1
    status = library.edgeseg_score_histogram(
        scores.ctypes.data, kind, labels.ctypes.data, scores.size, positive.ctypes.data,
        negative.ctypes.data, threads,
    )  # fmt: skip
    _check_status(status, "this histogram")
