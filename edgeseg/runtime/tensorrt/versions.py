"""What a TensorRT has: the only place that knows its versions.

TensorRT 8.5 to 10 take precisions as builder flags and INT8 from Q/DQ nodes or a calibrator;
TensorRT 11 and TensorRT-RTX build strongly typed networks only, whose precisions stand in the
graph. Which of the two a module is, is asked of the module itself.
"""

import importlib
import importlib.util
import re
from dataclasses import dataclass
from typing import Any, Final

from edgeseg.errors import MissingDependencyError

__all__ = ["OLDEST", "Abilities", "abilities", "import_tensorrt", "installed"]

OLDEST: Final = (8, 5)
"""The first TensorRT with named tensors and ``execute_async_v3``."""

_PACKAGES: Final = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one TensorRT module can do."""

    package: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    version: str
    cache_version: int
    """As it stands in calibration caches: 8502 for 8.5.2, 100300 for 10.3.0."""
    explicit_batch_flag: bool
    """Networks have an explicit batch only if asked to (8), may be asked (10), or know no other."""
    precision_flags: bool
    """Precisions are builder flags; else they stand in the graph."""
    strongly_typed_flag: bool
    timing_cache: bool
    nan_flag: bool
    """It must be told to keep NaNs what they are."""
    ahead_of_time: bool
    """It builds for GPUs that are not there."""


def installed() -> list[str]:
    """Names of the TensorRT modules that can be imported, without importing them."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is not None]


def import_tensorrt(package: str = "tensorrt") -> Any:
    """The module ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        MissingDependencyError: it is not installed, cannot be loaded, or is older than 8.5.
    """
    title = _PACKAGES[package]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        how = (
            "run 'pip install tensorrt-rtx-cu12'"
            if package == "tensorrt_rtx"
            else "it comes with JetPack, elsewhere run 'pip install tensorrt'"
        )
        raise MissingDependencyError(f"{title} is not installed; {how}") from None
    except Exception as error:  # the loader's errors are not all ImportError
        raise MissingDependencyError(
            f"{title} is installed and cannot be loaded ({' '.join(str(error).split())[:200]}); "
            "install the release that fits this machine's CUDA"
        ) from None
    abilities(module)
    return module


def abilities(trt: Any) -> Abilities:
    """Examine an imported module.

    Raises:
        MissingDependencyError: it is older than 8.5.
    """
    package = "tensorrt_rtx" if trt.__name__.startswith("tensorrt_rtx") else "tensorrt"
    version = str(trt.__version__)
    numbers = [int(n) for n in re.findall(r"\d+", version)[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    if package == "tensorrt" and (major, minor) < OLDEST:
        raise MissingDependencyError(
            f"TensorRT {version} is older than {OLDEST[0]}.{OLDEST[1]}, which bundles need; "
            "use JetPack 5.1 or later (Nano and TX2 have none: run the CPU engines there)"
        )
    flags = trt.NetworkDefinitionCreationFlag
    # NV_TENSORRT_VERSION: majors count thousands until 8 and ten thousands from 10 on.
    thousand = 1000 if major < 10 else 10000
    return Abilities(
        package=package,
        version=version,
        cache_version=major * thousand + minor * 100 + patch,
        explicit_batch_flag=hasattr(flags, "EXPLICIT_BATCH"),
        precision_flags=hasattr(trt.BuilderFlag, "FP16"),
        strongly_typed_flag=hasattr(flags, "STRONGLY_TYPED"),
        # TensorRT-RTX has the methods, and compiles kernels only when an engine is loaded.
        timing_cache=package == "tensorrt" and hasattr(trt.IBuilderConfig, "create_timing_cache"),
        nan_flag=hasattr(trt.BuilderFlag, "STRICT_NANS"),
        ahead_of_time=hasattr(trt, "ComputeCapability"),
    )
