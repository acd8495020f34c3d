"""Structs and functions of ``edgeseg.h`` for ctypes, and loading the library."""

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import MissingDependencyError

__all__ = ["Contract", "FrameView", "Info", "Options", "RawResult", "library_path", "load"]

_p = ctypes.c_void_p
_text = ctypes.c_char_p
_i32 = ctypes.c_int32
_i64 = ctypes.c_int64
_double = ctypes.c_double


class _Sized(ctypes.Structure):
    def __init__(self, **values: Any) -> None:
        super().__init__(size=ctypes.sizeof(self), **values)


class Contract(_Sized):
    """``edgeseg_contract`` of ``edgeseg.h``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("height", _i32),
        ("width", _i32),
        ("num_classes", _i32),
        ("num_scorers", _i32),
        ("has_void", _i32),
        ("reserved", _i32),
        ("network", _text),
        ("weights", _text),
        ("license", _text),
        ("precision", _text),
        ("compute_precision", _text),
        ("default_scorer", _text),
        ("body_sha256", _text),
    )


class Options(_Sized):
    """``edgeseg_session_options``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("engine", _text),
        ("engine_library", _text),
        ("scorer", _text),
        ("temperature", _double),
        ("threshold", _double),
        ("has_threshold", _i32),
        ("threads", _i32),
        ("score_type", _i32),
        ("skip_stale", _i32),
        ("deadline_ns", _i64),
    )


class Info(_Sized):
    """``edgeseg_session_info``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("engine", _text),
        ("engine_version", _text),
        ("engine_library", _text),
        ("compute_precision", _text),
        ("isa", _text),
        ("scorer", _text),
        ("temperature", _double),
        ("threads", _i32),
        ("score_type", _i32),
    )


class FrameView(_Sized):
    """``edgeseg_frame``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("plane", _p * 2),
        ("stride", ctypes.c_ssize_t * 2),
        ("height", _i32),
        ("width", _i32),
        ("pixels", _i32),
        ("matrix", _i32),
        ("range", _i32),
        ("reserved", _i32),
        ("captured_ns", _i64),
    )
    owner: npt.NDArray[np.uint8]
    """What the planes point into: it must live as long as this does."""


class RawResult(_Sized):
    """``edgeseg_result`` with its summary and timings."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("class_map_out", _p),
        ("score_out", _p),
        ("class_map", _p),
        ("score", _p),
        ("age_ns", _i64),
        ("sequence", ctypes.c_uint64),
        ("max", _double),
        ("fraction", _double),
        ("region_pixels", _i64),
        ("convert", _i64),
        ("resize", _i64),
        ("body", _i64),
        ("head", _i64),
        ("summary", _i64),
        ("total", _i64),
    )


_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "edgeseg_version": (_text,),
    "edgeseg_status_name": (_text, ctypes.c_int),
    "edgeseg_last_error": (_text,),
    "edgeseg_bundle_open": (ctypes.c_int, _text, ctypes.POINTER(_p)),
    "edgeseg_bundle_close": (None, _p),
    "edgeseg_bundle_contract": (ctypes.c_int, _p, ctypes.POINTER(Contract)),
    "edgeseg_bundle_class": (_text, _p, _i32),
    "edgeseg_session_open": (ctypes.c_int, _p, ctypes.POINTER(Options), ctypes.POINTER(_p)),
    "edgeseg_session_close": (None, _p),
    "edgeseg_session_set_scorer": (ctypes.c_int, _p, _text, _double),
    "edgeseg_session_set_threshold": (ctypes.c_int, _p, _double),
    "edgeseg_session_threshold": (_double, _p),
    "edgeseg_session_set_region": (ctypes.c_int, _p, _p, ctypes.c_ssize_t),
    "edgeseg_session_set_deadline": (ctypes.c_int, _p, _i64, _i32),
    "edgeseg_session_describe": (ctypes.c_int, _p, ctypes.POINTER(Info)),
    "edgeseg_session_run": (
        ctypes.c_int,
        _p,
        ctypes.POINTER(FrameView),
        ctypes.POINTER(RawResult),
    ),
    "edgeseg_session_infer": (ctypes.c_int, _p, ctypes.POINTER(FrameView)),
    "edgeseg_session_features": (
        ctypes.c_int,
        _p,
        ctypes.POINTER(ctypes.POINTER(ctypes.c_float)),
        ctypes.POINTER(ctypes.c_size_t),
    ),
    "edgeseg_session_rescore": (ctypes.c_int, _p, _text, _double, ctypes.POINTER(RawResult)),
}


def library_path() -> Path:
    """Where the library is looked for, whether or not it is there."""
    return Path(__file__).resolve().parents[1] / "lib" / "libedgeseg.so.0"


@lru_cache(maxsize=4)
def load(path: Path | None = None) -> ctypes.CDLL:
    """The library at ``path``, by default the one that was built with the package.

    Raises:
        MissingDependencyError: it is not there, or for another machine.
    """
    path = path or library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingDependencyError(
            f"libedgeseg cannot be loaded from '{path}' ({error}); install a C compiler and "
            "reinstall edgeseg"
        ) from None
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
