"""The C library of native kernels: loading it, its handles, and what its calls answer."""

import ctypes
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError, UsageError

__all__ = [
    "ISAS",
    "Handle",
    "HeadConfig",
    "available",
    "check_forced_isa",
    "check_status",
    "check_threads",
    "isa",
    "library",
    "library_path",
    "load",
    "output_array",
    "pointer",
    "warn_missing",
]

ABI_VERSION: Final = 1
ISAS: Final[tuple[str, ...]] = ("scalar", "neon", "avx2", "avx512")
MAX_THREADS: Final = 64

_OK, _BAD_ARGUMENT, _NO_MEMORY, _NO_THREAD = range(4)
_p = ctypes.c_void_p
_i32 = ctypes.c_int32


class HeadConfig(ctypes.Structure):
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
    "edgeseg_head_open": (ctypes.c_int, ctypes.POINTER(HeadConfig), ctypes.POINTER(_p)),
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
def load() -> ctypes.CDLL | None:
    """The library, loaded once; ``None`` where it is missing or for another machine."""
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
def warn_missing() -> None:
    """Say once that numpy does the kernels' work."""
    warnings.warn(
        f"the native kernels {library_path()} are missing or cannot be loaded, so numpy does "
        "their work about twenty times slower; install a C compiler and reinstall edgeseg",
        RuntimeWarning,
        stacklevel=4,
    )


def library() -> ctypes.CDLL | None:
    """The loaded library; ``None``, after one warning, where it is missing."""
    found = load()
    if found is None:
        warn_missing()
    return found


def available() -> bool:
    """Whether the library is there and can be loaded."""
    return load() is not None


def isa() -> str:
    """Instruction set that kernels opened now will use; ``"numpy"`` without the library."""
    library = load()
    check_forced_isa()
    return "numpy" if library is None else cast(bytes, library.edgeseg_kernels_isa()).decode()


def check_forced_isa() -> None:
    """Raise UsageError where ``EDGESEG_ISA`` names no instruction set."""
    forced = os.environ.get("EDGESEG_ISA")
    if forced and forced not in ISAS:
        raise UsageError(f"EDGESEG_ISA is '{forced}', which is none of {', '.join(ISAS)}")


def check_threads(threads: int | None) -> int:
    """``threads``, or what the process may use; UsageError where it is out of range."""
    if threads is None:
        affinity = getattr(os, "sched_getaffinity", None)
        threads = len(affinity(0)) if affinity else os.cpu_count() or 1
        return min(threads, MAX_THREADS)
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads were asked for; between 1 and {MAX_THREADS} work")
    return threads


def check_status(status: int, what: str) -> None:
    """Turn the status that a call of the library gave into an error about ``what``."""
    if status == _NO_MEMORY:
        raise MemoryError(f"out of memory for {what}")
    if status == _NO_THREAD:
        raise UsageError(f"no worker thread could be started for {what}; ask for fewer threads")
    if status != _OK:
        raise ArtefactError(f"the native kernels cannot do {what}: a size is out of their range")


def pointer(array: npt.NDArray[Any] | None) -> int | None:
    """Address of an array's data, or NULL."""
    return None if array is None else array.ctypes.data


def output_array(
    array: npt.NDArray[Any] | None, shape: tuple[int, ...], dtype: npt.DTypeLike, name: str
) -> npt.NDArray[Any]:
    """A new array, or the caller's where it is one that C can write such a result to."""
    if array is None:
        return np.empty(shape, dtype)
    if array.shape != shape or array.dtype != dtype or not array.flags.carray:
        raise UsageError(
            f"{name} must be a writable contiguous {np.dtype(dtype).name} array {shape}, "
            f"not {array.dtype.name} {array.shape}"
        )
    return array


class Handle:
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
