"""ONNX Runtime on the CPU."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgeseg.errors import MissingDependencyError
from edgeseg.runtime.backends import BodySpec, refusal

__all__ = ["OnnxRuntimeBackend", "open_engine"]

_PROVIDER: Final = "CPUExecutionProvider"


class OnnxRuntimeBackend:
    """A session with its output bound to one buffer that every frame reuses."""

    name = "onnxruntime"

    def __init__(self, session: ort.InferenceSession, body: BodySpec, threads: int) -> None:
        (given,) = session.get_inputs()
        (output,) = session.get_outputs()
        body.check_input(given.name, _dtype(given.type), list(given.shape))
        body.check_output(output.name, _dtype(output.type), list(output.shape))
        self._session: ort.InferenceSession | None = session
        self._threads = threads
        self._shape = tuple(given.shape)
        self._features = np.zeros(output.shape, dtype=np.float32)
        self._binding = session.io_binding()
        self._binding.bind_output(
            "features", "cpu", 0, np.float32, output.shape, self._features.ctypes.data
        )
        self._frame: npt.NDArray[np.uint8] | None = None

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        if self._session is None:
            raise RuntimeError("the backend is closed")
        if frame is not self._frame:
            self._binding.bind_input("frame", "cpu", 0, np.uint8, self._shape, frame.ctypes.data)
            # The engine reads the caller's memory: it must live until the run is over.
            self._frame = frame
        self._session.run_with_iobinding(self._binding)
        return self._features

    def describe(self) -> dict[str, Any]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        return {
            "backend": self.name,
            "engine_version": ort.__version__,
            "provider": _PROVIDER,
            "threads": self._threads,
            # It has no bfloat16 kernels for float32 graphs on x86.
            "compute_precision": "f32",
        }

    def close(self) -> None:
        """Free the session."""
        self._session = None
        self._frame = None
        self._binding = None


def open_engine(body: BodySpec, threads: int) -> OnnxRuntimeBackend:
    """Open ``body`` with ``threads`` threads; ArtefactError where the graph is refused."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    # Its workers would go on spinning after the run, on the very cores that the head needs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(str(body.path), options, providers=[_PROVIDER])
    except Exception as error:  # its exception classes are not public
        raise refusal("onnxruntime", body, error) from None
    # A provider that cannot be used is replaced in silence.
    active = session.get_providers()
    if not active or active[0] != _PROVIDER:
        raise MissingDependencyError(
            f"onnxruntime runs on {active[:1]} instead of {_PROVIDER}; reinstall it with "
            "'pip install --force-reinstall onnxruntime'"
        )
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise refusal("onnxruntime", body, ValueError("it has not one input and one output"))
    return OnnxRuntimeBackend(session, body, threads)


def _dtype(name: str) -> str:
    return {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(name, name)
