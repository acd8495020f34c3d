"""The head's kernel behind an engine that ends at the features: any scorer, any temperature.

Features never leave the GPU; class map and float16 score do. The kernel is started by the driver's
own library, which both CUDA packages have loaded, in the stream that the engine runs in.
"""

import contextlib
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeseg.errors import MissingDependencyError
from edgeseg.files import write_whole
from edgeseg.runtime.cache import cache_folder
from edgeseg.runtime.tensorrt.cuda import Cuda, CudaError, Stream
from edgeseg.scoring.cuda import KERNEL, SOURCES, CudaHead, kernel_argument, launch, packed_weights
from edgeseg.scoring.head import Head

__all__ = ["GpuHead", "find_cubin"]

_COMPILE_SECONDS: Final = 300


class GpuHead:
    """A loaded kernel with the head's weights on the GPU.

    Args:
        cuda: the GPU; its context must be active.
        cubin: of ``native/cuda/head.cu`` for this GPU and this head's number of outputs.
        head: of the bundle.
        height: of the frame, pixels.
        width: of the frame, pixels.
        scorer: one that the head has.
        temperature: T > 0.
        library: the driver's library; default: ``libcuda.so.1``.

    Raises:
        MissingDependencyError: the driver's library cannot be loaded.
        CudaError: the driver does not take the cubin.
        OutOfMemoryError: the GPU's memory does not suffice.
    """

    def __init__(
        self,
        cuda: Cuda,
        cubin: bytes,
        head: Head,
        height: int,
        width: int,
        scorer: str,
        temperature: float,
        library: Callable[[], Any] = lambda: ctypes.CDLL("libcuda.so.1"),
    ) -> None:
        self.outputs: dict[str, Any] = {
            "class_map": ((1, height, width), np.uint8),
            "score": ((1, height, width), np.float16),
        }
        self.scorer, self.temperature = scorer, temperature
        self._cuda = cuda
        try:
            self._library = library()
        except OSError:
            raise MissingDependencyError(
                "NVIDIA's driver library libcuda.so.1 cannot be loaded; install the driver"
            ) from None
        self._plan = launch(head, height, width)
        self._argument = kernel_argument(head, height, width, scorer, temperature)
        self._addresses: list[int] = []
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self._module), cubin)
        try:
            name = KERNEL.encode()
            self._call("cuModuleGetFunction", ctypes.byref(self._function), self._module, name)
            names = ("weight", "bias", "prototypes")
            for field, values in zip(names, packed_weights(head), strict=True):
                setattr(self._argument, field, self._upload(values) if values.size else None)
        except BaseException:
            self.close()
            raise

    def enqueue(self, stream: Stream, addresses: Mapping[str, int]) -> None:
        """Put the kernel into ``stream``; ``addresses`` of features, class map and score."""
        argument = CudaHead.from_buffer_copy(self._argument)
        argument.features = addresses["features"]
        argument.class_map = addresses["class_map"]
        argument.score_half = addresses["score"]
        # The driver copies the argument before the call returns.
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        self._call(
            "cuLaunchKernel",
            self._function,
            *self._plan.grid,
            *self._plan.block,
            self._plan.shared_bytes,
            ctypes.c_void_p(stream.handle),
            pointers,
            None,
        )

    def close(self) -> None:
        """Free kernel and weights; safe to call twice."""
        while self._addresses:
            self._cuda.free(self._addresses.pop())
        if self._module:
            self._library.cuModuleUnload(self._module)
            self._module = ctypes.c_void_p()

    def _upload(self, values: Any) -> int:
        address = self._cuda.allocate(values.nbytes)
        self._addresses.append(address)
        pinned = self._cuda.pinned(values.shape, values.dtype)
        stream = self._cuda.stream()
        try:
            np.copyto(pinned, values)
            stream.copy_in(address, pinned)
            stream.synchronize()
        finally:
            stream.close()
            self._cuda.unpin(pinned)
        return address

    def _call(self, name: str, *arguments: Any) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            raise CudaError(
                f"{name} failed with error {code}; export the bundle again with --target tensorrt, "
                "which puts the head into the engine"
            )


def find_cubin(compute_capability: str, outputs: int) -> bytes:
    """The kernel for a GPU: compiled by nvcc once and kept in the user's cache.

    Raises:
        MissingDependencyError: there is no nvcc, or it does not compile for this GPU.
    """
    digest = _source_digest()
    architecture = compute_capability.replace(".", "")
    name = f"head_{outputs}_sm{architecture}_{digest}.cubin"
    kept = _kept(name)
    if kept is not None and kept.is_file():
        return kept.read_bytes()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise MissingDependencyError(
            "the head's kernel needs CUDA's compiler nvcc once; install it (on JetPack: "
            "cuda-toolkit), or export the bundle with --target tensorrt for this scorer"
        )
    options = [f"-arch=sm_{architecture}", "-O3", f"-DEDGESEG_OUTPUTS={outputs}"]
    try:
        with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
            compiled = Path(folder) / name
            done = subprocess.run(
                [nvcc, "-cubin", *options, str(SOURCES / "head.cu"), "-o", str(compiled)],
                capture_output=True,
                text=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
            said = " ".join((done.stderr or done.stdout).split())[:200]
            cubin = compiled.read_bytes() if done.returncode == 0 else b""
    except (OSError, subprocess.TimeoutExpired) as error:
        said, cubin = str(error), b""
    if not cubin:
        raise MissingDependencyError(
            f"nvcc does not compile the head's kernel for compute capability {compute_capability} "
            f"({said}); install the CUDA toolkit that fits this GPU"
        )
    if kept is not None:
        # Only time is lost without it.
        with contextlib.suppress(OSError):
            write_whole(kept, cubin)
    return cubin


def _kept(name: str) -> Path | None:
    """Where a kernel is kept for the next start; ``None`` for a user without a home."""
    try:
        return cache_folder() / "cubins" / name
    except RuntimeError:
        return None


def _source_digest() -> str:
    import hashlib

    digest = hashlib.sha256()
    for name in ("head.cu", "head_pixel.h"):
        digest.update(Path(SOURCES / name).read_bytes())
    return digest.hexdigest()[:16]
