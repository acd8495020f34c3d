"""CUDA by the package cuda-python (its runtime API)."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy.typing as npt

from edgeseg.runtime.tensorrt.cuda import (
    Array,
    CudaError,
    Device,
    OutOfMemoryError,
    array_of,
    dotted,
)

__all__ = ["CudaPython", "open_device"]

_NON_BLOCKING: Final = 1
_OUT_OF_MEMORY: Final = 2


def open_device() -> "CudaPython":
    """The first GPU; ImportError where the package is missing, CudaError where the GPU is."""
    try:
        return CudaPython(importlib.import_module("cuda.bindings.runtime"))
    except ImportError:
        return CudaPython(importlib.import_module("cuda.cudart"))  # before 12.6


class CudaPython:
    """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""

    name = "cuda-python"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        if _call(runtime, "cudaGetDeviceCount") < 1:
            raise CudaError("there is no NVIDIA GPU")
        _call(runtime, "cudaSetDevice", 0)
        properties = _call(runtime, "cudaGetDeviceProperties", 0)
        name = properties.name
        self.device = Device(
            name=(name.decode() if isinstance(name, bytes) else str(name)).strip("\0 "),
            compute_capability=f"{properties.major}.{properties.minor}",
            cuda=dotted(_call(runtime, "cudaRuntimeGetVersion")),
            memory_bytes=int(properties.totalGlobalMem),
        )
        self._pinned: dict[int, int] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The runtime API keeps one device a thread."""
        _call(self._runtime, "cudaSetDevice", 0)
        yield

    def allocate(self, size: int) -> int:
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        return int(_call(self._runtime, "cudaMalloc", size))

    def free(self, address: int) -> None:
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        _call(self._runtime, "cudaFree", address)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        import numpy as np

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(_call(self._runtime, "cudaMallocHost", size))
        array = array_of(address, shape, dtype)
        self._pinned[array.ctypes.data] = address
        return array

    def unpin(self, array: Array) -> None:
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        address = self._pinned.pop(array.ctypes.data, None)
        if address is not None:
            _call(self._runtime, "cudaFreeHost", address)

    def stream(self) -> "_Stream":
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        return _Stream(self._runtime)


class _Stream:
    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._stream = _call(runtime, "cudaStreamCreateWithFlags", _NON_BLOCKING)
        self._graphs: list[Any] = []

    @property
    def handle(self) -> int:
        return int(self._stream)

    def copy_in(self, address: int, source: Array) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(
            self._runtime,
            "cudaMemcpyAsync",
            address,
            source.ctypes.data,
            source.nbytes,
            kind,
            self._stream,
        )

    def copy_out(self, target: Array, address: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(
            self._runtime,
            "cudaMemcpyAsync",
            target.ctypes.data,
            address,
            target.nbytes,
            kind,
            self._stream,
        )

    def synchronize(self) -> None:
        _call(self._runtime, "cudaStreamSynchronize", self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call(self._runtime, "cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            # The capture must end even so, or the stream stays unusable; it gives no graph.
            self._runtime.cudaStreamEndCapture(self._stream)
            raise
        graph = _call(self._runtime, "cudaStreamEndCapture", self._stream)
        try:
            ready = _call(self._runtime, "cudaGraphInstantiate", graph, 0)
        finally:
            self._runtime.cudaGraphDestroy(graph)
        self._graphs.append(ready)
        return lambda: _call(self._runtime, "cudaGraphLaunch", ready, self._stream)

    def close(self) -> None:
        while self._graphs:
            self._runtime.cudaGraphExecDestroy(self._graphs.pop())
        if self._stream is not None:
            self._runtime.cudaStreamDestroy(self._stream)
            self._stream = None


def _call(runtime: Any, name: str, *arguments: Any) -> Any:
    """The result of a call that answers ``(error, result)`` or ``(error,)``."""
    error, *results = getattr(runtime, name)(*arguments)
    code = int(error)
    if code == _OUT_OF_MEMORY:
        raise OutOfMemoryError(_no_memory(name))
    if code:
        _, text = runtime.cudaGetErrorString(error)
        said = text.decode() if isinstance(text, bytes) else str(text)
        raise CudaError(f"{name} failed: {said} ({code}); check the GPU with 'edgeseg doctor'")
    return results[0] if results else None


def _no_memory(name: str) -> str:
    return (
        f"the GPU's memory does not suffice ({name}); close other programs that use it or export "
        "the bundle at a smaller --size"
    )
