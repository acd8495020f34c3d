"""libedgeseg, the C library for integrators, as Python sees it.

What a vehicle's program does through ``edgeseg.h`` is done here through ctypes, so that both can be
compared frame by frame, and so that a Python program can use NV12 and YUYV frames and deadlines.
"""

import ctypes
import importlib.util
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from edgeseg.errors import (
    ArtefactError,
    EdgesegError,
    InputError,
    MissingDependencyError,
    UsageError,
)
from edgeseg.runtime.library_abi import (
    Contract,
    FrameView,
    Info,
    Options,
    RawResult,
    library_path,
    load,
)

__all__ = ["LibraryResult", "LibrarySession", "available", "engine_library", "why_not"]

Pixels = Literal["bgr", "rgb", "nv12", "yuyv"]
Matrix = Literal["bt601", "bt709"]
Range = Literal["limited", "full"]
UInt8 = npt.NDArray[np.uint8]

_PIXELS: Final[tuple[Pixels, ...]] = ("bgr", "rgb", "nv12", "yuyv")
_MATRICES: Final[tuple[Matrix, ...]] = ("bt601", "bt709")
_RANGES: Final[tuple[Range, ...]] = ("limited", "full")
_STAGES: Final = ("convert", "resize", "body", "head", "summary", "total")
_STATES: Final = {0: "ok", 1: "late", 2: "stale"}
_ENGINE_FILES: Final = {
    "onnxruntime": ("capi", "libonnxruntime.so*"),
    "openvino": ("libs", "libopenvino_c.so*"),
}

_ERRORS: Final[dict[int, type[Exception]]] = {
    -1: EdgesegError,
    -2: UsageError,
    -3: MissingDependencyError,
    -4: ArtefactError,
    -5: MemoryError,
    -6: UsageError,
    -7: InputError,
}


def available() -> bool:
    """Whether the library has been built."""
    return library_path().is_file()


def engine_library(name: str) -> Path | None:
    """Shared library with the C API of an installed engine, without importing the engine."""
    folder, pattern = _ENGINE_FILES[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / folder).glob(pattern))), None)


def why_not(engine: str) -> str | None:
    """Why an engine cannot run through the library, in one sentence; ``None`` where it can.

    Looks only: whether the engine takes a bundle shows when a session is opened.
    """
    if engine not in _ENGINE_FILES:
        return f"libedgeseg does not run {engine}"
    if not available():
        return "libedgeseg was not built; install a C compiler and reinstall edgeseg"
    try:
        load()
    except MissingDependencyError as error:
        return str(error)
    if engine_library(engine) is None:
        pattern = "/".join(_ENGINE_FILES[engine])
        return f"the Python package {engine} comes without its C library ({pattern})"
    return None


@dataclass(frozen=True, slots=True)
class LibraryResult:
    """What a frame gave. The arrays are reused: copy what must outlive the next call."""

    state: str
    """``ok``, ``late`` (older than the deadline) or ``stale`` (not run: too old on arrival)."""
    class_map: UInt8 | None
    """``[H, W]``, 0 .. known classes - 1; ``None`` where the frame was not run."""
    score: npt.NDArray[Any] | None
    """``[H, W]``, float16 or float32, larger is more anomalous; ``None`` likewise."""
    age_ms: float
    """From capture to result."""
    sequence: int
    """Of the frame: 1 for the first of the session."""
    peak: float
    """Largest score in the region of interest."""
    fraction: float | None
    """Share of the region at or above the threshold; ``None`` without one."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds of ``convert``, ``resize``, ``body``, ``head``, ``summary`` and ``total``."""


