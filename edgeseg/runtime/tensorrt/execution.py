"""Running an engine: buffers allocated once, a frame in, few bytes out.

A slot is a stream with an execution context, buffers on the GPU and pinned ones on the host. What
a frame does (copy in, compute, copy out) is recorded once as a CUDA graph and then started with a
single call; where recording fails the calls are made one by one. With two slots the copies of one
frame run while the GPU computes the other.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError
from edgeseg.runtime.tensorrt.builder import collecting_logger
from edgeseg.runtime.tensorrt.cuda import Cuda, CudaError, OutOfMemoryError, Stream
from edgeseg.runtime.tensorrt.gpu_head import GpuHead

__all__ = ["EngineRunner"]

Array = npt.NDArray[Any]

_DTYPES: Final = {"UINT8": np.uint8, "FLOAT": np.float32, "HALF": np.float16}


class EngineRunner:
    """A deserialized engine with its buffers. Not thread-safe.

    Args:
        trt: the module that built the engine.
        cuda: the GPU.
        plan: the engine's bytes. Deserializing runs what they hold: trusted ones only.
        slots: frames that may be under way at a time.
        head: the kernel that turns the engine's features into class map and score; its outputs
            then take the place of the engine's.

    Raises:
        ArtefactError: the engine is damaged, or of another GPU or TensorRT.
        OutOfMemoryError: the GPU's memory does not suffice.
    """

    def __init__(
        self, trt: Any, cuda: Cuda, plan: bytes, slots: int = 1, head: GpuHead | None = None
    ) -> None:
        self._cuda = cuda
        logger, self._said = collecting_logger(trt)
        self._slots: list[_Slot] = []
        self._waiting: deque[_Slot] = deque()
        self._next = 0
        with cuda.active():
            # The runtime must outlive the engine.
            self._runtime = trt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise ArtefactError(
                    f"the engine cannot be loaded ({_last(self._said)}); delete it and let it be "
                    "built again"
                )
            self.inputs, self.engine_outputs = _tensors(trt, self._engine)
            self.outputs = self.engine_outputs if head is None else head.outputs
            self.head = head
            try:
                for _ in range(slots):
                    self._slots.append(_Slot(self, cuda))
            except BaseException:
                self.close()
                raise

    @property
    def graph_reason(self) -> str | None:
        """Why frames do not run as one CUDA graph; ``None`` where they do."""
        return next((s.graph_reason for s in self._slots if s.graph_reason), None)

    def submit(self, frame: npt.NDArray[np.uint8]) -> None:
        """Start a frame; it is copied, so the caller's array is free again.

        Raises:
            RuntimeError: as many frames as there are slots are under way.
            CudaError: the GPU or TensorRT failed.
        """
        if not self._slots:
            raise RuntimeError("the engine is closed")
        if len(self._waiting) == len(self._slots):
            raise RuntimeError("every slot is under way; collect a frame first")
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        with self._cuda.active():
            slot.start(frame)
        self._waiting.append(slot)

    def collect(self) -> dict[str, Array]:
        """Outputs of the oldest frame under way: views that its slot's next frame overwrites.

        Raises:
            RuntimeError: no frame is under way.
            CudaError: the GPU failed.
        """
        if not self._waiting:
            raise RuntimeError("no frame is under way; submit one first")
        slot = self._waiting.popleft()
        with self._cuda.active():
            slot.stream.synchronize()
        return slot.host_outputs

    def run(self, frame: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """:meth:`submit` and :meth:`collect`."""
        self.submit(frame)
        return self.collect()

    def close(self) -> None:
        """Free everything; safe to call twice."""
        with self._cuda.active():
            while self._slots:
                self._slots.pop().close()
            self._waiting.clear()
            if self.head is not None:
                self.head.close()
            self._engine = None
            self._runtime = None

    def new_context(self) -> Any:
        """An execution context of the engine."""
        context = self._engine.create_execution_context()
        if context is None:
            raise OutOfMemoryError(
                f"the GPU's memory does not suffice for the engine ({_last(self._said)}); close "
                "other programs that use it or export the bundle at a smaller --size"
            )
        return context

    def enqueue(self, context: Any, stream: Stream) -> None:
        """Put one inference into ``stream``."""
        if not context.execute_async_v3(stream.handle):
            raise CudaError(
                f"TensorRT could not start the engine ({_last(self._said)}); delete the engine "
                "and let it be built again"
            )


class _Slot:
    def __init__(self, owner: EngineRunner, cuda: Cuda) -> None:
        self._owner = owner
        self._cuda = cuda
        self._addresses: dict[str, int] = {}
        self._host: dict[str, Array] = {}
        self._launch: Callable[[], None] | None = None
        self.graph_reason: str | None = None
        self.stream = cuda.stream()
        try:
            self._context = owner.new_context()
            bound = {**owner.inputs, **owner.engine_outputs}
            for name, (shape, dtype) in {**bound, **owner.outputs}.items():
                # Features stay on the GPU where the head runs there.
                if name in owner.inputs or name in owner.outputs:
                    self._host[name] = cuda.pinned(shape, dtype)
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                self._addresses[name] = cuda.allocate(size)
                address = self._addresses[name]
                if name in bound and not self._context.set_tensor_address(name, address):
                    raise ArtefactError(
                        f"the engine does not take its own tensor '{name}'; delete it and let it "
                        "be built again"
                    )
            (self._input,) = owner.inputs
            self.host_outputs = {name: self._host[name] for name in owner.outputs}
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def start(self, frame: npt.NDArray[np.uint8]) -> None:
        np.copyto(self._host[self._input], frame)
        if self._launch is not None:
            self._launch()
        else:
            self._work()

    def close(self) -> None:
        self._launch = None
        self._context = None
        self.stream.close()
        for address in self._addresses.values():
            self._cuda.free(address)
        for array in self._host.values():
            self._cuda.unpin(array)
        self._addresses, self._host, self.host_outputs = {}, {}, {}

    def _work(self) -> None:
        self.stream.copy_in(self._addresses[self._input], self._host[self._input])
        self._owner.enqueue(self._context, self.stream)
        if self._owner.head is not None:
            self._owner.head.enqueue(self.stream, self._addresses)
        for name, target in self.host_outputs.items():
            self.stream.copy_out(target, self._addresses[name])

    def _warm_up(self) -> None:
        """Run once, then record: the first enqueue of a context sets up what cannot be recorded."""
        self._host[self._input].fill(0)
        self._work()
        self.stream.synchronize()
        try:
            self._launch = self.stream.record(self._work)
            self._launch()
            self.stream.synchronize()
        except (CudaError, AttributeError, OSError) as error:  # no graphs in this driver
            self._launch = None
            self.graph_reason = " ".join(str(error).split())[:200]
            self._work()
            self.stream.synchronize()


def _tensors(trt: Any, engine: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and types of inputs and outputs, by name."""
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for index in range(int(engine.num_io_tensors)):
        name = str(engine.get_tensor_name(index))
        shape = tuple(int(n) for n in engine.get_tensor_shape(name))
        kind = str(engine.get_tensor_dtype(name).name)
        if kind not in _DTYPES or any(n < 1 for n in shape):
            raise ArtefactError(
                f"the engine's tensor '{name}' is {kind} {list(shape)}, which no bundle has; "
                "delete the engine and let it be built again"
            )
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs)[name] = (shape, _DTYPES[kind])
    if len(inputs) != 1 or not outputs:
        raise ArtefactError(
            f"the engine has {len(inputs)} inputs and {len(outputs)} outputs, which no bundle has; "
            "delete it and let it be built again"
        )
    return inputs, outputs


def _last(said: list[str]) -> str:
    return " ".join((said[-1] if said else "TensorRT gives no reason").split())[:300]
