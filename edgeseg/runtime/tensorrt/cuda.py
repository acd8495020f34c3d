"""Memory, streams and graphs of CUDA, by whichever of its two Python packages is there.

All of CUDA that this project uses is :class:`Cuda` and :class:`Stream`; pycuda comes first, as
JetPack's guides have it, cuda-python where it is missing. Addresses are integers. Nothing here is
thread-safe, but calls may come from any thread within :meth:`Cuda.active`.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeseg.errors import EdgesegError, MissingDependencyError

__all__ = ["Cuda", "CudaError", "Device", "OutOfMemoryError", "Stream", "open_cuda"]

Array = npt.NDArray[Any]


class CudaError(EdgesegError):
    """A call of CUDA failed while engines run."""


class OutOfMemoryError(CudaError):
    """The GPU's memory does not suffice."""


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU in use."""

    name: str
    compute_capability: str
    """``8.7``."""
    cuda: str
    """Version of the CUDA that runs, ``12.6``."""
    memory_bytes: int


class Stream(Protocol):
    """Work in order, beside the processor."""

    @property
    def handle(self) -> int:
        """For TensorRT."""
        ...

    def copy_in(self, address: int, source: Array) -> None:
        """Start a copy to the GPU; ``source`` is pinned and stays untouched until it is done."""
        ...

    def copy_out(self, target: Array, address: int) -> None:
        """Start a copy from the GPU into pinned ``target``."""
        ...

    def synchronize(self) -> None:
        """Wait for all work; errors of earlier calls surface here."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what ``work`` puts into the stream; calling the result starts it again."""
        ...

    def close(self) -> None:
        """Free the stream and what was recorded."""
        ...


class Cuda(Protocol):
    """A GPU."""

    name: str
    """``pycuda`` or ``cuda-python``."""
    device: Device

    def active(self) -> AbstractContextManager[None]:
        """The GPU's context for the calling thread."""
        ...

    def allocate(self, size: int) -> int:
        """Address of ``size`` new bytes on the GPU."""
        ...

    def free(self, address: int) -> None:
        """Give memory of :meth:`allocate` back."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A new array in memory that the GPU reads and writes itself; :meth:`unpin` it."""
        ...

    def unpin(self, array: Array) -> None:
        """Give memory of :meth:`pinned` back; the array must not be used again."""
        ...

    def stream(self) -> Stream:
        """A new stream."""
        ...


def open_cuda() -> Cuda:
    """The first GPU.

    Raises:
        MissingDependencyError: neither package is installed, or there is no GPU or no driver.
    """
    reasons = []
    for package, module in (
        ("pycuda", "edgeseg.runtime.tensorrt.cuda_pycuda"),
        ("cuda-python", "edgeseg.runtime.tensorrt.cuda_python"),
    ):
        try:
            opened: Cuda = importlib.import_module(module).open_device()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("edgeseg"):
                raise
            reasons.append(f"{package} is not installed")
        except Exception as error:  # a missing libcuda.so.1 is an ImportError, others are not
            reasons.append(
                f"{package}: {' '.join(str(error).split())[:160] or type(error).__name__}"
            )
        else:
            return opened
    raise MissingDependencyError(
        f"no GPU can be used ({'; '.join(reasons)}); install NVIDIA's driver and 'pip install "
        "cuda-python', or choose --backend onnxruntime"
    )


def dotted(number: int) -> str:
    """CUDA's integer version as people write it: 12060 -> ``12.6``."""
    return f"{number // 1000}.{number % 1000 // 10}"


def array_of(address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """The array that lies at a host address, without owning it."""
    import ctypes

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memoryview(raw), dtype=np.dtype(dtype)).reshape(shape)
