"""The native kernels: head with class map and score, the preprocess, the score histogram.

The C library lies next to its sources in ``edgeseg/scoring/native`` and is built with the
package. Where it is missing (no C compiler at build time) the same functions run in numpy, some
twenty times slower, and say so once with a ``RuntimeWarning``.

The environment variable ``EDGESEG_ISA`` (``avx512``, ``avx2``, ``neon``, ``scalar``) forces an
instruction set below the machine's best one.
"""

import ctypes
from types import TracebackType
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError, UsageError
from edgeseg.scoring import _numpy_kernels
from edgeseg.scoring.head import HEAD_KINDS, Head
from edgeseg.scoring.histogram import HISTOGRAM_SIZE, score_histogram
from edgeseg.scoring.library import (
    ISAS,
    Handle,
    HeadConfig,
    available,
    check_forced_isa,
    check_status,
    check_threads,
    isa,
    library,
    library_path,
    output_array,
    pointer,
)
from edgeseg.scoring.resizing import Resizer, resize_bilinear
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

Score = npt.NDArray[np.float16] | npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
_LAYOUTS: Final = ("nchw", "nhwc")


class HeadKernel(Handle):
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
        threads = check_threads(threads)
        check_forced_isa()
        self._lib = library()
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
        config = HeadConfig(
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
            weight=pointer(arrays[0]),
            bias=pointer(arrays[1]),
            prototypes=pointer(arrays[2]),
        )
        handle = ctypes.c_void_p()
        status = self._lib.edgeseg_head_open(ctypes.byref(config), ctypes.byref(handle))
        check_status(status, f"a {head.kind} head for a frame of {self.height}x{self.width}")
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
            check_status(status, f"scorer {scorer}")

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
        classes: UInt8 = output_array(out_class_map, frame, np.uint8, "out_class_map")
        score: Score = output_array(out_score, frame, self._dtype, "out_score")
        if self._lib is None:
            _numpy_kernels.head(self.head, features, self.scorer, self.temperature, classes, score)
        else:
            status = self._lib.edgeseg_head_run(
                self._handle, features.ctypes.data, classes.ctypes.data, score.ctypes.data
            )
            check_status(status, "this frame")
        return classes, score
