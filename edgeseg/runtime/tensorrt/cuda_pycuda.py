"""CUDA by the package pycuda, with the driver's graphs, which pycuda does not have, by ctypes."""

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy.typing as npt

from edgeseg.runtime.tensorrt.cuda import Array, CudaError, Device, OutOfMemoryError, dotted

__all__ = ["PyCuda", "open_device"]

_NON_BLOCKING: Final = 1
_CAPTURE_THREAD_LOCAL: Final = 1


def open_device() -> "PyCuda":
    """The first GPU; ImportError where the package or the driver is missing."""
    return PyCuda(importlib.import_module("pycuda.driver"), lambda: ctypes.CDLL("libcuda.so.1"))


class PyCuda:
    """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""

    name = "pycuda"

    def __init__(self, driver: Any, library: Callable[[], Any]) -> None:
        driver.init()
        device = driver.Device(0)
        self._driver = driver
        self._library = library
        # The primary context is the one that TensorRT's own calls of the runtime API use.
        self._context = device.retain_primary_context()
        major, minor = device.compute_capability()
        self.device = Device(
            name=device.name(),
            compute_capability=f"{major}.{minor}",
            cuda=dotted(driver.get_driver_version()),
            memory_bytes=int(device.total_memory()),
        )
        self._allocations: dict[int, Any] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """There is a stack of contexts a thread."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def allocate(self, size: int) -> int:
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        allocation = self._checked(self._driver.mem_alloc, size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        allocation = self._allocations.pop(address, None)
        if allocation is not None:
            allocation.free()

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        array: Array = self._checked(self._driver.pagelocked_empty, shape, dtype)
        return array

    def unpin(self, array: Array) -> None:
        """Nothing to do: pinned memory goes with its array."""

    def stream(self) -> "_Stream":
        """See :class:`edgeseg.runtime.tensorrt.cuda.Cuda`."""
        return _Stream(self._driver, self._library)

    def _checked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._driver.MemoryError:
            raise OutOfMemoryError(
                "the GPU's memory does not suffice; close other programs that use it or export "
                "the bundle at a smaller --size"
            ) from None


class _Stream:
    def __init__(self, driver: Any, library: Callable[[], Any]) -> None:
        self._driver = driver
        self._library = library
        self._stream = driver.Stream(_NON_BLOCKING)
        self._graphs: list[ctypes.c_void_p] = []

    @property
    def handle(self) -> int:
        return int(self._stream.handle)

    def copy_in(self, address: int, source: Array) -> None:
        self._driver.memcpy_htod_async(address, source, self._stream)

    def copy_out(self, target: Array, address: int) -> None:
        self._driver.memcpy_dtoh_async(target, address, self._stream)

    def synchronize(self) -> None:
        try:
            self._stream.synchronize()
        except self._driver.Error as error:
            raise CudaError(
                f"the GPU stopped with an error ({' '.join(str(error).split())}); check it with "
                "'edgeseg doctor'"
            ) from None

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        library = self._library()
        stream = ctypes.c_void_p(self.handle)
        _check("cuStreamBeginCapture_v2", library, stream, _CAPTURE_THREAD_LOCAL)
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            work()
        except BaseException:
            # The capture must end even so, or the stream stays unusable; it gives no graph.
            library.cuStreamEndCapture(stream, ctypes.byref(graph))
            raise
        _check("cuStreamEndCapture", library, stream, ctypes.byref(graph))
        try:
            flags = ctypes.c_ulonglong(0)
            _check("cuGraphInstantiateWithFlags", library, ctypes.byref(ready), graph, flags)
        finally:
            library.cuGraphDestroy(graph)
        self._graphs.append(ready)
        return lambda: _check("cuGraphLaunch", library, ready, stream)

    def close(self) -> None:
        while self._graphs:
            self._library().cuGraphExecDestroy(self._graphs.pop())
        self._stream = None


def _check(name: str, library: Any, *arguments: Any) -> None:
    code = int(getattr(library, name)(*arguments))
    if code:
        raise CudaError(f"{name} failed with error {code}; check the GPU with 'edgeseg doctor'")