class LibrarySession:
    """A bundle on an engine, through libedgeseg; for one thread at a time.

    Args:
        bundle: folder of a bundle.
        engine: ``onnxruntime`` or ``openvino``.
        threads: of the engine and the kernels; default: the cores that this process may use.
        scorer: default: the bundle's.
        temperature: default: the bundle's for the scorer.
        threshold: of the summary; default: the bundle's for scorer and temperature.
        score_dtype: float16 or float32.
        deadline_ms: largest age of a result; ``None``: none.
        skip_stale: do not run a frame that is too old on arrival.
        library: path of another libedgeseg.

    Raises:
        UsageError: an option that cannot be.
        MissingDependencyError: the library or the engine is not there.
        ArtefactError: the bundle is damaged, or the engine refuses it.
        InputError: there is no such bundle.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        engine: str = "onnxruntime",
        *,
        threads: int | None = None,
        scorer: str | None = None,
        temperature: float | None = None,
        threshold: float | None = None,
        score_dtype: npt.DTypeLike = np.float16,
        deadline_ms: float | None = None,
        skip_stale: bool = False,
        library: Path | None = None,
    ) -> None:
        self._session = ctypes.c_void_p()
        self._lib = load(library)
        self._dtype = np.dtype(score_dtype)
        if self._dtype not in (np.float16, np.float32):
            raise UsageError(f"score type {self._dtype} is neither float16 nor float32")
        for name, value in (("temperature", temperature), ("deadline_ms", deadline_ms)):
            # Zero means the default to the C library.
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} {value} is not a positive number")
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads cannot be had; give at least 1")
        path = engine_library(engine) if engine in _ENGINE_FILES else None
        options = Options(
            engine=engine.encode(),
            engine_library=None if path is None else os.fsencode(path),
            scorer=None if scorer is None else scorer.encode(),
            temperature=temperature or 0.0,
            threshold=threshold or 0.0,
            has_threshold=threshold is not None,
            threads=threads or 0,
            score_type=0 if self._dtype == np.float16 else 1,
            skip_stale=skip_stale,
            deadline_ns=0 if deadline_ms is None else round(deadline_ms * 1e6),
        )
        handle, contract = ctypes.c_void_p(), Contract()
        self._check(self._lib.edgeseg_bundle_open(os.fsencode(bundle), ctypes.byref(handle)))
        try:
            self._check(self._lib.edgeseg_bundle_contract(handle, ctypes.byref(contract)))
            self.size = (int(contract.height), int(contract.width))
            self._check(
                self._lib.edgeseg_session_open(
                    handle, ctypes.byref(options), ctypes.byref(self._session)
                )
            )
        finally:
            self._lib.edgeseg_bundle_close(handle)
        self._class_map = np.zeros(self.size, np.uint8)
        self._score = np.zeros(self.size, self._dtype)

    def run(
        self,
        frame: UInt8,
        *,
        pixels: Pixels = "bgr",
        matrix: Matrix = "bt601",
        range: Range = "limited",  # noqa: A002 - the field's own term
        captured_mono_ns: int = 0,
    ) -> LibraryResult:
        """Class map, score and summary of one frame of any size.

        Args:
            frame: uint8 with rows of any stride: ``[h, w, 3]`` for bgr and rgb, ``[h, w, 2]``
                for yuyv, ``[h * 3 / 2, w]`` for nv12 (the rows of Y, then those of UV).
            pixels: the frame's format.
            matrix: of nv12 and yuyv.
            range: of nv12 and yuyv.
            captured_mono_ns: on ``time.monotonic_ns``'s clock, in the past; 0: now.

        Raises:
            UsageError: a frame that cannot be.
            EdgesegError: the engine failed.
        """
        view = self._view(frame, pixels)
        view.matrix, view.range = _MATRICES.index(matrix), _RANGES.index(range)
        view.captured_ns = captured_mono_ns
        raw = self._raw()
        status = self._lib.edgeseg_session_run(self._open(), ctypes.byref(view), ctypes.byref(raw))
        return self._result(status, raw)

    def score(self, scorer: str | None = None, temperature: float | None = None) -> LibraryResult:
        """The last frame by another scorer; costs the head alone."""
        raw = self._raw()
        name = None if scorer is None else scorer.encode()
        status = self._lib.edgeseg_session_rescore(
            self._open(), name, temperature or 0.0, ctypes.byref(raw)
        )
        return self._result(status, raw)

    def features(self, frame: UInt8) -> npt.NDArray[np.float32]:
        """The body alone: its float32 output for a BGR frame, flat, in the head's layout. A view
        that the next call overwrites and that ends with :meth:`close`.
        """
        view = self._view(frame, "bgr")
        self._check(self._lib.edgeseg_session_infer(self._open(), ctypes.byref(view)))
        values, count = ctypes.POINTER(ctypes.c_float)(), ctypes.c_size_t()
        self._check(
            self._lib.edgeseg_session_features(
                self._open(), ctypes.byref(values), ctypes.byref(count)
            )
        )
        memory = (ctypes.c_float * count.value).from_address(
            cast(int, ctypes.cast(values, ctypes.c_void_p).value)
        )
        memory.session = self  # type: ignore[attr-defined] # the engine's memory goes with it
        return np.ctypeslib.as_array(memory)

    def set_region(self, region: npt.NDArray[np.bool_] | None) -> None:
        """Where summaries look: bool ``[H, W]`` at the network's size; ``None``: everywhere."""
        mask = None if region is None else np.ascontiguousarray(region, np.uint8)
        if mask is not None and mask.shape != self.size:
            raise UsageError(f"the region of interest is {mask.shape}, not {self.size}")
        pointer = None if mask is None else mask.ctypes.data
        self._check(self._lib.edgeseg_session_set_region(self._open(), pointer, self.size[1]))

    @property
    def threshold(self) -> float | None:
        """What summaries count from; ``None`` where there is none."""
        value = float(self._lib.edgeseg_session_threshold(self._open()))
        return None if math.isnan(value) else value

    def describe(self) -> dict[str, Any]:
        """Engine, precision and scorer, for reports and captions."""
        info = Info()
        self._check(self._lib.edgeseg_session_describe(self._open(), ctypes.byref(info)))
        keys = ("engine_version", "engine_library", "compute_precision", "isa", "scorer")
        return {
            "backend": info.engine.decode(),
            **{key: getattr(info, key).decode() for key in keys},
            "temperature": info.temperature,
            "threads": info.threads,
        }

    def close(self) -> None:
        """Free the engine and the kernels; safe to call twice."""
        session, self._session = self._session, ctypes.c_void_p()
        self._lib.edgeseg_session_close(session)

    def __del__(self) -> None:
        if hasattr(self, "_lib"):
            self.close()

    def __enter__(self) -> "LibrarySession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> ctypes.c_void_p:
        if not self._session:
            raise UsageError("this LibrarySession has been closed; open a new one")
        return self._session

    def _raw(self) -> RawResult:
        return RawResult(
            class_map_out=self._class_map.ctypes.data, score_out=self._score.ctypes.data
        )

    def _view(self, frame: UInt8, pixels: Pixels) -> FrameView:
        channels = {"bgr": 3, "rgb": 3, "yuyv": 2}.get(pixels)
        fits = frame.ndim == (2 if channels is None else 3) and frame.dtype == np.uint8
        if not fits or (channels is not None and frame.shape[2] != channels):
            raise UsageError(f"a {pixels} frame cannot be {frame.dtype.name} {frame.shape}")
        inner = (1,) if channels is None else (channels, 1)
        if frame.strides[1:] != inner:
            frame = np.ascontiguousarray(frame)
        height = frame.shape[0]
        view = FrameView(width=frame.shape[1], pixels=_PIXELS.index(pixels))
        view.plane[0], view.stride[0] = frame.ctypes.data, frame.strides[0]
        if channels is None:
            if height % 3:
                raise UsageError(f"an nv12 frame has 3/2 rows a line, so {height} cannot be")
            height = height // 3 * 2
            view.plane[1], view.stride[1] = frame[height:].ctypes.data, frame.strides[0]
        view.height = height
        view.owner = frame
        return view

    def _result(self, status: int, raw: RawResult) -> LibraryResult:
        self._check(status)
        shown = bool(raw.class_map)
        return LibraryResult(
            state=_STATES[status],
            class_map=self._class_map if shown else None,
            score=self._score if shown else None,
            age_ms=raw.age_ns / 1e6,
            sequence=raw.sequence,
            peak=raw.max,
            fraction=raw.fraction if shown and raw.fraction >= 0 else None,
            timings={stage: getattr(raw, stage) / 1e6 for stage in _STAGES},
        )

    def _check(self, status: int) -> None:
        if status < 0:
            message = cast(bytes, self._lib.edgeseg_last_error()).decode(errors="replace")
            raise _ERRORS.get(status, EdgesegError)(message)
